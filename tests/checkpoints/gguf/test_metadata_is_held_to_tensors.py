"""Settings and tensors of a GGUF file that do not fit, or are not covered."""

import numpy as np
import pytest

from lyapunov._errors import (
    CorruptCheckpointError,
    LyapunovError,
    UnsupportedCheckpointError,
)
from lyapunov.checkpoints import open_checkpoint, recognise
from lyapunov.checkpoints._network import finite

from .crafted import (
    mamba_keys,
    mamba_tensors,
    model_bytes,
    number,
    numbers,
    word,
    words,
)


@pytest.fixture
def told(tmp_path, refused):
    """A function that asserts that a Mamba-1 file with changes is refused."""

    def check(error, *words_told, keys=None, tensors=None):
        path = tmp_path / "model.gguf"
        own = mamba_tensors(**(tensors or {}))
        path.write_bytes(model_bytes(mamba_keys(**(keys or {})), own))
        refused(path, error, *words_told)

    return check


@pytest.mark.parametrize(
    "key",
    [
        *("block_count", "embedding_length", "conv_kernel", "inner_size"),
        *("state_size", "time_step_rank", "epsilon"),
    ],
)
def test_settings_that_are_missing(told, key):
    """Assert that no size and no epsilon has a default."""
    told(CorruptCheckpointError, "does not say", keys={key: None})


def test_no_architecture(told):
    """Assert that a file without an architecture is told from one of an unknown."""
    told(CorruptCheckpointError, "general.architecture", keys={"architecture": None})


@pytest.mark.parametrize("name", ["llama", "rwkv7", "plamo2", "clip", "mamba3"])
def test_architectures_that_are_not_covered(told, name):
    """Assert that the refusal lists those that are."""
    own = {"architecture": word("general.architecture", name)}
    covered = "mamba, mamba2, falcon-h1, granitehybrid"
    told(UnsupportedCheckpointError, name, covered, keys=own)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("block_count", number("mamba.block_count", 0)),
        ("block_count", number("mamba.block_count", 2**31)),
        ("block_count", number("mamba.block_count", 100)),
        ("block_count", word("mamba.block_count", "1")),
        ("block_count", number("mamba.block_count", 1.0, "f")),
        ("inner_size", number("mamba.ssm.inner_size", -16, "i")),
        ("inner_size", numbers("mamba.ssm.inner_size", [16, 8])),
        ("inner_size", numbers("mamba.ssm.inner_size", [])),
        ("epsilon", number("mamba.attention.layer_norm_rms_epsilon", 0.0, "f")),
        (
            "epsilon",
            number("mamba.attention.layer_norm_rms_epsilon", float("nan"), "f"),
        ),
    ],
)
def test_settings_that_are_none(told, key, wrong):
    """Assert that each is refused by its whole name."""
    told(CorruptCheckpointError, "says", "mamba.", "which is not", keys={key: wrong})


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("embedding_length", number("mamba.embedding_length", 16)),
        ("inner_size", number("mamba.ssm.inner_size", 8)),
        ("inner_size", number("mamba.ssm.inner_size", 15)),
        ("state_size", number("mamba.ssm.state_size", 5)),
        ("conv_kernel", number("mamba.ssm.conv_kernel", 3)),
        ("time_step_rank", number("mamba.ssm.time_step_rank", 3)),
    ],
)
def test_settings_of_another_model(told, key, other):
    """Assert that sizes are held to the tensors."""
    told(CorruptCheckpointError, "has shape", keys={key: other})


BIAS = "blk.0.ssm_conv1d.bias"


@pytest.mark.parametrize("name", [name for name in mamba_tensors() if name != BIAS])
def test_tensors_that_are_missing(told, name):
    """Assert that each is missed by its name in the file."""
    told(CorruptCheckpointError, name, tensors={name.replace(".", "__"): None})


def test_a_convolution_without_a_bias(tmp_path):
    """Assert that it is read as one, where no layer has a bias."""
    path = tmp_path / "model.gguf"
    tensors = mamba_tensors(**{BIAS.replace(".", "__"): None})
    path.write_bytes(model_bytes(tensors=tensors))
    assert not recognise(open_checkpoint(path)).config.sublayers[0].conv_bias


