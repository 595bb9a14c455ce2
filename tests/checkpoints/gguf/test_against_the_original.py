"""A file in GGUF held against the checkpoint that it was made from.

Settings agree to fp32's roundings, and multipliers may be in the weights of one and in
the settings of the other.
"""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.models import Model
from lyapunov.questions._weight_sets import other_weights
from oracles.checkpoints.llama_cpp.cases import CASES
from oracles.checkpoints.llama_cpp.files import written
from oracles.checkpoints.transformers import make, save, tolerance

from ...helpers import assert_within


pytest.importorskip("gguf", reason="writes the files")

TOKENS = np.random.default_rng(7).integers(0, 50, 19)
H1 = "falcon_h1, all multipliers"


def pair(name, tmp_path, **changes):
    """A network, its file in GGUF, and its folder as transformers saves it."""
    family, settings = CASES[name]
    network = make(family, **{**settings, **changes})
    path = written(network, tmp_path / "model.gguf")
    return network, path, save(network, tmp_path / "original")


def logits(model) -> np.ndarray:
    return np.asarray(model.logits(TOKENS))


@pytest.mark.parametrize("turned", [False, True])
def test_multipliers_are_folded_in_and_out(tmp_path, turned):
    """Assert that the other's own function is kept, to fp64's roundings, under the
    base's multipliers, and that it is the base's to fp32's: the file's."""
    network, path, folder = pair(H1, tmp_path)
    base, other = (folder, path) if turned else (path, folder)
    model = lyapunov.load(base)
    change = other_weights(model, other)
    assert change.model.config == model.config
    own = logits(lyapunov.load(other))
    exact = tolerance(network, TOKENS, 2.0**-53)
    assert_within(logits(change.model), own, exact, "the other's own")
    assert_within(logits(change.model), logits(model), tolerance(network, TOKENS), "")
    plain = Model(lyapunov.load(other).layout)
    plain.config = model.config
    assert np.abs(logits(plain) - own).max() > 1e-2 * np.abs(own).max()


@pytest.mark.parametrize(
    ("name", "field"), [("mamba2", "layer_norm_epsilon"), (H1, "rms_norm_eps")]
)
def test_an_epsilon_that_fp32_rounds(tmp_path, name, field):
    """Assert that 1e-5 of config.json is 1e-5 in fp32 of a file."""
    _, path, folder = pair(name, tmp_path, **{field: 1e-5})
    model = lyapunov.load(path)
    assert model.config.norm_epsilon == float(np.float32(1e-5)) != 1e-5
    assert other_weights(model, folder).name == str(folder)


def test_two_checkpoints_are_held_to_the_bit(tmp_path, set_config):
    """Assert that without a file of llama.cpp's the same epsilons are two."""
    _, _, folder = pair("mamba2", tmp_path, layer_norm_epsilon=1e-5)
    other = save(make("mamba2", **CASES["mamba2"][1]), tmp_path / "other")
    set_config(other, layer_norm_epsilon=float(np.float32(1e-5)))
    with pytest.raises(UsageError, match="norm_epsilon"):
        other_weights(lyapunov.load(folder), other)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("falcon_mamba", {"mixer_rms_eps": 1e-3}, "mixer_norm_epsilon 0.001"),
        ("mamba2", {"time_step_limit": (0.1, 0.8)}, "dt_limit (0.1, 0.8)"),
    ],
)
def test_what_a_file_has_no_room_for(tmp_path, name, change, words):
    """Assert that an original is taken under the file's settings, and that it says so:
    llama.cpp computes another function of it."""
    _, path, folder = pair(name, tmp_path, **change)
    found = other_weights(lyapunov.load(path), folder)
    assert found.name.startswith(str(folder))
    assert "under the base's settings" in found.name
    assert words in found.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residual_multiplier": 0.4}, "out_multiplier 0.4 and 0.3"),
        ({"num_experts_per_tok": 1}, "chosen 1 and 2"),
    ],
)
def test_another_network_is_refused(tmp_path, set_config, change, words):
    """Assert that what a file does hold has to agree."""
    _, path, folder = pair("granitemoehybrid, experts", tmp_path)
    set_config(folder, **change)
    with pytest.raises(UsageError, match=words):
        other_weights(lyapunov.load(path), folder)
