"""Whatever a quantised file holds, reading it ends with numbers or with one line."""

import json

import numpy as np
import pytest

from lyapunov._errors import LyapunovError
from lyapunov.checkpoints import open_checkpoint, recognise
from oracles.checkpoints.quantised_models import (
    RECIPES,
    stored_arrays,
    write_safetensors,
)


ODD = [None, 0, -1, 2**70, 0.5, True, "", "x" * 300, [], {}, [0, 0], {"weights": 3}]
TYPES = [np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8]
TRIES = 60


def other_tensor(array: np.ndarray, rng) -> np.ndarray:
    """One of the ways in which a tensor may be another."""
    kind = rng.integers(6)
    if kind == 0 and array.size:
        axis = rng.integers(max(array.ndim, 1))
        return np.delete(np.atleast_1d(array), 0, axis)
    if kind == 1:
        return np.ascontiguousarray(array.T)
    if kind == 2:
        return array.reshape(-1)
    if kind == 3:
        with np.errstate(all="ignore"):
            return array.astype(np.float32).astype(TYPES[rng.integers(len(TYPES))])
    if kind == 4:
        octets = rng.integers(0, 256, array.nbytes, dtype=np.uint8)
        return octets.view(array.dtype).reshape(array.shape)
    return np.concatenate([array.reshape(-1)] * 2)


def spoil(told, rng) -> None:
    """Put something odd in one place of a configuration."""
    places = [told]
    for place in places:
        places += [value for value in place.values() if isinstance(value, dict)]
    place = places[rng.integers(len(places))]
    if place:
        place[sorted(place)[rng.integers(len(place))]] = ODD[rng.integers(len(ODD))]


@pytest.mark.filterwarnings("ignore:.*cast:RuntimeWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_line_or_numbers(quantised, recipe):
    folder, _ = quantised(recipe)
    rng = np.random.default_rng(sum(map(ord, recipe)))
    whole = stored_arrays(folder)
    holder = folder / (RECIPES[recipe].beside or "config.json")
    settings = json.loads(holder.read_text())
    told = settings if RECIPES[recipe].beside else settings["quantization_config"]
    codes = [name for name in whole if "layers.0.mixer" in name and "proj" in name]
    refused: list[LyapunovError] = []
    for _ in range(TRIES):
        tensors, own = dict(whole), json.loads(json.dumps(told))
        if rng.random() < 0.6:
            name = codes[rng.integers(len(codes))]
            if rng.random() < 0.2:
                del tensors[name]
            else:
                tensors[name] = other_tensor(tensors[name], rng)
        else:
            spoil(own, rng)
        write_safetensors(folder / "model.safetensors", tensors)
        new = own if RECIPES[recipe].beside else settings | {"quantization_config": own}
        holder.write_text(json.dumps(new))
        try:
            layout = recognise(open_checkpoint(folder))
            for array in layout.layer(0).values():
                assert np.all(np.isfinite(array.astype(np.float64)))
        except LyapunovError as e:
            refused.append(e)
    assert len(refused) > TRIES / 10
    for e in refused:
        assert "\n" not in e.message + e.hint
        assert len(e.message) < 600
        assert e.hint, e.message