@pytest.mark.parametrize(
    "name", [name for name, one in mamba_tensors().items() if one.ndim == 2]
)
def test_axes_in_the_wrong_order(told, name):
    """Assert that a transposed tensor is refused."""
    turned = mamba_tensors()[name].T.copy()
    told(CorruptCheckpointError, "(", tensors={name.replace(".", "__"): turned})


def test_tensors_that_nobody_knows(told):
    """Assert that no tensor is ignored."""
    more = {"blk__0__ssm_gate__weight": np.zeros((4, 4), "f4")}
    told(UnsupportedCheckpointError, "blk.0.ssm_gate.weight", tensors=more)
    more = {"rope_freqs__weight": np.ones(4, "f4")}
    told(UnsupportedCheckpointError, "rope_freqs.weight", tensors=more)


def test_layers_beyond_the_count(told):
    """Assert that layers that the metadata does not count are not left out."""
    more = {"blk__1__attn_norm__weight": np.ones(8, "f4")}
    told(UnsupportedCheckpointError, "blk.1.attn_norm.weight", tensors=more)


def test_tokens_of_another_vocabulary(told):
    """Assert that the tokens' number is held to the embedding's rows."""
    own = {"tokens": words("tokenizer.ggml.tokens", ["a"] * 7)}
    told(CorruptCheckpointError, "names 7 tokens", "6 rows", keys=own)


@pytest.mark.parametrize("wrong", [0.0, -0.0, 1.0, np.inf])
def test_a_that_is_not_negative(tmp_path, wrong):
    """Assert that what is no -exp of anything is told when it is read."""
    tensors = mamba_tensors()
    tensors["blk.0.ssm_a"][3, 1] = wrong
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(tensors=tensors))
    layout = recognise(open_checkpoint(path))
    with pytest.raises(CorruptCheckpointError, match=r"ssm_a|A_log"):
        layout.layer(0)


@pytest.mark.parametrize("name", ["blk.0.ssm_a", "blk.0.ssm_in.weight"])
def test_weights_that_are_no_numbers(tmp_path, name):
    """Assert that NaN is told when it is read."""
    tensors = mamba_tensors()
    tensors[name][3, 1] = np.nan
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(tensors=tensors))
    layout = recognise(open_checkpoint(path))
    with pytest.raises(CorruptCheckpointError, match="1 NaN"):
        layout.layer(0)


