"""How a configuration has what a quantised matrix reads quantised, module by module.

Servers follow it; which formats there are says `formats._operand`. Where a scale is
fixed beforehand the file holds one a matrix:

| layout | tensor beside the matrix | meaning |
|---|---|---|
| compressed-tensors, fp8, ModelOpt: FP8 | input_scale | code times it |
| compressed-tensors NVFP4 | input_global_scale | what the blocks' scales are multiplied by before e4m3 |
| ModelOpt NVFP4 | input_scale | its inverse |

vLLM 0.33 says so of both NVFP4s: "CT stores as divisors, i.e. 1/scale"
(`compressed_tensors_w4a4_nvfp4.py`), and of ModelOpt `input_global_scale_inv` is
1 / input_scale (`modelopt.py`). compressed-tensors 0.20.1 makes it as 448 * 6 over the
largest value (`generate_gparam`).
"""  # noqa: E501

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._errors import CorruptCheckpointError, UsageError
from ...formats._operand_table import operand_format_of
from ..files._files import quote
from ..files._tensors import StoredTensor
from ._settings import count_of, text_of
from ._taken import FLOATS, SAME_PLACE


ALONE = "--quantise-activations none checks the weights alone"


@dataclass(frozen=True)
class Asked:
    """Say how what a matrix reads is to be quantised."""

    words: str
    """As the report has it: `fp8, one scale a token, chosen as it runs`."""
    format: str | None = None
    """The name in `OPERAND_FORMATS_TOLD`, which ends in `=` where a stored scale
    follows; None where none is declared."""
    scale: str | None = None
    """Last part of the stored scale's name, where it is fixed beforehand."""
    inverse: bool = False
    """Whether the number behind `=` is one over what is stored."""


Asking = Callable[[str], Asked | None]
"""From a module's name what is asked of its input; None where nothing is."""


TOKEN = Asked("fp8, one scale a token, chosen as it runs", "fp8_e4m3-token")
INT_TOKEN = Asked("int8, one scale a token, chosen as it runs", "int8-token")
STATIC = Asked(
    "fp8, one scale a tensor, fixed beforehand", "fp8_e4m3-static=", "input_scale"
)
NVFP4 = Asked(
    "fp4, groups of 16, under a scale a tensor fixed beforehand",
    "nvfp4=",
    "input_scale",
    inverse=True,
)


def groups_of(columns: int, element: str = "fp8") -> Asked:
    """Say it of scales for so many columns of a token each, chosen as it runs."""
    known = element == "fp8" and columns == 128
    words = f"{element}, groups of {columns}, chosen as it runs"
    return Asked(words, "fp8_e4m3-group128" if known else None)


def nothing(module: str) -> None:
    """Ask nothing of any module: weights alone are quantised."""
    del module


def of_compressed_tensors(settings: Mapping[str, Any]) -> Asked | None:
    """Read `input_activations` of a group of compressed-tensors; None where empty.

    **Raises:** `CorruptCheckpointError` for settings that are none.
    """
    if not settings:
        return None
    bits = count_of(settings, "num_bits", 8)
    kind = text_of(settings, "type", "int")
    strategy = text_of(settings, "strategy", "tensor")
    size = count_of(settings, "group_size", -1)
    element = f"int{bits}" if kind == "int" else f"fp{bits}"
    each = {
        "tensor": "one scale a tensor",
        "token": "one scale a token",
        "group": f"groups of {size}",
        "tensor_group": f"groups of {size}",
    }.get(strategy, quote(strategy, 20))
    when = "chosen as it runs" if settings.get("dynamic") else "fixed beforehand"
    if settings.get("symmetric", True) is not True:
        each += " with zero points"
    words = f"{element}, {each}, {when}"
    try:
        found = operand_format_of(dict(settings))
    except UsageError:
        return Asked(words)
    scale = {"fp8_e4m3-static=": "input_scale", "nvfp4=": "input_global_scale"}
    if found == "nvfp4=":
        words = NVFP4.words
    return Asked(words, found, scale.get(found or ""))


def stored_scale(
    asked: Asked, module: str, scales: Mapping[str, StoredTensor]
) -> float | None:
    """Read the scale that is fixed for one module, as the file has it, in fp32's
    numbers; None where it is chosen as it runs.

    **Arguments:**

    - `scales`: what is stored for activations, by name.

    **Raises:** `CorruptCheckpointError` where it is missing, not one number, or no
    positive one.
    """
    if asked.scale is None:
        return None
    name = f"{module}.{asked.scale}"
    stored = scales.get(name)
    if stored is None:
        raise CorruptCheckpointError(
            f"no tensor {quote(name)}, under which what {quote(module)} reads is to be"
            f" quantised ({asked.words})",
            hint=f"{SAME_PLACE}; {ALONE}",
        )
    if stored.dtype not in FLOATS or stored.size != 1:
        raise CorruptCheckpointError(
            f"{quote(name)} is stored as {stored.dtype} of shape {stored.shape}; a"
            f" scale of activations is one number in {' or '.join(FLOATS)}",
            hint=f"{SAME_PLACE}; {ALONE}",
        )
    value = float(np.float32(stored.read().reshape(-1)[0]))
    if not (value > 0 and math.isfinite(value)):
        raise CorruptCheckpointError(
            f"{quote(name)} is {value}: activations cannot be divided by it",
            hint=f"calibrate again, on text that reaches every module; {ALONE}",
        )
    return value
