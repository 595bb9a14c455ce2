"""What XLA has to be told before it computes anything, for bounds to be bounds.

XLA reads its flags once, when JAX computes for the first time, so that they are set
where `lyapunov` is imported. Two of its liberties give wrong bounds:

- excess precision: a rounding to 16 bit is left out where that seems harmless;
- YNNPACK on CPUs: from jaxlib 0.10.2 on, chains of operations around sums and products
  are handed to it above a certain size, and some come back wrong
  (https://github.com/jax-ml/jax/issues/39103; also fp64 softmax over 1024 tokens).
  Single matrix products are left to it: without it they are Eigen's, whose results
  were wrong at a few elements now and then, for 8 x 512 tokens in three threads
  (compare https://github.com/jax-ml/jax/issues/39741).
"""

import functools
import mmap
import os
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from ._errors import UsageError


EXCESS = "--xla_allow_excess_precision=false"
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
FIRST, KNOWN = (0, 10, 2), (0, 12)
"""jaxlib from FIRST on hands work to YNNPACK. Before KNOWN it has the flag; later ones
are searched for it, since XLA ends the process at a flag that it does not know."""
SCHEDULER = "xla_cpu_scheduler_type"
SOONER = (
    "--xla_disable_hlo_passes=tree_reduction_rewriter",
    "--xla_gpu_autotune_level=0",
)
"""Flags that every jaxlib has."""
LIGHTLY = ("--xla_backend_optimization_level=0",)
EMITTERS, WITHOUT_FLAG = "--xla_cpu_use_fusion_emitters=false", (0, 11)
OPTION = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
"""How XLA's older way to make loops is had: a flag, and later an option, which may be
unknown where a flag may not."""


def flags_needed() -> list[str]:
    """The flags, as this jaxlib takes them."""
    version = _version()
    if version < FIRST or (version >= KNOWN and not _has_flag(YNNPACK)):
        return [EXCESS]
    return [EXCESS, f"--{YNNPACK}=individual_dot"]


@functools.cache
def little_memory() -> dict[str, Any]:
    """Options of `jax.jit` for programs whose parts are independent and large.

    XLA's scheduler for CPUs starts as many of them as it can and so holds all their
    results; without it they come one after another. No number changes.
    """
    if _version() == FIRST or _has_flag(SCHEDULER):
        return {"compiler_options": {SCHEDULER: "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}
    return {}


def compile_sooner(*, lightly: bool = False) -> None:
    """Have XLA compile less, in a process that is the command's own.

    On CPUs every sum along a row would become a tree of two more loops, a third of all
    that is compiled: here they are sums from left to right, in fp64, which `SAFETY` and
    `REFERENCE_SHARE` cover for any order. On GPUs it would try ways to multiply
    matrices for longer than a check of one text runs; and the one that it finds fastest
    may add up in another order next time.

    **Arguments:**

    - `lightly`: without optimising loops, and the older way, which takes a third of the
      time; what is compiled takes four times as long to run.
    """
    names = {flag.partition("=")[0] for flag in _given()}
    older = EMITTERS if FIRST <= _version() < WITHOUT_FLAG else OPTION
    wanted = (*SOONER, *LIGHTLY, older) if lightly else SOONER
    _give([flag for flag in wanted if flag.partition("=")[0] not in names])


def _version() -> tuple[int, ...]:
    parts = metadata.version("jaxlib").split(".")[:3]
    return tuple(int(part) for part in parts if part.isdigit())


def _has_flag(name: str) -> bool:
    found = util.find_spec("jaxlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    for library in folder.glob("*.so"):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(name.encode()) >= 0:
                return True
    return False


def set_flags() -> None:
    """Put the flags into the environment, behind what is there."""
    _give(_missing())


def _given() -> list[str]:
    return os.environ.get("XLA_FLAGS", "").split()


def _missing() -> list[str]:
    given = _given()
    return [flag for flag in flags_needed() if flag not in given]


def _give(flags: list[str]) -> None:
    """Put flags behind what is there, unless JAX has read them."""
    if flags and not _has_computed():
        os.environ["XLA_FLAGS"] = " ".join([*_given(), *flags])


def compiles_lightly() -> bool:
    """Whether XLA compiles without optimising loops here."""
    return set(LIGHTLY) <= set(_given())


def _has_computed() -> bool:
    """Whether JAX has read its flags."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def demand_flags() -> None:
    """Refuse to bound anything where XLA was not told.

    **Raises:** `UsageError` where JAX had computed before `lyapunov` was imported.
    """
    missing = _missing()
    if missing:
        raise UsageError(
            "JAX computed before lyapunov was imported, with compiler settings under "
            "which bounds can be wrong",
            hint="import lyapunov first, or start Python with XLA_FLAGS="
            f"'{' '.join([*_given(), *missing])}'",
        )