def test_a_is_read_as_its_logarithm(tmp_path):
    """Assert that exp(A_log) is the file's A to a few units of fp64, whatever its
    size."""
    rng = np.random.default_rng(0)
    tensors = mamba_tensors()
    A = -np.exp(rng.uniform(-80, 80, (16, 4))).astype(np.float32)
    tensors["blk.0.ssm_a"] = A
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(tensors=tensors))
    A_log = finite(recognise(open_checkpoint(path)).layer(0)["A_log"], "A_log")
    assert A_log.dtype == np.float64
    moved = np.abs(-np.exp(A_log) / A.astype(np.float64) - 1)
    # the logarithm rounds to |A_log| u, which the exponential multiplies by
    assert np.all(moved <= 2.0**-52 * (2 + np.abs(A_log)))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A function that writes a hybrid with another setting."""
    pytest.importorskip("gguf", reason="writes the files")
    from oracles.checkpoints.llama_cpp.cases import CASES
    from oracles.checkpoints.llama_cpp.files import written
    from oracles.checkpoints.transformers import make

    networks = {}

    def write(name, change):
        if name not in networks:
            family, settings = CASES[name]
            networks[name] = make(family, **settings)
        path = tmp_path_factory.mktemp("hybrid") / "model.gguf"
        return written(networks[name], path, change=change)

    return write


def later(kind, key, value):
    """A change of the writer that overrules what it was told."""

    def change(writer):
        for keys in writer.kv_data:
            keys.pop(key, None)
        getattr(writer, f"add_{kind}")(key, value)

    return change


JAMBA, GRANITE = "jamba, experts", "granitemoehybrid, experts"
H1, NEMOTRON = "falcon_h1, all multipliers", "nemotron_h"


@pytest.mark.parametrize(
    ("name", "change", "error", "told_words"),
    [
        (
            GRANITE,
            later("array", "granitehybrid.attention.head_count_kv", [0, 2, 0]),
            CorruptCheckpointError,
            "a list of 2 sizes",
        ),
        (
            GRANITE,
            later("array", "granitehybrid.attention.head_count_kv", [2, 0]),
            CorruptCheckpointError,
            "no tensor",
        ),
        (
            JAMBA,
            later("array", "jamba.attention.head_count_kv", [0.0, 0.0, 2.0, 0.0]),
            CorruptCheckpointError,
            "a list of 4 sizes",
        ),
        (
            JAMBA,
            later("uint32", "jamba.attention.head_count", 3),
            CorruptCheckpointError,
            "a divisor of 32",
        ),
        (
            H1,
            later("string", "falcon-h1.rope.scaling.type", "yarn"),
            UnsupportedCheckpointError,
            "positions that are scaled",
        ),
        (
            H1,
            later("uint32", "falcon-h1.rope.dimension_count", 4),
            CorruptCheckpointError,
            "a whole head",
        ),
        (
            H1,
            later("uint32", "falcon-h1.attention.value_length", 12),
            UnsupportedCheckpointError,
            "another size than keys",
        ),
        (
            "granitemoehybrid, dense, positions",
            later("uint32", "granitehybrid.rope.dimension_count", 4),
            UnsupportedCheckpointError,
            "4 channels of 8 of a head turn",
        ),
        (
            NEMOTRON,
            later("array", "nemotron_h.feed_forward_length", [0, 40, 0, 44]),
            CorruptCheckpointError,
            "one size for all layers",
        ),
        (
            "qwen3_next",
            later("float32", "qwen3next.attention.layer_norm_rms_epsilon", 1e-5),
            CorruptCheckpointError,
            "1e-6",
        ),
        (
            "mamba2",
            later("uint32", "mamba2.ssm.group_count", 3),
            CorruptCheckpointError,
            "groups",
        ),
    ],
)
def test_hybrids_that_do_not_fit(refused, hybrid, name, change, error, told_words):
    """Assert lists of layers, positions and sizes that are refused by name."""
    refused(hybrid(name, change), error, told_words)


def test_heads_for_more_tokens_are_left_out(hybrid):
    """Assert that a last layer that predicts further tokens is not the model's."""

    def change(writer):
        later("uint32", "nemotron_h.block_count", 5)(writer)
        writer.add_uint32("nemotron_h.nextn_predict_layers", 1)
        for key, more in (("attention.head_count_kv", 2), ("feed_forward_length", 40)):
            name = f"nemotron_h.{key}"
            old = writer.kv_data[0][name].value
            later("array", name, [*old, more])(writer)
        writer.add_tensor("blk.4.nextn.enorm.weight", np.ones(32, np.float32))

    layout = recognise(open_checkpoint(hybrid(NEMOTRON, change)))
    assert layout.n_blocks == 4


def test_a_tensor_with_a_scale_beside_it(tmp_path):
    """Assert that NVFP4's scale of a whole tensor is multiplied in, in fp64."""
    plain = mamba_tensors()
    scaled = plain | {"blk.0.ssm_in.scale": np.array([0.3], np.float32)}
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(tensors=scaled))
    layout = recognise(open_checkpoint(path))
    due = plain["blk.0.ssm_in.weight"] * np.float64(np.float32(0.3))
    assert np.array_equal(layout.layer(0)["in_proj"], due)
    rows = layout.checkpoint.read_rows("backbone.layers.0.mixer.in_proj.weight", 3, 5)
    assert np.array_equal(rows, due[3:5])
    scaled["blk.0.ssm_in.scale"] = np.array([0.3, 0.2], np.float32)
    path.write_bytes(model_bytes(tensors=scaled))
    with pytest.raises(LyapunovError, match=r"blk\.0\.ssm_in\.scale"):
        open_checkpoint(path)
