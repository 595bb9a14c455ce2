"""Numbers of ggml's blocks against the gguf package and against their definition."""

import sys

import numpy as np
import pytest

from lyapunov._errors import (
    CorruptCheckpointError,
    MissingExtraError,
    UnsupportedCheckpointError,
)
from lyapunov.checkpoints import open_checkpoint
from lyapunov.checkpoints._network import finite
from lyapunov.checkpoints.gguf._header import read_header
from lyapunov.checkpoints.gguf._kinds import BY_PACKAGE, KINDS, OWN, values
from lyapunov.checkpoints.gguf._tensors import GgufTensor

from .crafted import described, file_bytes, mamba_keys, mamba_tensors


gguf = pytest.importorskip("gguf", reason="owns the format")

CODES = {kind.name: code for code, kind in KINDS.items()}


def blocks(kind: str, rows: int = 3, across: int = 2, seed: int = 0) -> np.ndarray:
    """Random blocks whose fp16 scales are all finite: no exponent of ones."""
    size = KINDS[CODES[kind]].bytes
    found = np.random.default_rng(seed).integers(0, 256, (rows, across * size))
    return (found & 0xBB).astype(np.uint8)


def test_sizes_are_the_owner_s():
    """Assert the numbers, names and sizes of all kinds that the package has."""
    theirs = {
        int(code): (code.name, *gguf.GGML_QUANT_SIZES[code])
        for code in gguf.GGMLQuantizationType
    }
    assert {code: tuple(kind) for code, kind in KINDS.items()} == theirs


@pytest.mark.parametrize("kind", ["Q8_0", *BY_PACKAGE])
def test_values_are_the_owner_s(kind):
    """Assert bit for bit what the gguf package makes of random blocks."""
    stored = blocks(kind)
    code = gguf.GGMLQuantizationType[kind]
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(stored, code)
    ours = values(kind, stored, "a tensor")
    assert ours.shape == (3, 2 * KINDS[CODES[kind]].elements)
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    assert ours.tobytes() == theirs.tobytes()


def test_every_kind_that_the_package_reads_is_named():
    """Assert that none that it has learnt is called not covered."""
    theirs = {kind for kind in CODES if kind in OWN or kind in BY_PACKAGE}
    lacking = []
    for kind in set(CODES) - theirs:
        try:
            code = gguf.GGMLQuantizationType[kind]
            gguf.quants.dequantize(blocks(kind), code)
        except NotImplementedError:
            lacking.append(kind)
    assert sorted(lacking) == ["Q1_0", "Q8_1", "Q8_K"]


def test_a_product_of_q8_0_is_exact():
    """Assert q*d in fp64 of every code under scales of all sizes, subnormal ones too:
    19 bits, and no exponent below fp32's."""
    scales = np.array([2**-24, 3 * 2**-24, 2**-14, 1 / 3, -1.5, 65504], np.float16)
    codes = np.arange(-128, 128, dtype=np.int8).reshape(8, 32)
    stored = np.concatenate(
        [
            np.concatenate([np.array([d]).view(np.uint8), q.view(np.uint8)])
            for d in scales
            for q in codes
        ]
    )
    due = scales.astype(np.float64)[:, None, None] * codes.astype(np.float64)
    found = values("Q8_0", stored, "a tensor").astype(np.float64)
    assert np.array_equal(found, due.reshape(-1))


def test_the_package_rounds_q4_k_once():
    """Assert that fp32 values are the definition's in fp64, rounded once: products of
    d, a scale and a code have 21 bits at most, and only the difference rounds."""
    stored = blocks("Q4_K", rows=64, across=1)
    d = stored[:, :2].copy().view("<f2").astype(np.float64)
    least = stored[:, 2:4].copy().view("<f2").astype(np.float64)
    packed, nibbles = stored[:, 4:16].astype(int), stored[:, 16:].reshape(-1, 4, 32)
    low, high, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, both & 15 | low >> 6 << 4], 1)
    mins = np.concatenate([high & 63, both >> 4 | high >> 6 << 4], 1)
    codes = np.stack([nibbles & 15, nibbles >> 4], 2).reshape(-1, 8, 32)
    product = (d * scales)[:, :, None] * codes
    due = product - (least * mins)[:, :, None]
    found = values("Q4_K", stored, "a tensor").reshape(due.shape).astype(np.float64)
    far = np.abs(found - due)
    assert np.array_equal(found, due.astype(np.float32).astype(np.float64))
    assert np.count_nonzero(far) > far.size / 10


