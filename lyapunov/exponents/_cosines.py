"""Error bars from the slowest cosines of a series, or none where these still rise."""

from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special

from ._batch_means import AbstractErrorBars, ErrorBars, is_constant


USED, ALL = 12, 40
"""Cosines whose power is the variance, and those that it is compared with as well."""
EXTRAPOLATED = 2.5
"""How much of the rise of the slow over the fast is added, towards frequency 0."""
SLOWEST, FLAT = 2, slice(4, 32)
LEVEL = 0.03
"""Share of white noise in which the slowest rise above the flat ones by chance."""
LARGEST_RISE = float(special.fdtri(SLOWEST, FLAT.stop - FLAT.start, 1 - LEVEL))
FEWEST_WINDOWS = 2 * ALL
DRIFTS = np.geomspace(0.04, 1.0, 12)
"""Correlation times of a drift, over the length of the sample."""
ENOUGH = 16
"""Correlation times that a sample must hold."""


class SlowestCosines(AbstractErrorBars):
    r"""Take the power of the slowest cosines along the trajectory, and of their rise.

    The variance of a mean over T tokens is the spectrum of growth at frequency 0, over
    T. Near 0 it is seen in $P_j$, the squares of growth along
    $\sqrt{2/T} \cos(\pi j (t - 1/2) / T)$, independent for long T (Mueller 2004;
    Lazarus, Lewis, Stock and Watson 2018). With L the mean of $P_1$ to $P_{12}$ and H
    that of $P_{13}$ to $P_{40}$ the variance is $L + 2.5 \max(L - H, 0)$, and intervals
    are by Student's t with 12 degrees of freedom: L alone where the spectrum is flat,
    more where it rises. Where $P_1$ and $P_2$ are larger than $P_5$ to $P_{32}$ by
    more than chance makes of white noise in 3 % of runs, growth drifts over a good part
    of the sample; there is no bar, and `ErrorBars.wanted_tokens` says what would do.

    Measured by `python -m analysis.coverage`, 2000 runs a row, 95 % intervals: white
    noise of 1000 tokens and more has a bar in 97 % of runs, 1.25 to 1.29 times as wide
    as with a known variance; 96 % of these cover. Under drifts of 0.1 to 2 % of the
    variance 93 to 97 % of the bars given cover where the sample holds 16 correlation
    times of the drift or more, 90 to 94 % at 14, 89 to 94 % at 10. Below that bars are
    withheld the more often the stronger the drift is, and those that are left, of runs
    that look like white noise, cover too little: 66 to 87 % at 4. No rule that gives
    white noise such bars can tell these apart; about the best that one could do
    stands in the study's table. Neither does a sample tell of events that are too rare
    to be in it.

    Where growth is a difference between two tokens (as for the logistic map at 4: log
    |f'| = ln 2 + u(f(x)) - u(x)) errors fade as 1/T, and bars, which fade as the root,
    are too wide.

    ??? cite "Lazarus, Lewis, Stock and Watson (2018), J. Bus. Econ. Stat. 36, 541-559"
    """

    degrees: ClassVar[int] = USED
    """Of freedom, of Student's t behind each bar."""

    def __call__(self, windows):
        """Form the bars of all columns at once."""
        found = slowest_cosines(
            windows.growth / windows.width, windows.used // windows.width, jnp
        )
        # the mean is over all tokens, some of which are in no window
        share = windows.used / windows.width
        return ErrorBars(
            stderr=jnp.where(found.given, jnp.sqrt(found.variance / share), jnp.nan),
            batches=jnp.where(found.given, USED + 1, 0),
            correlation_tokens=found.correlation * windows.width,
            used=jnp.asarray(windows.used),
            counts=(USED + 1,),
            wanted_tokens=found.wanted * windows.width,
        )


class Slowest(NamedTuple):
    """Hold what the slowest cosines say of each column."""

    variance: Float[Any, " k"]
    """That of a mean, times the entries."""
    given: Bool[Any, " k"]
    correlation: Float[Any, " k"]
    """In entries, at least 1; NaN where the mean is not finite."""
    wanted: Float[Any, " k"]
    """Entries that a series must have for a bar; NaN where there is one."""


def slowest_cosines(
    rate: Float[Array | np.ndarray, "n k"], n: Any, xp: ModuleType
) -> Slowest:
    """Estimate the variance of means of correlated columns by their slowest cosines.

    **Arguments:**

    - `rate`: one row an entry of the series, of which the first `n` count.
    - `xp`: `numpy` or `jax.numpy`; the same arithmetic in both.
    """
    index = xp.arange(len(rate))
    live = index[:, None] < n
    count = xp.maximum(n, 1)
    mean = xp.where(live, rate, 0).sum(axis=0) / count
    finite = xp.isfinite(mean)
    away = xp.where(live & finite, rate - xp.where(finite, mean, 0), 0)
    away = xp.where(is_constant(away, mean, xp), 0, away)
    phase = (index[:, None] + 0.5) / count * xp.arange(1, ALL + 1)
    power = (xp.cos(xp.pi * phase).T @ away) ** 2 * (2 / count)
    low, high = power[:USED].mean(axis=0), power[USED:].mean(axis=0)
    variance = low + EXTRAPOLATED * xp.maximum(low - high, 0)
    slow = power[:SLOWEST].mean(axis=0) > LARGEST_RISE * power[FLAT].mean(axis=0)
    long_enough = n >= FEWEST_WINDOWS
    given = long_enough & finite & ~slow
    own = (away**2).sum(axis=0) / count
    correlation = xp.maximum(variance / xp.where(own > 0, own, 1), 1)
    wanted = xp.where(
        long_enough,
        xp.maximum(ENOUGH * _drift(power, xp), 2) * count,
        FEWEST_WINDOWS * xp.ones_like(mean),
    )
    return Slowest(
        variance,
        given,
        xp.where(finite, correlation, xp.nan),
        xp.where(given | ~finite, xp.nan, wanted),
    )


def _drift(power: Float[Any, "40 k"], xp: ModuleType) -> Float[Any, " k"]:
    """Correlation time of a drift over the series' length, the likeliest of `DRIFTS`.

    Whittle's likelihood of a first-order autoregression above the fast cosines' power,
    its size from the slowest four.
    """
    j = np.arange(1, ALL + 1)
    shapes = 1 / (1 + (np.pi * j * DRIFTS[:, None]) ** 2)  # (drifts, cosines)
    floor = power[USED:].mean(axis=0)
    floor = xp.where(floor > 0, floor, 1)
    rise = xp.maximum(power[:4].mean(axis=0) / floor - 1, 0)
    size = rise / shapes[:, :4].mean(axis=1)[:, None]  # (drifts, k)
    expected = 1 + size[:, None] * shapes[:, :, None]
    surprise = (xp.log(expected) + power / floor / expected).sum(axis=1)
    return xp.asarray(DRIFTS)[xp.argmin(surprise, axis=0)]
