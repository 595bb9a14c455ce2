"""A safetensors file that lies is refused before memory is taken."""

import os
import struct

import pytest

from lyapunov._errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from lyapunov.checkpoints import open_checkpoint

from .crafted import entry, safetensors_bytes


# Python 3.12 reads some thousands of levels, 3.11 no thousand.
DEEP = 100_000


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1, -1000])
def test_truncated_safetensors(refused, saved, keep):
    """Assert that a file cut off anywhere is called corrupt."""
    _, folder = saved()
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    refused(folder, CorruptCheckpointError, "model.safetensors")


def test_bytes_behind_the_end(refused, saved):
    """Assert that bytes that the header does not account for are noticed."""
    _, folder = saved()
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"\0" * 3)
    refused(folder, CorruptCheckpointError, "3 bytes too many")


@pytest.mark.parametrize("claim", [2**40, 2**62, 2**64 - 1])
def test_header_that_claims_terabytes(refused, saved, claim, peak_memory):
    """Assert that a header longer than the file takes no memory."""
    _, folder = saved()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", claim) + path.read_bytes()[8:])
    with peak_memory(2**20):
        refused(folder, CorruptCheckpointError, "claims a header of")


def test_tensor_that_claims_terabytes(refused, saved, peak_memory):
    """Assert that a shape of terabytes in a small file takes no memory."""
    _, folder = saved()
    huge = {"backbone.embeddings.weight": entry(shape=(2**40,), offsets=(0, 2**42))}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(huge, b"\0" * 64))
    with peak_memory(2**20):
        refused(folder, CorruptCheckpointError, "missing")


def test_sparse_file_of_terabytes(refused, saved, set_config, peak_memory):
    """Assert that a file that truly has a terabyte of holes takes no memory."""
    _, folder = saved()
    n = 2**38
    header = safetensors_bytes({"backbone.x": entry(shape=(n,), offsets=(0, 4 * n))})
    path = folder / "model.safetensors"
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + 4 * n)
    except OSError:
        pytest.skip("no sparse files of this size here")
    with peak_memory(2**20):
        refused(folder, CorruptCheckpointError)
        with pytest.raises(CheckpointError, match="more than this machine's memory"):
            open_checkpoint(folder).read("backbone.x")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"[1, 2]", "a JSON list"),
        (b"{nonsense}", "not valid JSON"),
        (b'{"a": \xff}', "not valid JSON"),
        pytest.param(
            b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply", id="deep"
        ),
        (b'{"a":{},"a":{}}', "stands twice"),
        ({"a": 3}, "not described"),
        ({"a": {}}, "no dtype"),
        ({"a": entry(shape=(-2,))}, "shape"),
        ({"a": entry(shape=(2.0,))}, "shape"),
        ({"a": entry(shape=(True,))}, "shape"),
        ({"a": entry(shape=(1,) * 99)}, "shape"),
        ({"a": entry(shape=(2**60,))}, "shape"),
        ({"a": entry(shape=(3,))}, "takes 12 bytes"),
        ({"a": entry(offsets=(8, 0))}, "data_offsets"),
        ({"a": entry(offsets=(-8, 0))}, "data_offsets"),
        ({"a": entry(offsets=(0, 2**70))}, "data_offsets"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "overlaps"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(offsets=(4, 12))}, "gap"),
    ],
)
def test_lying_safetensors_headers(refused, saved, header, word):
    """Assert that each lie in a header is named."""
    _, folder = saved()
    data = safetensors_bytes(header, b"\0" * 8)
    (folder / "model.safetensors").write_bytes(data)
    refused(folder, CorruptCheckpointError, word, hint=False)


def test_unknown_storage_type(refused, saved):
    """Assert that a type that is not covered is named."""
    _, folder = saved()
    data = safetensors_bytes({"a": entry(dtype="F4")}, b"\0" * 8)
    (folder / "model.safetensors").write_bytes(data)
    refused(folder, UnsupportedCheckpointError, "F4")
