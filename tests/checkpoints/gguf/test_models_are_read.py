"""Models read from GGUF against transformers' logits of what they were written from.

Tolerances are those of two forwards of one network that round differently (`tolerance`
of the oracles). The file's own roundings are among them: each number of it is at most
an exponential, a sum or a product in fp32 of the original's, which moves every
parameter by less than the trials do, per unit.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.llama_cpp.cases import CASES, OTHERS
from oracles.checkpoints.llama_cpp.files import in_blocks, written
from oracles.checkpoints.transformers import logits, make, tolerance

from ...helpers import assert_within


pytest.importorskip("gguf", reason="writes the files")

TOKENS = np.random.default_rng(7).integers(0, 50, 19)


@functools.cache
def network_of(name):
    """The network, its logits, and how far apart two forwards of it may be."""
    family, settings = (CASES | OTHERS)[name]
    network = make(family, **settings)
    return network, logits(network, TOKENS), tolerance(network, TOKENS)


@functools.cache
def file_of(name):
    """The network's file in fp32."""
    folder = Path(tempfile.mkdtemp(prefix="lyapunov-test-"))
    return written(network_of(name)[0], folder / "model.gguf")


@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_file_in_fp32(name):
    """Assert the original's logits, within a tolerance that is not vacuous."""
    _, theirs, allowed = network_of(name)
    model = lyapunov.load(file_of(name))
    assert allowed < 1e-2 * np.abs(theirs).max()
    assert_within(np.asarray(model.logits(TOKENS)), theirs, allowed, name)


def test_bamba_turns_other_pairs_in_a_file():
    """Assert that a file of Bamba is the network whose rows of queries and keys are
    laid out as llama.cpp takes them, and not the original."""
    import copy

    import torch

    network, theirs, allowed = network_of("bamba")
    ours = np.asarray(lyapunov.load(file_of("bamba")).logits(TOKENS))
    assert np.abs(ours - theirs).max() > allowed
    moved = copy.deepcopy(network)
    size = 16
    whole, half = np.arange(size).reshape(2, -1).T.reshape(-1), size // 2
    # as the converter lays a head, then the first half's pairs as transformers does
    order = whole[[*range(0, half, 2), *range(1, half, 2), *range(half, size)]]
    with torch.no_grad():
        for name, rows in moved.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = rows.reshape(-1, size, rows.shape[1])
                rows.copy_(heads[:, order.tolist()].reshape(rows.shape))
    assert_within(ours, logits(moved, TOKENS), allowed, "bamba")


def other_layout(make_them):
    """A change of the writer that takes tensors away and puts others in their place.

    `make_them` is given what the file has, by name, and yields names and arrays; those
    that it pops are gone.
    """

    def change(writer):
        (tensors,) = writer.tensors
        held = {name: one.tensor for name, one in tensors.items()}
        more = list(make_them(held))
        for name in set(tensors) - set(held):
            del tensors[name]
        for name, array in more:
            writer.add_tensor(name, np.ascontiguousarray(array))

    return change


def projections_by_key_head(held):
    """Qwen3-Next's as older converters left them: of each key head its own."""
    for i in (0, 2):
        qkv, z = (held.pop(f"blk.{i}.attn_{one}.weight") for one in ("qkv", "gate"))
        q, k, v = np.split(qkv, [16, 32])
        heads = [one.reshape(2, -1, one.shape[1]) for one in (q, k, v, z)]
        rows = np.concatenate(heads, 1).reshape(-1, qkv.shape[1])
        yield f"blk.{i}.ssm_in.weight", rows


def experts_joined(held):
    """Gate and up of all experts in one tensor, as a switch of the converter does."""
    for i in range(2):
        parts = [held.pop(f"blk.{i}.ffn_{one}_exps.weight") for one in ("gate", "up")]
        yield f"blk.{i}.ffn_gate_up_exps.weight", np.concatenate(parts, 1)


def queries_joined(held):
    """Queries, keys and values in one tensor, as a switch of the converter does."""
    parts = [held.pop(f"blk.1.attn_{one}.weight") for one in "qkv"]
    yield "blk.1.attn_qkv.weight", np.concatenate(parts)


