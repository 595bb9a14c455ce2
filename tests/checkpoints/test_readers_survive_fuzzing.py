"""Whatever the bytes are, a reader answers with the tensors or with a clear error."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from lyapunov._errors import LyapunovError
from lyapunov.checkpoints.files._file_formats import read_tensors
from lyapunov.checkpoints.files._pickle import read_pickle


MEMORY = 16 * 2**20
fuzzing = settings(
    max_examples=250,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def survive(path, content):
    """Read every tensor of a file; nothing but a `LyapunovError` may come out."""
    path.write_bytes(content)
    message = "read"
    tracemalloc.start()
    try:
        for tensor in read_tensors(path).values():
            array = tensor.read()
            assert array.shape == tensor.shape
            # nothing is made up: elements cannot outnumber the bytes of the file
            assert array.nbytes <= len(content)
            if tensor.shape and tensor.shape[0]:
                assert tensor.read_rows(np.array([0])).tobytes() == array[:1].tobytes()
    except LyapunovError as e:
        message = e.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert message
    assert "\n" not in message
    return message


@st.composite
def mutations(draw, content):
    """A valid file with bytes changed, cut out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        n = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1024]))
        kind = draw(st.sampled_from(["set", "cut", "double", "insert", "end"]))
        if kind == "set":
            new = draw(st.binary(min_size=1, max_size=8))
            changed[at : at + len(new)] = new
        elif kind == "cut":
            del changed[at : at + n]
        elif kind == "double":
            changed[at:at] = changed[at : at + n]
        elif kind == "insert":
            changed[at:at] = draw(st.binary(max_size=16))
        else:
            del changed[at:]
    return bytes(changed)


def valid_safetensors() -> bytes:
    from safetensors.numpy import save

    return save(
        {
            "w": np.arange(12, dtype=np.float32).reshape(3, 4),
            "h": np.ones(5, np.float16),
            "e": np.zeros((0, 3), np.int64),
        }
    )


def valid_archive() -> bytes:
    import torch

    file = io.BytesIO()
    base = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {"w": base, "t": base.t(), "b": torch.ones(3, dtype=torch.bfloat16)}, file
    )
    return file.getvalue()


SAFETENSORS, ARCHIVE = valid_safetensors(), valid_archive()
with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as _archive:
    (_PICKLE_NAME,) = [n for n in _archive.namelist() if n.endswith("data.pkl")]
    MEMBERS = {name: _archive.read(name) for name in _archive.namelist()}
PICKLE = MEMBERS[_PICKLE_NAME]


def with_pickle(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (MEMBERS | {_PICKLE_NAME: data}).items():
            archive.writestr(name, content)
    return file.getvalue()


@fuzzing
@given(st.binary(max_size=300))
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x"])
def test_arbitrary_bytes(tmp_path, name, content):
    """Assert that arbitrary bytes give an error, under any suffix."""
    survive(tmp_path / name, content)


@fuzzing
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.booleans())
def test_arbitrary_safetensors_headers(tmp_path, content, length, honest):
    """Assert that arbitrary bytes behind a plausible start give an error."""
    n = len(content) + 1 if honest else length
    survive(tmp_path / "x.safetensors", struct.pack("<Q", n) + b"{" + content)


@fuzzing
@given(st.data())
def test_mutated_safetensors(tmp_path, data):
    """Assert that a damaged safetensors file is read within its bytes or refused."""
    survive(tmp_path / "x.safetensors", data.draw(mutations(SAFETENSORS)))


numbers = st.one_of(
    st.integers(-2, 20), st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**400])
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.floats(allow_nan=False), st.text(max_size=3)
)
jsons = st.recursive(scalars, lambda x: st.lists(x, max_size=3), max_leaves=4)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4"]), jsons),
        "shape": st.one_of(st.lists(numbers, max_size=4), jsons),
        "data_offsets": st.one_of(st.lists(numbers, min_size=2, max_size=2), jsons),
    },
)


