"""A GGUF file that lies, or is cut off, is refused before memory is taken."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lyapunov._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    LyapunovError,
    UnsupportedCheckpointError,
    UsageError,
)
from lyapunov.checkpoints import open_checkpoint, recognise
from lyapunov.checkpoints.gguf._header import Skipped, read_header
from lyapunov.checkpoints.gguf._tensors import GgufTensor

from .crafted import (
    described,
    file_bytes,
    flag,
    mamba_keys,
    mamba_tensors,
    model_bytes,
    number,
    numbers,
    text,
    word,
    words,
)


@pytest.fixture
def model(tmp_path):
    """A function that writes bytes to model.gguf."""

    def write(data: bytes):
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def test_the_crafted_file_is_a_model(model):
    """Assert that what the tests below damage is read as it is."""
    path = model(model_bytes())
    layout = recognise(open_checkpoint(path))
    assert layout.architecture == "mamba1"
    assert np.array_equal(layout.layer(0)["D"], mamba_tensors()["blk.0.ssm_d"])


def test_truncated_anywhere(refused, model, peak_memory):
    """Assert that a file cut off at any byte is called corrupt, in little memory."""
    whole = model_bytes()
    end = whole.rindex(np.float32(mamba_tensors()["blk.0.ssm_out.weight"]).tobytes())
    cuts = [*range(0, 120), *range(120, end, 97), end, len(whole) - 32]
    with peak_memory(2**22):
        for cut in cuts:
            refused(model(whole[:cut]), CorruptCheckpointError, "model.gguf")


@pytest.mark.parametrize("claim", [2**20 + 1, 2**40, 2**60, 2**64 - 1])
@pytest.mark.parametrize("which", ["n_tensors", "n_keys"])
def test_counts_that_lie(refused, model, peak_memory, which, claim):
    """Assert that no memory is taken for tensors and keys that cannot be there."""
    path = model(model_bytes(**{which: claim}))
    with peak_memory(2**22):
        refused(path, CorruptCheckpointError, "claims")


@pytest.mark.parametrize("which", ["n_tensors", "n_keys"])
def test_plausible_counts_in_a_small_file(refused, model, peak_memory, which):
    """Assert that a count is held to what is left of the file."""
    path = model(model_bytes(**{which: 50_000}))
    with peak_memory(2**22):
        refused(path, CorruptCheckpointError, "left of the file")


LENGTH = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("keys", "words_told"),
    [
        ([LENGTH + b"key"], "a key claims"),
        ([text("a" * 70_000)], "a key claims"),
        ([text("a") + struct.pack("<I", 8) + LENGTH], "left of the file"),
        ([numbers("a", [], claim=2**62)], "elements"),
        ([numbers("a", [], claim=2**20)], "left of the file"),
        ([words("a", [], claim=2**62)], "elements"),
        ([words("a", [], claim=2**20)], "left of the file"),
        ([words("a", ["b"], claim=20)], "left of the file"),
        ([text("a") + struct.pack("<I", 13)], "type 13"),
        ([text("a") + struct.pack("<IIQ", 9, 9, 1)], "elements of type 9"),
        ([text("a") + struct.pack("<IIQ", 9, 99, 1)], "elements of type 99"),
        ([flag("a", 2)], "not true or false"),
        ([number("a", 1), number("a", 1)], "twice"),
        ([text(b"\xff\xfe") + struct.pack("<II", 4, 0)], "not UTF-8"),
        ([number("general.alignment", 0)], "no power of 2"),
        ([number("general.alignment", 24)], "no power of 2"),
        ([number("general.alignment", 2**31)], "no power of 2"),
        ([word("general.alignment", "32")], "no power of 2"),
    ],
)
def test_keys_that_lie(refused, model, peak_memory, keys, words_told):
    """Assert a clear line, in little memory, for what no key can be."""
    path = model(file_bytes(keys, [], b"\0" * 64))
    with peak_memory(2**22):
        refused(path, CorruptCheckpointError, words_told)


@pytest.mark.parametrize(
    ("tensors", "error", "words_told"),
    [
        ([LENGTH + b"name"], CorruptCheckpointError, "claims"),
        ([described("a", (4,), axes=5)], CorruptCheckpointError, "5 axes"),
        ([described("a", (4,), axes=2**31)], CorruptCheckpointError, "axes"),
        ([described("a", (0,))], CorruptCheckpointError, "not plausible"),
        ([described("a", (2**63,))], CorruptCheckpointError, "not plausible"),
        ([described("a", (2**30, 2**30))], CorruptCheckpointError, "not plausible"),
        ([described("a", (2**40,))], CorruptCheckpointError, "ends at byte"),
        ([described("a", (4,), offset=2**62)], CorruptCheckpointError, "ends at byte"),
        ([described("a", (4,), offset=5)], CorruptCheckpointError, "multiple of 32"),
        ([described("a", (4,), offset=32)], CorruptCheckpointError, "gap"),
        (
            [described("a", (16,)), described("b", (4,), offset=32)],
            CorruptCheckpointError,
            "overlaps",
        ),
        (
            [described("a", (4,)), described("b", (4,))],
            CorruptCheckpointError,
            "overlaps",
        ),
        (
            [described("a", (4,)), described("a", (4,), offset=32)],
            CorruptCheckpointError,
            "twice",
        ),
        ([described("a", (32,), 4)], UnsupportedCheckpointError, "type 4"),
        ([described("a", (32,), 99)], UnsupportedCheckpointError, "type 99"),
        ([described("a", (33,), 8)], CorruptCheckpointError, "blocks of 32 (Q8_0)"),
        ([described("a", (128,), 12)], CorruptCheckpointError, "blocks of 256 (Q4_K)"),
    ],
)
def test_tensors_that_lie(refused, model, peak_memory, tensors, error, words_told):
    """Assert a clear line, in little memory, for what no tensor can be."""
    path = model(file_bytes([], tensors, b"\0" * 96))
    with peak_memory(2**22):
        refused(path, error, words_told)


@pytest.mark.parametrize(
    ("others", "error", "words_told"),
    [
        ({"version": 1}, UnsupportedCheckpointError, "version 1"),
        ({"version": 4}, UnsupportedCheckpointError, "version 4"),
        ({"version": 3 << 24}, UnsupportedCheckpointError, "big-endian"),
        ({"version": 0}, UnsupportedCheckpointError, "version 0"),
        ({"magic": b"ggml"}, UnsupportedCheckpointError, "not a file of weights"),
        ({"magic": b"<htm"}, UnsupportedCheckpointError, "not a file of weights"),
    ],
)
def test_files_of_another_kind(refused, model, others, error, words_told):
    """Assert that versions, byte orders and other files are called what they are."""
    refused(model(model_bytes(**others)), error, words_told)


def test_what_a_download_leaves(refused, model):
    """Assert that pointers and web pages are called that under a GGUF's name."""
    refused(model(b"version https://git-lfs.github.com"), CheckpointError, "Git LFS")
    refused(model(b"<!DOCTYPE html>"), CorruptCheckpointError, "web page")
    refused(model(b""), CorruptCheckpointError, "0 B are left")


