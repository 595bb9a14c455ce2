"""What a check says of a model in GGUF, from the file to the report."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.command._scripts import place_of
from lyapunov.implementations._stacks import as_served, asked_of
from oracles.checkpoints.llama_cpp.cases import CASES
from oracles.checkpoints.llama_cpp.files import in_blocks, written
from oracles.checkpoints.transformers import make, save

from .crafted import mamba_keys, mamba_tensors, model_bytes, number


gguf = pytest.importorskip("gguf", reason="writes the files")

TOKENS = np.random.default_rng(7).integers(0, 50, 24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model in GGUF with blocks of Q8_0, and the checkpoint that it is of."""
    folder = tmp_path_factory.mktemp("gguf")
    network = make("mamba2", **CASES["mamba2"][1])
    quantised = written(network, folder / "model.gguf", in_blocks("Q8_0"))
    return quantised, save(network, folder / "original")


def test_a_whole_check(files):
    """Assert bounds that hold, the table of what is stored how, the assumptions, and
    the distance to the original."""
    quantised, original = files
    report = lyapunov.check(
        quantised, TOKENS, precisions="bf16", against=original, growth=False
    )
    (one,) = report.precisions
    assert one.count("violations") == 0
    assert one.count("elements_total") > 0
    facts = report.checkpoint.quantisation
    assert facts is not None
    assert facts.method == "gguf"
    stored = {
        (row.kind, row.matrix): (row.format, row.scales) for row in facts.matrices
    }
    blocks = "Q8_0", "blocks of 32"
    assert stored["mamba2", "in_proj"] == stored["outside", "head"] == blocks
    assert (
        stored["mamba2", "conv_weight"] == stored["mamba2", "vectors"] == ("fp32", None)
    )
    sizes = sum(row.parameters for row in facts.matrices)
    assert sizes == report.checkpoint.n_params
    whole = " ".join(report.assumptions)
    for words in ("llama.cpp computes", "A_log is its logarithm", "blocks (Q8_0)"):
        assert words in whole
    assert "8-bit blocks, by llama.cpp" in whole
    (change,) = report.parameter_changes
    # rows of 32 codes of at most 127: half a step of their largest
    moved = [row.weights["in_proj"] for row in change.layers]
    assert all(1e-3 < one < 1e-2 for one in moved)
    assert report.to_dict()["checkpoint"]["quantisation"]["method"] == "gguf"


def test_a_file_without_blocks(tmp_path):
    """Assert that plain types are no quantisation, and that assumptions are said."""
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes())
    report = lyapunov.check(path, [0, 1, 2, 3, 4, 5], measure="none")
    assert report.checkpoint.quantisation is None
    assert report.checkpoint.dtype == "fp32"
    assert any("llama.cpp computes" in one for one in report.assumptions)


def test_another_epsilon_is_another_model(tmp_path):
    """Assert that settings of the metadata reach the network, as fp32 numbers."""
    path = tmp_path / "model.gguf"
    name = "mamba.attention.layer_norm_rms_epsilon"
    path.write_bytes(model_bytes(mamba_keys(epsilon=number(name, 0.1, "f"))))
    config = lyapunov.load(path).config
    assert config.norm_epsilon == float(np.float32(0.1))
    assert config.sublayers[0].norm_epsilon == config.norm_epsilon


def test_servers_that_load_none(files):
    """Assert that what is said of vLLM is said to be of the original."""
    quantised, original = files
    for path, due in ((quantised, True), (original, False)):
        (served, *_) = as_served(asked_of(lyapunov.load(path).layout), "bf16", [])
        assert served.stack == "vLLM"
        assert any("loads no GGUF" in note for note in served.notes) == due


def test_transformers_is_given_no_file(files):
    """Assert that transformers' runs, and scripts for it, are refused and say why."""
    quantised, _ = files
    with pytest.raises(UsageError, match="GGUF file"):
        lyapunov.check(quantised, TOKENS, precisions="bf16", measure="transformers")
    with pytest.raises(UsageError, match="transformers' layout"):
        place_of(lyapunov.load(quantised))


def test_transformers_runs_mamba1_of_a_file(tmp_path):
    """Assert that a network that is built of weights is run on those of a file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes(tensors=mamba_tensors()))
    report = lyapunov.check(
        path, [0, 1, 2, 3, 4, 5], precisions="bf16", measure="transformers",
        growth=False,
    )  # fmt: skip
    assert report.precisions[0].count("violations") == 0