@fuzzing
@given(
    st.dictionaries(st.text(max_size=3), st.one_of(entries, jsons), max_size=4),
    st.binary(max_size=40),
)
def test_lying_safetensors_headers(tmp_path, header, body):
    """Assert that headers of the right form and wrong numbers are refused."""
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + body
    survive(tmp_path / "x.safetensors", content)


@fuzzing
@given(st.data())
def test_mutated_archives(tmp_path, data):
    """Assert that a damaged archive is read within its bytes or refused."""
    survive(tmp_path / "x.bin", data.draw(mutations(ARCHIVE)))


@fuzzing
@given(st.data())
def test_mutated_pickles(tmp_path, data):
    """Assert that a damaged pickle in a sound archive is refused or harmless."""
    survive(tmp_path / "x.bin", with_pickle(data.draw(mutations(PICKLE))))


def fragment(value) -> bytes:
    """The opcodes that push a value, without start and end."""
    return pickle.dumps(value, 2)[2:-1]


sizes = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, -(2**40), 2**62, 2**70]))
lengths = st.one_of(st.lists(sizes, max_size=4).map(tuple), sizes, st.just((1,) * 40))


@fuzzing
@given(st.sampled_from(["0", "1", "../x", "9"]), sizes, sizes, lengths, lengths)
def test_lying_tensor_descriptions(tmp_path, key, count, offset, shape, strides):
    """Assert that no offset, shape or stride reaches outside of a storage."""
    program = b"".join(
        [
            b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n",
            fragment(key) + fragment("cpu") + fragment(count) + b"tQ",
            fragment(offset) + fragment(shape) + fragment(strides),
            b"\x89ccollections\nOrderedDict\n)RtRs.",
        ]
    )
    survive(tmp_path / "x.bin", with_pickle(program))


opcodes = st.one_of(
    st.sampled_from([code.encode("latin-1") for code in "()]}NtsueabR.Qhqrjc0122oi"]),
    st.integers(0, 255).map(lambda n: bytes([n])),
    st.integers(0, 3).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.text(max_size=2).map(lambda t: pickle.dumps(t, 2)[2:-3]),
    st.sampled_from(
        [
            b"\x85",
            b"\x86",
            b"\x87",
            b"\x88",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._utils\n_rebuild_parameter\n",
            b"ctorch\nFloatStorage\n",
            b"ccollections\nOrderedDict\n",
            b"cos\nsystem\n",
            b"X\x07\x00\x00\x00storage",
            b"X\x01\x00\x00\x000",
        ]
    ),
)


@fuzzing
@given(st.lists(opcodes, max_size=60))
@example([b"}", b"X\x01\x00\x00\x00a", b"h\x00"])
def test_random_programs(ops):
    """Assert that the interpreter ends, in little memory, on any program."""
    program = b"\x80\x02" + b"".join(ops) + b"."
    tracemalloc.start()
    try:
        read_pickle(program, "x")
    except LyapunovError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def as_bytes(tensor) -> bytes:
    import torch

    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    return flat.copy_(tensor.reshape(-1)).view(torch.uint8).numpy().tobytes()


@fuzzing
@given(st.data())
def test_readers_agree_with_torch(tmp_path, data):
    """Assert that any view that torch saves is read as torch reads it."""
    import torch

    state = {}
    for k in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        dtype = data.draw(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])
        )
        tensor = torch.randint(0, 100, shape).to(dtype)
        if tensor.ndim:
            axes = data.draw(st.permutations(range(tensor.ndim)))
            tensor = tensor.permute(axes)
            step = data.draw(st.integers(1, 3))
            start = data.draw(st.integers(0, tensor.shape[0]))
            tensor = tensor[start::step]
        state[f"t{k}"] = tensor
    path = tmp_path / "x.bin"
    torch.save(state, path)
    expected = torch.load(path, weights_only=True)
    found = read_tensors(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        array = found[name].read()
        assert array.shape == tuple(tensor.shape)
        assert array.tobytes() == as_bytes(tensor)
