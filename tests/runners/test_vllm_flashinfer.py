"""FlashInfer's step: where headers and compiler are looked for, and what is compiled.

With nvcc, and LYAPUNOV_FLASHINFER_FILES naming a folder with `flashinfer/data/include`
of FlashInfer 0.7.4's wheel, the door is compiled here; it is called on a GPU alone, by
`analysis.vllm_kernels`.
"""

import ctypes
import os
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lyapunov._errors import MissingExtraError, UsageError
from lyapunov.implementations.vllm import _flashinfer
from lyapunov.implementations.vllm._flashinfer import (
    FILES,
    HEADERS,
    STEP,
    FlashInferStep,
    Kernel,
    built,
    compiled,
    headers,
)
from lyapunov.implementations.vllm._nvcc import compiler


PLAIN = Kernel("bfloat16", "bfloat16", 64, 128, False)
NO_CUDA = 'echo "nvcc: $@" >&2; exit 2'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with files in the places of the headers, and one for caches."""
    place = tmp_path / "files" / HEADERS / STEP
    place.parent.mkdir(parents=True)
    place.write_text("// nothing")
    monkeypatch.setenv(FILES, str(tmp_path / "files"))
    monkeypatch.setenv("LYAPUNOV_CACHE", str(tmp_path / "libraries"))
    return tmp_path


def with_compiler(monkeypatch, folder, script: str) -> None:
    """A program called nvcc that runs this in a shell."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_no_headers(monkeypatch):
    monkeypatch.delenv(FILES, raising=False)
    monkeypatch.setattr(_flashinfer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="headers are not here") as error:
        headers()
    assert "pip install flashinfer-python==0.7.4" in error.value.hint
    assert FILES in error.value.hint


def test_headers_of_an_installed_flashinfer(folder, monkeypatch):
    monkeypatch.delenv(FILES)
    places = [str(folder / "files" / "flashinfer")]
    spec = SimpleNamespace(submodule_search_locations=places)
    monkeypatch.setattr(_flashinfer.importlib.util, "find_spec", lambda name: spec)
    assert headers() == folder / "files" / HEADERS


def test_a_folder_without_headers(monkeypatch, tmp_path):
    monkeypatch.setenv(FILES, str(tmp_path))
    with pytest.raises(UsageError, match=f"{FILES} is .*no flashinfer/data/include"):
        headers()


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(MissingExtraError, match="there is no nvcc") as error:
        compiler("this")
    assert "CUDA_HOME" in error.value.hint


def test_what_the_compiler_says_is_told(monkeypatch, folder):
    with_compiler(monkeypatch, folder, NO_CUDA)
    with pytest.raises(
        UsageError, match=r"cannot compile FlashInfer's step:\nnvcc: "
    ) as e:
        built(PLAIN, "sm_90a")
    for option in ("-use_fast_math", "-arch=sm_90a", "-DSTATE=nv_bfloat16"):
        assert option in str(e.value)
    assert not list((folder / "libraries").glob("*.so"))


def test_a_kernel_is_compiled_once(monkeypatch, folder):
    """Assert it for the same options, and that others are another library."""
    count = folder / "count"
    with_compiler(
        monkeypatch,
        folder,
        f'echo >> {count}; while [ "$1" != -o ]; do shift; done; touch "$2"',
    )
    first = built(PLAIN, "sm_90a")
    assert built(PLAIN, "sm_90a") == first
    assert len(count.read_text()) == 1
    others = [
        built(PLAIN, "sm_100a"),
        built(PLAIN._replace(d_state=64), "sm_90a"),
        built(PLAIN._replace(state="float16"), "sm_90a"),
        built(PLAIN._replace(state="float16", stochastic=True), "sm_90a"),
    ]
    assert len({first, *others}) == 5
    assert len(count.read_text()) == 5


def test_integers_have_a_scale_and_seeds_ten_rounds():
    def macros(state, stochastic):
        return PLAIN._replace(state=state, stochastic=stochastic).macros

    assert macros("int16", False)["SCALE"] == "float"
    assert macros("float16", False)["SCALE"] == "void"
    assert macros("float16", False)["ROUNDS"] == 0
    assert macros("float16", True)["ROUNDS"] == 10


def test_rows_of_states_that_a_warp_cannot_share():
    with pytest.raises(UsageError, match="among 32 threads, and this has 16"):
        compiled(PLAIN._replace(d_state=16))


def step(monkeypatch, **changed):
    """What a C door is given of one token of two heads, and the tensors."""
    given = []

    def door(tensors, sizes, stream, message, room):
        given.extend([list(tensors), list(sizes)])
        return 0

    monkeypatch.setattr(_flashinfer, "compiled", lambda kernel: door)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    head = lambda n: torch.arange(2.0 * n).view(2, n)
    tensors = {
        "state": torch.zeros(3, 2, 64, 32),
        "x": head(64)[None],
        "dt": torch.ones(1, 2)[:, :, None].expand(1, 2, 64),
        "A": torch.ones(2)[:, None, None].expand(2, 64, 32),
        "B": torch.ones(1, 1, 32),
        "C": torch.ones(1, 1, 32),
        "D": torch.ones(2)[:, None].expand(2, 64),
        "dt_bias": torch.ones(2)[:, None].expand(2, 64),
        "state_batch_indices": torch.ones(1, dtype=torch.int32),
        "dst_state_batch_indices": torch.full((1,), 2, dtype=torch.int32),
        "out": torch.empty(1, 2, 64),
    } | changed
    step: Any = FlashInferStep()
    step(**tensors)
    return *given, tensors


def test_what_the_door_is_given(monkeypatch):
    """Assert the order that `flashinfer_step.cu` declares; nothing is copied."""
    scale = torch.ones(3, 2, 64)
    pointers, sizes, t = step(monkeypatch, state_scale=scale)
    names = ["state", "state_scale", "x", "dt", "dt_bias", "A", "B", "C", "D", "out"]
    names += ["state_batch_indices", "dst_state_batch_indices"]
    assert [p or 0 for p in pointers] == [*(t[n].data_ptr() for n in names), 0]
    own = (ctypes.c_void_p * 1)(0)
    assert own[0] is None  # an absent tensor is a null pointer
    assert sizes == [128, 2, 32, 32, 128, 2 * 64 * 32, 128, 1, 2, 1, 3, 0]


def test_heads_that_do_not_lie_one_behind_another(monkeypatch):
    with pytest.raises(UsageError, match="lie one behind another"):
        step(monkeypatch, x=torch.zeros(1, 64, 2).transpose(1, 2))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("nvcc") and os.environ.get(FILES)),
    reason=f"there is no nvcc, or {FILES} is not set",
)
@pytest.mark.parametrize("state", ["int16", "float16"])
def test_the_door_can_be_compiled(monkeypatch, tmp_path, state):
    monkeypatch.setenv("LYAPUNOV_CACHE", str(tmp_path))
    made = built(PLAIN._replace(state=state, stochastic=state == "float16"), "sm_90a")
    assert ctypes.CDLL(str(made)).lyapunov_flashinfer_step
