"""The next layer is read while one is at work, and nothing else changes."""

import threading
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import LyapunovError
from lyapunov.checkpoints.files._tensors import DTYPES, WEIGHT_DTYPES
from lyapunov.formats import FORMATS
from lyapunov.models import _read_ahead
from lyapunov.models._read_ahead import Held, ReadAhead
from lyapunov.models.held import held, rounded
from lyapunov.questions import _rehearsal
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights


PLACES = 5
LONG = 20.0  # seconds; nothing here takes as much


class Reader:
    """Reads made-up places, and knows who read them."""

    def __init__(self):
        self.read: list[tuple[int, bool]] = []
        """Places in order, and whether in a thread beside."""
        self.broken: set[int] = set()
        self.done = {place: threading.Event() for place in range(PLACES)}

    def __call__(self, place):
        beside = threading.current_thread().name.startswith("lyapunov-reader")
        self.read.append((place, beside))
        self.done[place].set()
        if place in self.broken:
            raise ValueError(f"place {place} is damaged")
        return {"w": np.full(3, place, ml_dtypes.bfloat16)}

    def places(self) -> list[int]:
        return [place for place, _ in self.read]


def values(held) -> list[float]:
    with jax.enable_x64(True):
        return np.asarray(held.array("w", None)).tolist()


def test_the_next_place_is_read_while_one_is_at_work():
    """Assert it from the first on, before anybody asks for it."""
    reader = Reader()
    places = ReadAhead(reader, range(PLACES))
    for place in range(PLACES):
        assert values(places.at(place)) == [place] * 3
        if place + 1 < PLACES:
            assert reader.done[place + 1].wait(LONG)
    assert reader.read == [(0, False), *((i, True) for i in range(1, PLACES))]


def test_a_walk_back_is_read_ahead_too_and_every_place_once():
    """Assert that the last place is kept, and the second found nowhere to be read."""
    reader = Reader()
    places = ReadAhead(reader, range(PLACES))
    walk = [*range(PLACES), *reversed(range(PLACES))]
    assert [values(places.at(place))[0] for place in walk] == walk
    there_and_back = [*range(PLACES), *reversed(range(PLACES - 1))]
    assert reader.places() == there_and_back
    alone = [place for place, beside in reader.read if not beside]
    assert alone == [0, PLACES - 2]


def test_two_places_are_held_and_no_more():
    """Assert it of the arrays, at any time of a walk."""
    alive = []

    def read(place):
        found = np.full(3, place, np.float32)
        alive.append(weakref.ref(found))
        return {"w": found}

    places = ReadAhead(read, range(PLACES))
    for place in range(PLACES):
        places.at(place)
        assert sum(one() is not None for one in alive) <= 2


@pytest.mark.parametrize("walk", [[3], [2, 0, 4, 1], [4, 4]])
def test_who_goes_in_no_order_has_nothing_read_for_nothing(walk):
    """Assert that what is read is what was asked for."""
    reader = Reader()
    places = ReadAhead(reader, range(PLACES))
    assert [values(places.at(place))[0] for place in walk] == walk
    assert reader.read == [(place, False) for place in dict.fromkeys(walk)]


def test_what_may_change_is_read_when_it_is_asked_for():
    """Assert it of `ahead=False`."""
    reader = Reader()
    places = ReadAhead(reader, range(PLACES), ahead=False)
    for place in range(PLACES):
        places.at(place)
    assert reader.read == [(place, False) for place in range(PLACES)]


def test_damage_is_told_to_who_asks_for_it_every_time():
    """Assert that the place before it is given all the same."""
    reader = Reader()
    reader.broken = {2}
    places = ReadAhead(reader, range(PLACES))
    assert values(places.at(0)) == [0] * 3
    assert values(places.at(1)) == [1] * 3
    for _ in range(2):
        with pytest.raises(ValueError, match="place 2 is damaged"):
            places.at(2)
    assert values(places.at(1)) == [1] * 3


def test_it_is_read_for_the_device_and_in_the_width_of_who_asks():
    """Assert fp64 on a device that was chosen, whatever holds in other threads."""
    device = jax.devices()[-1]
    reader = Reader()
    places = ReadAhead(reader, range(PLACES))
    with jax.enable_x64(True), jax.default_device(device):
        places.at(0)
        ahead = places.at(1).array("w", None)
    assert reader.read[1] == (1, True)
    assert ahead.dtype == np.float64
    assert ahead.devices() == {device}