def tensor_of(tmp_path, kind, shape, stored):
    """A tensor in a file."""
    path = tmp_path / "model.gguf"
    dims = shape[::-1]
    data = stored.tobytes()
    path.write_bytes(file_bytes([], [described("a", dims, CODES[kind])], data))
    (entry,) = read_header(path).tensors
    return GgufTensor.of(path, entry)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K", "F32"])
@pytest.mark.parametrize("lead", [(7,), (3, 5)])
def test_rows_are_those_of_the_whole(tmp_path, kind, lead):
    """Assert rows by range and by name, of a matrix and of a stack of matrices."""
    size = KINDS[CODES[kind]]
    across = 2 * size.elements
    count = int(np.prod(lead))
    stored = blocks(kind, count) if kind != "F32" else np.zeros((count, 8), np.uint8)
    if kind == "F32":
        stored = np.random.default_rng(1).standard_normal((count, 2)).astype("<f4")
    tensor = tensor_of(tmp_path, kind, (*lead, across), stored)
    whole = tensor.read()
    assert whole.shape == tensor.shape == (*lead, across)
    assert tensor.size == whole.size
    assert np.array_equal(tensor.read_rows(1, 3), whole[1:3])
    rows = np.array([[2, 0], [0, 1]])
    assert np.array_equal(tensor.read_rows(rows), whole[rows])


def quantised(kind: str = "Q8_0", row: int = 32):
    """A model whose ssm_out has rows of whole blocks."""
    tensors = mamba_tensors(**{"blk__0__ssm_out__weight": None})
    told, data = [], b""
    size = KINDS[CODES[kind]]
    stored = blocks(kind, 8, row // size.elements)
    for name, array in tensors.items():
        told.append(described(name, array.shape[::-1], 0, len(data)))
        data += array.tobytes() + b"\0" * (-array.nbytes % 32)
    told.append(described("blk.0.ssm_out.weight", (row, 8), CODES[kind], len(data)))
    return file_bytes(mamba_keys(), told, data + stored.tobytes())


def test_a_scale_that_is_no_number(refused, tmp_path):
    """Assert that NaN in a scale is told, with the tensor's name, when it is read."""
    rng = np.random.default_rng(5)
    tensors = mamba_tensors()
    wide = rng.standard_normal((8, 32)).astype(np.float32)
    stored = gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q8_0)
    stored[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
    told, data = [], b""
    for name, array in tensors.items():
        code = 8 if name == "token_embd.weight" else 0
        own = stored[:6] if code else array
        dims = (32, 6) if code else array.shape[::-1]
        told.append(described(name, dims, code, len(data)))
        data += own.tobytes() + b"\0" * (-own.nbytes % 32)
    path = tmp_path / "model.gguf"
    path.write_bytes(file_bytes(mamba_keys(), told, data))
    refused(path, CorruptCheckpointError, "(6, 32)")  # of another width, so far
    tensor = open_checkpoint(path).tensor("backbone.embeddings.weight")
    with pytest.raises(CorruptCheckpointError, match="32 NaN"):
        finite(tensor.read(), "token_embd.weight")


def test_rows_of_another_length_than_the_model_s(refused, tmp_path):
    """Assert that a quantised matrix of another shape is called that."""
    path = tmp_path / "model.gguf"
    path.write_bytes(quantised())
    refused(path, CorruptCheckpointError, "has shape (8, 32)", "asks for (8, 16)")


def test_without_the_package(tmp_path, monkeypatch, refused):
    """Assert that what needs it says so, and that plain types and Q8_0 do not."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    path = tmp_path / "model.gguf"
    path.write_bytes(quantised(kind="Q4_0"))
    refused(path, MissingExtraError, "Q4_0", "gguf package")
    path.write_bytes(quantised())
    tensor = open_checkpoint(path).tensor("backbone.layers.0.mixer.out_proj.weight")
    assert tensor.read().shape == (8, 32)


@pytest.mark.parametrize("kind", ["Q8_K", "Q8_1", "Q1_0"])
def test_kinds_that_are_not_covered(tmp_path, refused, kind):
    """Assert that what is for activations alone, or too new, is called that."""
    path = tmp_path / "model.gguf"
    path.write_bytes(quantised(kind=kind, row=256))
    refused(path, UnsupportedCheckpointError, kind, "not covered")
