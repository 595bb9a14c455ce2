"""The dimension of an attractor from its exponents."""

import bisect
import math

import numpy as np
from jaxtyping import Array, Float

from .._errors import ArgumentError


def kaplan_yorke_dimension(exponents: Float[Array | np.ndarray, " k"]) -> float:
    r"""Find the Kaplan-Yorke (Lyapunov) dimension of an attractor.

    It is $j + (\lambda_1 + \dots + \lambda_j) / |\lambda_{j+1}|$, j the largest number
    of leading exponents whose sum is not negative: volumes of dimension j do not
    shrink, those of dimension j + 1 do. 0 where all exponents are negative: every
    trajectory ends at the same one. As many as were given where their sum is not
    negative; if the system has more, the dimension may be larger.

    **Arguments:**

    - `exponents`: one a coordinate (`SpectrumResult.repeated`), in any order and unit;
      -inf is allowed. All of them, or so many of the largest that they add up to less
      than 0.

    **Raises:** `ArgumentError` for none, a NaN or +inf.

    ??? cite "Kaplan and Yorke (1979), Lecture Notes in Mathematics 730, 204-227"
    """
    ordered = np.sort(np.asarray(exponents, np.float64).ravel())[::-1]
    if ordered.size == 0:
        raise ArgumentError("there are no exponents", hint="give one or more")
    if np.isnan(ordered).any() or ordered[0] == math.inf:
        raise ArgumentError(
            f"the exponents hold {'NaN' if np.isnan(ordered).any() else '+inf'}, so "
            "the dimension is not defined",
            hint="see where the trajectory leaves fp64: finite_time_exponents tells",
        )
    values = ordered.tolist()
    # sums of the j largest rise and then fall: once below 0 they stay there
    j = bisect.bisect_left(
        range(len(values)), True, key=lambda j: math.fsum(values[: j + 1]) < 0
    )
    if j == len(values):
        return float(j)
    return j + math.fsum(values[:j]) / -values[j]
