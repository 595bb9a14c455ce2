"""Error bars from the slowest cosines of a series, or none where these still rise."""

from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._batch_means import AbstractErrorBars, ErrorBars, is_constant


USED, ALL = 12, 40
"""Cosines whose power is the variance, and those that it is compared with as well."""
EXTRAPOLATED = 2.65
"""How much of the rise of the slow over the fast is added, towards frequency 0."""
_RISE = 1 / (1 + (np.arange(1, USED + 1) / 4) ** 2)
RISE = _RISE / _RISE.sum()
"""Weights of the slow ones in their rise."""
FEWEST_WINDOWS = 2 * ALL
TIMES, SIZES = (1, 2, 4, 8, 16, 32), (2, 8, 32, 128, 512)
"""Correlation times of a drift that a sample holds, and its power at frequency 0 over
the noise's: all are as likely, and together as likely as none."""
SLOW = 10
"""Correlation times below which a sample does not show a drift's size."""
LARGEST_ODDS = 0.815
"""Of a slow drift against a faster one or none, for a bar; in a share `LEVEL` of white
noise they are larger."""
LEVEL = 0.035
ENOUGH = 16
"""Correlation times that a sample must hold."""
_TIMES = np.repeat(TIMES, len(SIZES))
_SPECTRA = 1 + np.tile(SIZES, len(TIMES))[:, None] / (
    1 + (np.pi * np.arange(1, ALL + 1) / _TIMES[:, None]) ** 2
)


class SlowestCosines(AbstractErrorBars):
    r"""Take the power of the slowest cosines along the trajectory, and of their rise.

    The variance of a mean over T tokens is the spectrum of growth at frequency 0, over
    T. Near 0 it is seen in $P_j$, the squares of growth along
    $\sqrt{2/T} \cos(\pi j (t - 1/2) / T)$, independent for long T (Mueller 2004;
    Lazarus, Lewis, Stock and Watson 2018). With L the mean of $P_1$ to $P_{12}$, R that
    of the same weighted by $1 / (1 + (j/4)^2)$ and H the mean of $P_{13}$ to $P_{40}$
    the variance is $L + 2.65 \max(R - H, 0)$, and intervals are by Student's t with 12
    degrees of freedom: L alone where the spectrum is flat, more where it rises. Of a
    drift whose correlation time is a tenth of the sample or more the cosines do not
    tell the size. Where such a drift is likelier than a faster one or none, by odds
    that 3.5 % of white noise exceed, there is no bar, and `ErrorBars.wanted_tokens`
    says what would do.

    Measured by `python -m analysis.coverage`, 2000 runs a row, 95 % intervals: white
    noise of 1000 tokens and more has a bar in 96 to 97 % of runs, 1.26 to 1.29 times as
    wide as with a known variance; 96 % of these cover. Under drifts of 0.1 to 2 % of
    the variance 93 to 97 % of the bars given cover where the sample holds 16
    correlation times of the drift or more, 91 to 94 % at 14, 89 to 94 % at 10. A drift
    of fewer times is seen where it is strong, and bars are withheld. Where it is weak
    samples look like white noise and have wrong bars: 5 to 15 % of runs at 4 to 5.5
    times, 6 to 46 % below. In all cells of the study where a rule that knew the drift
    could keep wrong bars to 7 % this one has 12 % at most. One rule for all, which sees
    the same cosines and gives white noise such bars, can have no less than 8.8 % in
    each of six of them; `analysis._coverage_bound` shows why. Neither does a sample
    tell of events that are too rare to be in it.

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
    away = xp.where(is_constant(away, live, mean, xp), 0, away)
    phase = (index[:, None] + 0.5) / count * xp.arange(1, ALL + 1)
    power = (xp.cos(xp.pi * phase).T @ away) ** 2 * (2 / count)
    low, high = power[:USED].mean(axis=0), power[USED:].mean(axis=0)
    variance = low + EXTRAPOLATED * xp.maximum(RISE @ power[:USED] - high, 0)
    odds, times = _slow_drift(power, xp)
    long_enough = n >= FEWEST_WINDOWS
    given = long_enough & finite & (odds <= LARGEST_ODDS)
    own = (away**2).sum(axis=0) / count
    correlation = xp.maximum(variance / xp.where(own > 0, own, 1), 1)
    wanted = xp.where(
        long_enough, ENOUGH / times * count, FEWEST_WINDOWS * xp.ones_like(mean)
    )
    return Slowest(
        variance,
        given,
        xp.where(finite, correlation, xp.nan),
        xp.where(given | ~finite, xp.nan, wanted),
    )


def _slow_drift(
    power: Float[Any, "40 k"], xp: ModuleType
) -> tuple[Float[Any, " k"], Float[Any, " k"]]:
    """Odds of a drift of fewer than `SLOW` correlation times, and the likeliest's.

    By Whittle's likelihood of first-order autoregressions under white noise, over that
    of white noise; the unit of `power`, which nothing tells, is integrated out.
    """
    power = xp.where(power.sum(axis=0) > 0, power, 1)
    whitened = (1 / _SPECTRA) @ power / power.sum(axis=0)
    log_ratio = -ALL / 2 * xp.log(whitened) - np.log(_SPECTRA).sum(1)[:, None] / 2
    top = xp.maximum(log_ratio.max(axis=0), 0)
    ratio = xp.exp(log_ratio - top) / len(_TIMES)
    slow = _TIMES < SLOW
    odds = ratio[slow].sum(axis=0) / (xp.exp(-top) + ratio[~slow].sum(axis=0))
    return odds, xp.asarray(_TIMES[slow])[xp.argmax(log_ratio[slow], axis=0)]
