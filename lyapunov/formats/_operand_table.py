"""Formats of what products of matrices read, as plain data.

Apart from `_operand` so that the command's options can name them without JAX.
"""

import math
from typing import NamedTuple

from .._errors import UsageError


class OperandRow(NamedTuple):
    """A format: `columns` share a scale, 0 is the row; no scale is below `least`."""

    element: str
    columns: int
    least: float
    meaning: str


DYNAMIC = {
    "fp8_e4m3-token": OperandRow(
        "fp8_e4m3", 0, 1 / (448 * 512), "e4m3 with one fp32 scale a token"
    ),
    "fp8_e4m3-group128": OperandRow(
        "fp8_e4m3", 128, 1e-10 / 448, "e4m3 with one fp32 scale for 128 columns"
    ),
    "int8-token": OperandRow("int8", 0, 0.0, "int8 with one fp32 scale a token"),
}
"""Whose scales are chosen anew for each token."""

STATIC = {
    "fp8_e4m3-static": OperandRow(
        "fp8_e4m3", 0, 0.0, "e4m3 under one scale, beyond which is clipped"
    ),
    "nvfp4": OperandRow(
        "nvfp4", 16, 0.0, "e2m1 with an e4m3 scale for 16 columns, times a fixed one"
    ),
}
"""Behind `=` stands a number: `input_scale`, or NVFP4's `input_global_scale`."""

OPERAND_FORMATS_TOLD = ", ".join([*DYNAMIC, *(f"{name}=SCALE" for name in STATIC)])


def parse_operand(name: str) -> tuple[OperandRow, float | None]:
    """Read a name, and the number behind `=` where it has one.

    **Raises:** `UsageError` that lists the names.
    """
    if name in DYNAMIC:
        return DYNAMIC[name], None
    kind, equals, text = name.partition("=")
    if kind in STATIC:
        try:
            value = float(text) if equals else math.nan
        except ValueError:
            value = math.nan
        if value > 0 and math.isfinite(value):
            return STATIC[kind], value
        raise UsageError(
            f"activations in {kind} have a scale that is given, not {text!r}",
            hint=f"a positive number, as {kind}=0.05; checkpoints hold one a module",
        )
    raise UsageError(
        f"activations cannot be quantised to {name!r}",
        hint=f"one of {OPERAND_FORMATS_TOLD}",
    )
