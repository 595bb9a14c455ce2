"""What hypothesis makes executions of, and how they are held to a bound."""

import math
from functools import partial

import flint
import numpy as np
from hypothesis import settings, strategies as st

from ..helpers import gamma
from .balls import above, arb


together = partial(zip, strict=True)
hard = settings(max_examples=60, deadline=None, derandomize=True)
SIZE = 6
FLUSH = 2.0**-126
# The bound's own arithmetic: at most 64 operations of nonnegative fp64 numbers.
OWN = 1 + gamma(64, 2.0**-53)
# Functions of fp64's library are within 4 of its ulp; stores allow for far more.
LIBRARY = 8 * 2.0**-53

SPECIAL = [0.0, -0.0, 1.0, -1.0, 20.0, 88.0, -88.0, -104.0, 1e4, -1e4]
SPECIAL += [2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-126 - 2.0**-149, 2.0**-100]
SPECIAL += [1 + 2.0**-8, 1 + 2.0**-11, 1 - 2.0**-24, 65504.0, 65519.99609375]
# fp32 numbers: what an execution holds in registers
narrow = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(-1e4, 1e4, width=32),
    st.floats(-1.0, 1.0, width=32),
)
share = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))
flag = st.booleans()


def several(one, size=SIZE):
    return st.lists(one, min_size=size, max_size=size).map(np.array)


# the error of an operand: none, tiny, of its own size, larger than anything else
relative = st.one_of(
    st.sampled_from([0.0, 2.0**-24, 2.0**-9, 1.0]), st.floats(0, 4, width=32)
)


def hold(value, error, results, own=0.0):
    """Assert that results (balls) are within the error of the value.

    `own`: what the value itself may be off by, relative.
    """
    value, error = np.ravel(value), np.ravel(error)
    own = np.abs(value) * own
    for v, e, fp64, result in together(value, error, own, results):
        if math.isfinite(e):
            limit = (e + fp64) * OWN
            assert above(abs(result - arb(v))) <= limit, (v, e, result)


def read(x: flint.arb, flushes: bool) -> flint.arb:
    """An operand as it is read, or a result as it is written."""
    return flint.arb(0) if flushes and abs(x) < FLUSH else x


def distance(x, y):
    """|x - y|, rounded up."""
    return np.nextafter(np.abs(x - y), np.inf) * (x != y)
