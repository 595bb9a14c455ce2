"""The numbers of the floating-point formats, as plain data.

Apart from `formats` so that the command's options and the findings can name a format
without waiting for JAX.
"""

from typing import NamedTuple


class FormatRow(NamedTuple):
    """One format: `significand_bits` counts the hidden bit, `min_exponent` is the
    exponent of the smallest normal number, `overflow` what a value beyond the
    largest becomes."""

    name: str
    significand_bits: int
    min_exponent: int
    largest: float
    overflow: float = float("inf")


# fp8: the OCP formats as ml_dtypes names them (e4m3fn has no infinity).
FORMAT_TABLE = {
    row.name: row
    for row in (
        FormatRow("fp64", 53, -1022, 1.7976931348623157e308),
        FormatRow("fp32", 24, -126, 3.4028234663852886e38),
        FormatRow("tf32", 11, -126, 3.4011621342146535e38),
        FormatRow("bf16", 8, -126, 3.3895313892515355e38),
        FormatRow("fp16", 11, -14, 65504.0),
        FormatRow("fp8_e4m3", 4, -6, 448.0, float("nan")),
        FormatRow("fp8_e5m2", 3, -14, 57344.0),
    )
}

PRECISIONS = (
    *("bf16", "fp16", "fp32"),
    *("bf16-cast", "fp16-cast", "bf16-amp", "fp16-amp"),
)
"""What executions run in: with A_log and D cast as well, or under autocast."""

# Whole multiples of a scale, held in a state's cache alone. As a floating-point format:
# numbers up to the largest are a spacing of 1 apart, and beyond it stays the largest.
INTEGER_TABLE = {
    row.name: row
    for row in (
        FormatRow("int8", 7, 6, 127.0, 127.0),
        FormatRow("int16", 15, 14, 32767.0, 32767.0),
    )
}

STATE_VARIANTS = ("", "-scaled", "-stochastic", "-scaled-stochastic")
STATE_PRECISIONS = (
    "fp32",
    *(
        name + variant
        for name in ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2")
        for variant in STATE_VARIANTS
    ),
    *(
        name + variant
        for name in INTEGER_TABLE
        for variant in STATE_VARIANTS
        if "-scaled" in variant
    ),
)
"""Formats of a cached state: with one scale a channel, rounded stochastically."""

STATE_PRECISIONS_TOLD = (
    "fp32, bf16, fp16, fp8_e4m3 or fp8_e5m2, all but fp32 also with -scaled, "
    "-stochastic or both; int8 or int16 with -scaled or with both"
)
"""The same in words."""


NARROW_RANGE = 2.0**16
"""Formats whose largest value is below have a range that a model can leave; the
others reach 1e38."""


def half_step_below_one(name: str) -> float:
    """Half the spacing below 1: a decay closer to 1 than this rounds to 1.

    **Raises:** `KeyError` for an unknown format.
    """
    return 2.0 ** -(FORMAT_TABLE[name].significand_bits + 1)