def everything(name: str) -> np.ndarray:
    """Every finite number of a 16-bit type; of others some of every exponent."""
    if DTYPES[name].itemsize == 2:
        found = np.arange(2**16, dtype=np.uint16).view(DTYPES[name])
    else:
        lowest, highest = (-149, 128) if name == "fp32" else (-1074, 1024)
        scale = np.arange(lowest, highest)[:, None]
        drawn = np.random.default_rng(0).uniform(1, 2, (1, 50))
        found = np.ldexp(drawn, scale).astype(DTYPES[name])
    with np.errstate(invalid="ignore"):  # a signalling NaN is compared
        return found[np.isfinite(found)]


class All:
    """Holds every parameter in one format."""

    def __init__(self, fmt):
        self._fmt = fmt

    def parameter_format(self, name):
        return self._fmt


@pytest.mark.parametrize("stored", WEIGHT_DTYPES)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_a_format_that_holds_all_numbers_of_a_type_is_not_rounded_to(stored, fmt):
    """Assert that leaving the rounding out changes nothing, and that it is left out
    just where it changes nothing of any number (tried on all of a 16-bit type)."""
    raw = everything(stored)
    with jax.enable_x64(True):
        after = rounded(raw, fmt)
        np.testing.assert_array_equal(held(raw, "w", All(fmt)), after)
    changes_nothing = np.array_equal(after, raw.astype(np.float64))
    assert fmt.holds(FORMATS[stored]) == changes_nothing


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.slow])],
)
@pytest.mark.parametrize("stored", WEIGHT_DTYPES)
def test_what_is_widened_on_the_device_is_what_the_host_makes_of_it(
    stored, device, monkeypatch
):
    """Assert every bit, signs of zeros as well, and that a GPU gets what is stored."""
    raw = everything(stored)
    if device == "cpu":  # where XLA flushes what is subnormal in fp32
        raw = raw[(raw == 0) | (np.abs(raw.astype(float)) >= 2.0**-126)]
    monkeypatch.setattr(_read_ahead, "LARGE", 1)
    monkeypatch.setattr(_read_ahead, "has_gpu", lambda: True)
    with jax.enable_x64(True), jax.default_device(jax.devices(device)[0]):
        found = np.asarray(Held({"w": raw}).array("w", None))
    np.testing.assert_array_equal(
        found.view(np.int64), raw.astype(np.float64).view(np.int64)
    )


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_arrives_is_what_was_read(times, monkeypatch):
    """Assert that it is sent again, and refused where it never arrives whole."""
    sent = []

    def damaged(raw):
        sent.append(raw)
        found = np.array(raw)
        if len(sent) <= times:
            found[0, 3] *= 2
        return jnp.asarray(found)

    monkeypatch.setattr(_read_ahead, "LARGE", 1)
    monkeypatch.setattr(_read_ahead, "has_gpu", lambda: True)
    monkeypatch.setattr(_read_ahead.jax, "device_put", damaged)
    raw = np.ones((4, 8), ml_dtypes.bfloat16)
    with jax.enable_x64(True):
        if times < 3:
            np.testing.assert_array_equal(Held({"w": raw}).array("w", None), 1.0)
            return
        with pytest.raises(LyapunovError, match="arrive on the device as others"):
            Held({"w": raw}).array("w", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = Sizes(vocab=50, d_model=16, d_state=4, dt_rank=2, layers=4)
    weights = random_weights(np.random.default_rng(1), sizes)
    return save_transformers(tmp_path_factory.mktemp("four"), weights, sizes)


def test_a_check_reads_each_layer_and_each_row_of_the_head_once(folder, monkeypatch):
    """Assert it of two executions and T3, which all take the same arrays."""
    monkeypatch.setattr(_rehearsal, "CORES", 10**6)  # nothing but the check itself
    model = lyapunov.load(folder)
    read = []
    kind = type(model.layout)
    for name in ("layer", "head"):
        own = getattr(kind, name)

        def noted(self, *place, own=own, name=name):
            read.append((name, *place))
            return own(self, *place)

        monkeypatch.setattr(kind, name, noted)
    lyapunov.check(model, np.arange(12) % 50, effort="quick")
    assert read == [*(("layer", i) for i in range(4)), ("head", 0, 50)]
