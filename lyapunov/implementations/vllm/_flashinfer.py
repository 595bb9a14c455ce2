"""FlashInfer's step (`--mamba-backend flashinfer`), compiled from its headers.

FlashInfer compiles its kernels when they are first called; so does this, with the same
options (`jit/core.py` of 0.7.4: `-use_fast_math` among them), behind a C door of ours.
Compiled libraries stay in a folder of caches. Of FlashInfer's three algorithms the
simple one is run, which it chooses itself for less than two pairs of sequence and head
a multiprocessor; the others add in another order, and draw other bits.
"""

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..._errors import MissingExtraError, UsageError
from .._torch import import_torch
from ._nvcc import library


FILES = "LYAPUNOV_FLASHINFER_FILES"
"""The environment variable that names a folder of unpacked files."""
HEADERS = "flashinfer/data/include"
"""Where headers lie in FlashInfer's wheel."""
STEP = "flashinfer/mamba/selective_state_update.cuh"
INSTALL = (
    f"pip install flashinfer-python==0.7.4; or unpack {HEADERS} of its wheel into a "
    f"folder, and set {FILES} to that"
)
DOOR = Path(__file__).with_name("flashinfer_step.cu")
OPTIONS = (
    *("-std=c++17", "-O3", "-use_fast_math", "-DNDEBUG", "--expt-relaxed-constexpr"),
    *("-DFLASHINFER_ENABLE_F16", "-DFLASHINFER_ENABLE_BF16"),
    *("-shared", "-Xcompiler=-fPIC", "-w"),
)
"""As FlashInfer's own, but for the last line."""
ROUNDS = 10
"""Of Philox, where vLLM is not told otherwise (`ssu_dispatch.py`)."""
LANES = 32
"""Threads that share a row of states."""
NULL_SLOT = 0
"""As of vLLM's caches: nobody's."""


class Kernel(NamedTuple):
    """What is compiled for; torch's names of dtypes."""

    state: str
    activations: str
    head_dim: int
    d_state: int
    stochastic: bool

    @property
    def macros(self) -> dict[str, str | int]:
        """As `flashinfer_step.cu` reads them."""
        return {
            "STATE": TYPES[self.state],
            "INPUT": TYPES[self.activations],
            "SCALE": "float" if self.state == "int16" else "void",
            "HEAD_DIM": self.head_dim,
            "STATES": self.d_state,
            "ROUNDS": ROUNDS if self.stochastic else 0,
        }


TYPES = {
    "float32": "float",
    "float16": "half",
    "bfloat16": "nv_bfloat16",
    "int16": "int16_t",
}


