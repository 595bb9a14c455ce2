"""Nothing in a pickle or an archive runs, and none of it takes much memory."""

import os
import pickle
import time
import zipfile

import pytest

from lyapunov._errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

from .crafted import pickled


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickle_that_carries_code(refused, mamba_ssm_saved, tmp_path):
    """Assert that code in a torch archive is named and not run."""
    import torch

    state, folder = mamba_ssm_saved()
    proof = tmp_path / "it-ran"
    torch.save(
        dict(state) | {"x": Evil(f"touch {proof}")}, folder / "pytorch_model.bin"
    )
    e = refused(folder, UnsafeCheckpointError, "posix.system")
    assert "safetensors" in e.hint
    assert not proof.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickle_that_carries_code(refused, mamba_ssm_saved, tmp_path, protocol):
    """Assert that code in a bare pickle is named and not run."""
    _, folder = mamba_ssm_saved()
    proof = tmp_path / "it-ran"
    data = pickle.dumps({"x": Evil(f"touch {proof}")}, protocol=protocol)
    (folder / "pytorch_model.bin").write_bytes(data)
    refused(folder, UnsafeCheckpointError, "posix.system")
    assert not proof.exists()


def test_layout_of_torch_before_1_6(refused, mamba_ssm_saved):
    """Assert that the old layout is named, with the line that converts it."""
    import torch

    state, folder = mamba_ssm_saved()
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    e = refused(folder, UnsupportedCheckpointError, "before 1.6")
    assert "weights_only=True" in e.hint


def test_old_layout_that_carries_code(refused, mamba_ssm_saved, tmp_path):
    """Assert that code is found in the old layout as well."""
    import torch

    state, folder = mamba_ssm_saved()
    proof = tmp_path / "it-ran"
    torch.save(
        dict(state) | {"x": Evil(f"touch {proof}")},
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    refused(folder, UnsafeCheckpointError, "posix.system")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", ""),  # a memo slot of number 2**31
        (b"\x80\x02X\xff\xff\xff\x7fab", "ends too soon"),  # text of 2 GB
        (b"\x80\x04\x8d" + b"\xff" * 8 + b"ab", "ends too soon"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"}.", ""),  # a frame of 2**64
        (b"\x80\x02h\x05.", "recalls"),
        (b"\x80\x02}", "ends too soon"),
        (b"\x80\x09}.", "protocol"),
        (b"\x80\x02)s.", "not there"),
        (b"\x80\x02}))s.", "key of type tuple"),
        (b"\x80\x02t.", "not opened"),
        (b"\x80\x02}(K\x01u.", "without a value"),
        (b"\x80\x02K\x01)R.", "no function"),
        (b"\x80\x02K\x01Q.", "storage"),
        (b"\x80\x02]K\x01b.", "no dict"),
        (b"\x80\x02}K\x01a.", "no list"),
        (b"\x80\x02\xff.", "opcode"),
    ],
)
def test_pickles_that_torch_does_not_write(
    refused, mamba_ssm_saved, data, word, peak_memory
):
    """Assert that odd pickles are refused, in little memory and time."""
    _, folder = mamba_ssm_saved()
    pickled(folder, data)
    with peak_memory(2**20):
        error = CorruptCheckpointError if word else UnsupportedCheckpointError
        refused(folder, error, word)


@pytest.mark.parametrize("data", [b"\x80\x02)\x81.", b"\x80\x02\x82\x01."])
def test_objects_without_a_global(refused, mamba_ssm_saved, data):
    """Assert that objects and extension codes are refused as code."""
    _, folder = mamba_ssm_saved()
    pickled(folder, data)
    refused(folder, UnsafeCheckpointError)


def test_nested_tuples_are_not_hashed(refused, mamba_ssm_saved):
    """Assert that 2**60 shared tuples take no time."""
    _, folder = mamba_ssm_saved()
    data = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    pickled(folder, data)
    start = time.monotonic()
    refused(folder, CorruptCheckpointError, "key of type tuple")
    assert time.monotonic() - start < 2


def test_zip_bomb(refused, mamba_ssm_saved, peak_memory):
    """Assert that compressed members are refused unread."""
    _, folder = mamba_ssm_saved()
    pickled(folder, b"\0" * 2**26, zipfile.ZIP_DEFLATED)
    with peak_memory(2**20):
        refused(folder, UnsupportedCheckpointError, "compressed")


def test_storage_smaller_than_claimed(refused, mamba_ssm_saved):
    """Assert that a tensor that reaches outside of its storage is refused."""
    import torch

    _, folder = mamba_ssm_saved()
    path = folder / "pytorch_model.bin"
    torch.save({"w": torch.zeros(8)}, path)
    good = zipfile.ZipFile(path)
    (name,) = [n for n in good.namelist() if n.endswith("data.pkl")]
    data = good.read(name)
    good.close()
    sizes = data.replace(b"K\x08", b"K\x09")
    assert sizes != data
    for changed in (sizes, data.replace(b"K\x08\x85", b"K\x09\x85")):
        pickled(folder, changed, zipfile.ZIP_STORED, **{"data/0": b"\0" * 32})
        refused(folder, CorruptCheckpointError, "'w'"[1:-1])


def test_zip_that_torch_did_not_write(refused, mamba_ssm_saved):
    """Assert that another archive, an empty one and TorchScript are told apart."""
    _, folder = mamba_ssm_saved()
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.txt", "hello")
    refused(folder, UnsupportedCheckpointError, "no data.pkl")
    pickled(
        folder, b"\x80\x02}.", zipfile.ZIP_STORED, **{"constants.pkl": b"\x80\x02)."}
    )
    refused(folder, UnsupportedCheckpointError, "TorchScript")


@pytest.mark.parametrize("keep", [0, 3, 30, 2000, -1, -100])
def test_truncated_archive(refused, mamba_ssm_saved, keep):
    """Assert that an archive cut off anywhere is called corrupt."""
    _, folder = mamba_ssm_saved()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, CorruptCheckpointError)


def test_no_state_dict(refused, mamba_ssm_saved):
    """Assert that a wrapped state dict or a whole model is named with a remedy."""
    import torch

    state, folder = mamba_ssm_saved()
    path = folder / "pytorch_model.bin"
    torch.save({"model": dict(state), "step": 3}, path)
    refused(folder, UnsupportedCheckpointError, "model, step")
    torch.save(list(state.values()), path)
    refused(folder, UnsupportedCheckpointError, "a list")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(folder, UnsafeCheckpointError, "torch.nn.modules.linear.Linear")