@pytest.mark.parametrize(
    ("name", "make_them"),
    [
        ("qwen3_next", projections_by_key_head),
        ("granitemoehybrid, experts", experts_joined),
        ("granitemoehybrid, experts", queries_joined),
    ],
)
def test_other_layouts_are_the_same_model(name, make_them, tmp_path):
    """Assert bit for bit the logits of the usual layout."""
    network, _, _ = network_of(name)
    path = tmp_path / "model.gguf"
    written(network, path, change=other_layout(make_them))
    ours, due = (lyapunov.load(one).logits(TOKENS) for one in (path, file_of(name)))
    assert np.array_equal(np.asarray(ours), np.asarray(due))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_counts(name, tmp_path):
    """Assert that the tolerance notices any tensor of the file taken wrongly: turned,
    or one number for another where that is all it has."""
    import gguf

    _, theirs, allowed = network_of(name)
    reader = gguf.GGUFReader(file_of(name))
    for tensor in reader.tensors:
        whole = bytearray(file_of(name).read_bytes())
        start = int(tensor.data_offset)
        old = np.array(tensor.data)
        if old.ndim > 1 and old.shape[-1] > 1:
            new = np.flip(old, -1)
        else:
            steps = 0.5 * (np.arange(old.size) % 3).reshape(old.shape)
            new = old * (1 + steps) if tensor.name.endswith("ssm_a") else old + steps
        data = np.ascontiguousarray(new, np.float32).tobytes()
        whole[start : start + len(data)] = data
        path = tmp_path / "changed.gguf"
        path.write_bytes(whole)
        moved = np.asarray(lyapunov.load(path).logits(TOKENS))
        assert np.abs(moved - theirs).max() > allowed, tensor.name


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "MXFP4"])
def test_logits_of_blocks(kind, tmp_path):
    """Assert that a quantised file is the network of its own dequantised weights.

    transformers computes it: the weights in its state are replaced by what the gguf
    package makes of the same blocks.
    """
    import gguf
    import torch

    network = make(*CASES["mamba2"][:1], **CASES["mamba2"][1])
    before = logits(network, TOKENS)
    path = written(network, tmp_path / "model.gguf", in_blocks(kind))
    assert len({one.tensor_type for one in gguf.GGUFReader(path).tensors}) == 2
    code = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            ends = ("in_proj.weight", "out_proj.weight", "lm_head.weight")
            if name.endswith((*ends, "embeddings.weight")):
                blocks = gguf.quants.quantize(parameter.numpy(), code)
                own = gguf.quants.dequantize(blocks, code)
                parameter.copy_(torch.tensor(own))
    theirs, allowed = logits(network, TOKENS), tolerance(network, TOKENS)
    ours = np.asarray(lyapunov.load(path).logits(TOKENS))
    assert_within(ours, theirs, allowed, kind)
    assert np.abs(ours - before).max() > allowed
    assert network.config.hidden_size % 32 == 0


def test_a_file_of_bf16_is_read_as_bf16(tmp_path):
    """Assert that plain types keep their names in the report."""
    network = make(*CASES["mamba"][:1], **CASES["mamba"][1])
    path = written(network, tmp_path / "model.gguf", in_blocks("BF16"))
    assert lyapunov.load(path).layout.dtype == "bf16"


def test_modules_are_called_as_in_transformers():
    """Assert the names that a report shows."""
    modules = lyapunov.load(file_of("mamba2, groups, tied")).layout.modules
    assert modules == ("backbone.layers.0.mixer", "backbone.layers.1.mixer")


def test_transformers_reads_the_same_file(tmp_path):
    """Assert that transformers' own reader of mamba in GGUF makes the same network."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        pytest.skip("transformers does not see the gguf package")
    network = make("mamba", **CASES["mamba, untied"][1])
    path = written(network, tmp_path / "model.gguf", tokens=50)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ours = np.asarray(lyapunov.load(path).logits(TOKENS))
    allowed = tolerance(theirs, TOKENS)
    assert_within(ours, logits(theirs, TOKENS), allowed, "transformers' reader")