class FlashInferStep:
    """Step a state by one token, as `selective_state_update` of vLLM's does.

    **Arguments:**

    - `stochastic`: whether an fp16 state is rounded so. The seeds are drawn one a call,
      as vLLM draws them, here from a generator of its own.
    """

    def __init__(self, stochastic: bool = False):
        self._stochastic = stochastic
        self._generator: Any = None

    def seed(self, number: int) -> None:
        """Begin to draw anew."""
        self._generator = import_torch().Generator("cuda").manual_seed(number)

    def __call__(
        self,
        state: Any,
        x: Any,
        dt: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any,
        dt_bias: Any,
        *,
        state_batch_indices: Any,
        dst_state_batch_indices: Any,
        out: Any,
        dt_softplus: bool = True,
        state_scale: Any = None,
    ) -> None:
        """Write `out`, and the state in its slots.

        **Arguments:** as of vLLM's, by heads; dt, A, D and dt_bias are the same in all
        of a head.

        - `state_scale`: (slots, heads, head_dim) fp32, of a state in int16.

        **Raises:** `MissingExtraError` without headers or a compiler; `UsageError` for
        sizes and layouts that FlashInfer does not take.
        """
        import torch

        assert dt_softplus, "a step without softplus is not compiled"
        slots, heads, dim, d_state = state.shape
        name = lambda tensor: str(tensor.dtype).removeprefix("torch.")
        run = compiled(Kernel(name(state), name(x), dim, d_state, self._stochastic))
        seed = None
        if self._stochastic:
            if self._generator is None:
                self.seed(0)
            seed = torch.randint(
                0, 2**32, (1,), generator=self._generator, device=state.device
            )
        # one number a head: the kernel knows no strides inside
        bias, skip, rates = (a[:, 0].contiguous() for a in (dt_bias, D, A[..., 0]))
        for own, inside in ((x, (dim, 1)), (out, (dim, 1)), (B, (d_state, 1))):
            _refuse_apart(own.stride()[1:] == inside)
        _refuse_apart(C.stride()[1:] == (d_state, 1) and dt.stride(1) == 1)
        tensors = (state, state_scale, x, dt, bias, rates, B, C, skip, out)
        tensors += (state_batch_indices, dst_state_batch_indices, seed)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        sizes = [tensor.stride(0) for tensor in (x, dt, B, C, out, state)]
        sizes.append(0 if state_scale is None else state_scale.stride(0))
        sizes += [len(x), heads, B.shape[1], slots, NULL_SLOT]
        message = ctypes.create_string_buffer(1024)
        stream = torch.cuda.current_stream(state.device).cuda_stream
        if run(
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.c_void_p(stream),
            message,
            len(message),
        ):
            raise UsageError(
                f"FlashInfer's step failed: {message.value.decode(errors='replace')}",
                hint="leave out --mamba-backend flashinfer",
            )


def _refuse_apart(fits: bool) -> None:
    if not fits:
        raise UsageError(
            "FlashInfer's step reads heads that lie one behind another, and these do "
            "not",
            hint="leave out --mamba-backend flashinfer",
        )


@functools.cache
def compiled(kernel: Kernel) -> Any:
    """The function of the C door, compiled unless a folder of caches has it.

    **Raises:** `MissingExtraError` without headers or a compiler; `UsageError` for
    sizes that FlashInfer does not take, and where the compiler fails.
    """
    if kernel.d_state % LANES:
        raise UsageError(
            f"FlashInfer's step shares a row of states among {LANES} threads, and this "
            f"has {kernel.d_state}",
            hint="leave out --mamba-backend flashinfer",
        )
    major, minor = import_torch().cuda.get_device_capability()
    where = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
    library = ctypes.CDLL(str(built(kernel, where)))
    found = library.lyapunov_flashinfer_step
    found.restype = ctypes.c_int
    found.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_char_p, ctypes.c_int]
    return found


def built(kernel: Kernel, where: str) -> Path:
    """The library of a kernel for an architecture, such as `sm_90a`.

    **Raises:** as `compiled`.
    """
    include = headers()
    macros = (f"-D{name}={value}" for name, value in kernel.macros.items())
    return library(
        "flashinfer-step",
        "FlashInfer's step",
        [DOOR],
        [*OPTIONS, f"-arch={where}", *macros],
        places=[f"-I{include}"],
        read=sorted((include / "flashinfer/mamba").glob("*.cuh")),
        hint=f"headers of FlashInfer 0.7.4 and CUDA 12.8 or later ({INSTALL})",
    )


def headers() -> Path:
    """The folder with FlashInfer's headers.

    **Raises:** `MissingExtraError` where there are none; `UsageError` for a folder that
    has none.
    """
    named = os.environ.get(FILES)
    if named:
        found = Path(named) / HEADERS
        if not (found / STEP).is_file():
            raise UsageError(
                f"{FILES} is {named!r}, where there is no {HEADERS}/{STEP}",
                hint=INSTALL,
            )
        return found
    spec = importlib.util.find_spec("flashinfer")
    for place in (spec and spec.submodule_search_locations) or ():
        found = Path(place).parent / HEADERS
        if (found / STEP).is_file():
            return found
    raise MissingExtraError("FlashInfer's headers are not here", hint=INSTALL)