def test_version_2_is_read(model):
    """Assert that the version before, which has the same layout, is read."""
    assert recognise(open_checkpoint(model(model_bytes(version=2)))).n_blocks == 1


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_other_alignments(model, alignment):
    """Assert that tensors are found where the file's own alignment puts them."""
    own = number("general.alignment", alignment)
    path = model(model_bytes(mamba_keys(own=own), alignment=alignment))
    found = recognise(open_checkpoint(path)).layer(0)["D"]
    assert np.array_equal(found, mamba_tensors()["blk.0.ssm_d"])


def test_a_vocabulary_is_not_kept(model, peak_memory):
    """Assert that 200,000 tokens are counted, and that none of them is held."""
    tokens = [f"token {i}" for i in range(200_000)]
    keys = [
        words("tokenizer.ggml.tokens", tokens),
        numbers("scores", [0.5] * 10_001, "f"),
    ]
    keys.append(word("template", "x" * 5000))
    path = model(file_bytes(keys, []))
    with peak_memory(2**22):
        found = read_header(path).metadata
    assert found["tokenizer.ggml.tokens"] == Skipped(200_000)
    assert found["scores"] == Skipped(10_001)
    assert found["template"] == Skipped(5000)


@pytest.mark.parametrize(
    ("code", "elements", "size"), [(0, 2**38, 2**40), (2, 2**36, 18 * 2**31)]
)
def test_a_sparse_file_of_terabytes(model, peak_memory, code, elements, size):
    """Assert that a tensor that truly is larger than memory, as it is stored or as it
    is read, is refused before it is read."""
    path = model(file_bytes([], [described("a", (2**20, elements // 2**20), code)]))
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no sparse files of this size here")
    (entry,) = read_header(path).tensors
    tensor = GgufTensor.of(path, entry)
    with peak_memory(2**22), pytest.raises(CheckpointError, match="this machine's"):
        tensor.read()
    with peak_memory(2**22), pytest.raises(CheckpointError, match="this machine's"):
        tensor.read_rows(0, tensor.shape[0] - 1)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes(tmp_path_factory, data):
    """Assert that a header with any byte changed is read or refused, never more."""
    whole = bytearray(model_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 1200))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(whole)
    said = ""
    try:
        recognise(open_checkpoint(path))
    except LyapunovError as error:
        said = error.message
    assert "\n" not in said


def test_shards(refused, tmp_path):
    """Assert that a model in two files is read from either, and only whole."""
    tensors = mamba_tensors()
    names = list(tensors)
    parts = [{n: tensors[n] for n in names[:5]}, {n: tensors[n] for n in names[5:]}]
    paths = []
    for i, part in enumerate(parts):
        split = [
            number("split.no", i, "H"),
            number("split.count", 2, "H"),
            number("split.tensors.count", len(tensors), "i"),
        ]
        path = tmp_path / f"tiny-0000{i + 1}-of-00002.gguf"
        path.write_bytes(model_bytes([*split, *(mamba_keys() if i == 0 else [])], part))
        paths.append(path)
    for given_ in (*paths, tmp_path):
        checkpoint = open_checkpoint(given_)
        assert checkpoint.files == tuple(paths)
        assert recognise(checkpoint).n_blocks == 1
    second = paths[1].read_bytes()
    paths[1].write_bytes(second.replace(text("split.no"), text("split.on")))
    refused(paths[0], CorruptCheckpointError, "number 2 says that it is number 0")
    paths[1].unlink()
    for given_ in (paths[0], tmp_path):
        refused(given_, CheckpointNotFoundError, "tiny-00002-of-00002.gguf")


def test_which_file_of_a_folder(refused, tmp_path, saved):
    """Assert one model a folder, and that weights of transformers come first."""
    (tmp_path / "a.gguf").write_bytes(model_bytes())
    assert open_checkpoint(tmp_path).files == (tmp_path / "a.gguf",)
    (tmp_path / "b.gguf").write_bytes(model_bytes())
    refused(tmp_path, UsageError, "2 GGUF files", "a.gguf, b.gguf")
    _, folder = saved()
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert [one.name for one in open_checkpoint(folder).files] == [
        *("config.json", "model.safetensors")
    ]
