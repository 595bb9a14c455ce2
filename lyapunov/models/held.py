"""Parameters as an execution holds them."""

import jax
import numpy as np

from ..checkpoints.files._tensors import DTYPES, WEIGHT_DTYPES
from ..formats import Format, format_named, round_to


_STORED = {DTYPES[name]: format_named(name) for name in WEIGHT_DTYPES}

_round_to = jax.jit(round_to)


def held(raw: np.ndarray, name: str, formats) -> np.ndarray:
    """A stored parameter in fp64, rounded to the format that `formats` names.

    Checkpoints store at most fp32, so one cast rounds once; fp64 goes the long way,
    because the casts of ml_dtypes pass through fp32.
    """
    if formats is None or keeps(raw, formats.parameter_format(name)):
        return raw.astype(np.float64)
    return rounded(raw, formats.parameter_format(name))


def keeps(raw: np.ndarray, fmt: Format) -> bool:
    """Tell whether rounding to a format changes no number of a stored array's type."""
    return fmt.holds(_STORED[raw.dtype])


def rounded(raw: np.ndarray, fmt: Format) -> np.ndarray:
    """Round a stored array to a format, to nearest even, and widen it to fp64."""
    if raw.dtype == np.float64 or fmt.name not in DTYPES:
        return np.asarray(_round_to(raw.astype(np.float64), fmt.numbers()))
    with np.errstate(over="ignore"):
        return raw.astype(np.float32).astype(DTYPES[fmt.name]).astype(np.float64)
