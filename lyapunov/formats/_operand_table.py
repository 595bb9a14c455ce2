"""Formats of what products of matrices read, as plain data.

Apart from `_operand` so that the command's options can name them without JAX.
"""

import math
from typing import Any, NamedTuple

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

UNQUANTISED = "none"
AS_CONFIGURED = "config"
OPERAND_FORMATS_TOLD = ", ".join([*DYNAMIC, *(f"{name}=SCALE" for name in STATIC)])

ACTIVATIONS_TOLD = f"{OPERAND_FORMATS_TOLD}, {AS_CONFIGURED}, {UNQUANTISED}"
"""What executions may be asked for: a format, what the checkpoint's configuration has,
or none at all."""


def check_activations(name: str) -> None:
    """Look at what executions are asked to quantise activations to.

    **Raises:** `UsageError` that lists the names.
    """
    if name not in (AS_CONFIGURED, UNQUANTISED):
        parse_operand(name)


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
        hint=f"one of {ACTIVATIONS_TOLD}",
    )


def operand_format_of(activations: dict[str, Any]) -> str | None:
    """Name the format that a checkpoint's config asks for; None where it asks for none.

    **Arguments:**

    - `activations`: `input_activations` of a group in compressed-tensors' config, with
      `num_bits`, `type`, `strategy`, `dynamic` and `group_size`. Static scales are of
      each module: the name ends in `=`, for the scale to follow.

    **Raises:** `UsageError` for what no format here is.
    """
    if not activations:
        return None
    asked = tuple(
        activations.get(key, other)
        for key, other in (("type", "int"), ("num_bits", 8), ("strategy", "tensor"))
    )
    dynamic = activations.get("dynamic", False) is True
    size = activations.get("group_size")
    known = {
        ("float", 8, "token", None, True): "fp8_e4m3-token",
        ("int", 8, "token", None, True): "int8-token",
        ("float", 8, "group", 128, True): "fp8_e4m3-group128",
        ("float", 8, "tensor", None, False): "fp8_e4m3-static=",
        ("float", 4, "tensor_group", 16, False): "nvfp4=",
    }
    # zero points would move the codes' range
    symmetric = activations.get("symmetric", True)
    found = known.get((*asked, size, dynamic))
    if found is None or symmetric is not True:
        told = ", ".join(f"{key} {value!r}" for key, value in activations.items())
        raise UsageError(
            f"activations quantised so are not covered: {told}",
            hint=f"known are {OPERAND_FORMATS_TOLD}",
        )
    return found
