"""Error bars of an exponent as the limit that a correlated series tends to."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import special

from .._errors import ArgumentError


class Windows(NamedTuple):
    """Hold the log growth over windows of tokens."""

    growth: Float[Array, "windows k"]
    used: Int[Array, ""]
    """Tokens in all; windows behind them are empty, the last may be shorter."""
    width: int
    """Tokens a window."""


class ErrorBars(eqx.Module):
    """Hold standard errors of exponents, and how far each can be relied on."""

    stderr: Float[Array, " k"]
    """Nats per token; NaN where withheld."""
    batches: Int[Array, " k"]
    """Independent numbers behind each, batch means or cosines and the mean: one more
    than Student's degrees of freedom; 0: withheld."""
    correlation_tokens: Float[Array, " k"]
    """Tokens after which growth rates count as independent, at least one window."""
    used: Int[Array, ""]
    """Tokens of the trajectory."""
    counts: tuple[int, ...] = eqx.field(static=True)
    """What `batches` may be."""
    wanted_tokens: Float[Array, " k"]
    """Tokens that a trajectory must have for a bar, roughly, where there is none; NaN
    where there is one."""

    def half_width(self, level: float = 0.95) -> Float[Array, " k"]:
        """Find half the width of the two-sided interval, by Student's t; or NaN.

        **Arguments:**

        - `level`: the share of cases in which the interval is to hold the limit.

        **Returns:** nats per token; NaN where the bar is withheld.
        """
        if not 0 < level < 1:
            raise ArgumentError(
                f"level is {level}", hint="give a share between 0 and 1"
            )
        factor = jnp.full_like(self.stderr, jnp.nan)
        for count in self.counts:
            t = float(special.stdtrit(count - 1, (1 + level) / 2))
            factor = jnp.where(self.batches == count, t, factor)
        return factor * self.stderr

    def reasons(self) -> list[str | None]:
        """Tell for each exponent why its bar is withheld; None where it is given."""
        found = []
        for batches, tokens, wanted in zip(
            np.asarray(self.batches),
            np.asarray(self.correlation_tokens),
            np.asarray(self.wanted_tokens),
            strict=True,
        ):
            if batches:
                found.append(None)
            elif not np.isfinite(tokens):
                found.append("the exponent is not finite")
            else:
                found.append(
                    f"{int(self.used)} tokens are too few: growth is correlated over "
                    f"{max(tokens, 1):.3g} tokens or drifts more slowly than they show;"
                    f" about {wanted:.2g} tokens are needed"
                )
        return found


class AbstractErrorBars(eqx.Module):
    """Form error bars from the growth over windows of a trajectory, in one way."""

    @abc.abstractmethod
    def __call__(self, windows: Windows) -> ErrorBars:
        """Form the bars of the means over all tokens."""


class BatchMeans(AbstractErrorBars):
    r"""Take the standard deviation of batch means over the root of their number.

    Means of b batches of m tokens have b - 1 degrees of freedom where batches are long
    enough to be independent. Their variance misses that of the limit by about
    $(\tau - 1/\tau) / 2m$, with $\tau = 1 + 2 \sum_k \rho_k$ the correlation time in
    tokens (of a first-order autoregression; 0 where growth is independent), so that m
    is at least $20 (\tau - 1/\tau)$: 2.5 % of the variance, 0.3 points of a 95 %
    interval's coverage. The number of batches is the largest of 32, 16 and 8 that
    allows this; where not even 8 do, there is no bar. $\tau$ is Geyer's initial
    monotone sequence estimate, at least 1. At lengths at which its scatter decides
    whether there is a bar, those given at 95 % cover in 91 to 94 %.

    That estimate stops at the first lag below the noise of one window and so misses a
    slow drift under fast noise: of a drift with 0.3 % of the variance, correlated over
    300 of 4096 tokens, intervals cover 83 %. `SlowestCosines`, the default, looks for
    it. Batch means are for growth whose memory is known to be short.

    Growth rates must be stationary. Where growth is a difference between two tokens
    (as for the logistic map at 4: log |f'| = ln 2 + u(f(x)) - u(x)) errors fade as
    1/T, and bars, which fade as the root, are too wide.

    **Arguments:**

    - `batches`: how many, 2 or more, instead of the choice.
    - `needed`: the 20.

    ??? cite "Geyer (1992), Statistical Science 7, 473-483, sections 3.2 and 3.3"
    """

    batches: int | None = eqx.field(static=True, default=None)
    needed: float = eqx.field(static=True, default=20.0)

    def __check_init__(self):
        if self.batches is not None and self.batches < 2:
            raise ArgumentError(f"batches is {self.batches}", hint="give 2 or more")
        if not self.needed >= 0:
            raise ArgumentError(f"needed is {self.needed}", hint="give 0 or more")

    def __call__(self, windows):
        """One column at a time."""
        counts = (32, 16, 8) if self.batches is None else (self.batches,)
        n = windows.used // windows.width

        def column(growth):
            return _bar(growth / windows.width, n, counts, self.needed)

        bar, batches, tau = jax.vmap(column, 1)(windows.growth)
        # the mean is over all tokens, some of which are in no batch
        share = windows.used / windows.width
        return ErrorBars(
            stderr=bar / jnp.sqrt(share),
            batches=batches,
            correlation_tokens=tau * windows.width,
            used=jnp.asarray(windows.used),
            counts=counts,
            wanted_tokens=jnp.where(
                batches > 0,
                jnp.nan,
                min(counts)
                * jnp.maximum(self.needed * (tau - 1 / tau), 1)
                * windows.width,
            ),
        )


def _bar(rate, n, counts, needed):
    """Root of the variance a window, batches taken, correlation time in windows.

    `rate`: of which the first n count.
    """
    index = jnp.arange(len(rate))
    live = index < n
    mean = jnp.sum(jnp.where(live, rate, 0)) / jnp.maximum(n, 1)
    away = jnp.where(live, rate - mean, 0)
    rate = jnp.where(is_constant(away, live, mean, jnp), 0, away)
    tau = correlation_time(rate, n)
    longest = needed * (tau - 1 / tau)
    stderr = jnp.full((), jnp.nan, rate.dtype)
    batches = jnp.zeros((), int)
    for count in sorted(counts):  # the largest that is allowed stays
        size = n // count
        owner = jnp.where(live, index // jnp.maximum(size, 1), count)
        sums = jax.ops.segment_sum(rate, owner, count)  # those behind are dropped
        variance = jnp.var(sums / jnp.maximum(size, 1), ddof=1) * size
        allowed = (size >= jnp.maximum(longest, 1)) & jnp.isfinite(mean)
        stderr = jnp.where(allowed, jnp.sqrt(variance), stderr)
        batches = jnp.where(allowed, count, batches)
    return stderr, batches, jnp.where(jnp.isfinite(mean), tau, jnp.nan)


def is_constant(away, live, mean, xp):
    """Ask whether live rows differ from each other by no more than rounding does.

    From their mean they may differ by more: it is a sum, in whatever order.
    """
    highest = xp.max(xp.where(live, away, -xp.inf), axis=0)
    lowest = xp.min(xp.where(live, away, xp.inf), axis=0)
    return highest - lowest <= 32 * xp.finfo(away.dtype).eps * xp.abs(mean)


def correlation_time(rate: Float[Array, " n"], n) -> Float[Array, ""]:
    """Estimate the correlation time, 1 + 2 sum of autocorrelations, in entries.

    Sums of neighbouring autocovariances are positive and decrease for a reversible
    chain; the sum stops where theirs stop being so. At least 1.

    **Arguments:**

    - `rate`: less its mean, 0 behind the first n.
    """
    size = 2 * (-(-len(rate) // 2))
    power = jnp.abs(jnp.fft.rfft(rate, 2 * size)) ** 2
    covariance = jnp.fft.irfft(power, 2 * size)[:size] / jnp.maximum(n, 1)
    pairs = covariance[0::2] + covariance[1::2]
    pairs = jnp.where(jnp.cumprod(pairs > 0) > 0, pairs, 0)
    pairs = jax.lax.cummin(pairs)
    variance = covariance[0]
    total = 2 * jnp.sum(pairs) - variance
    return jnp.maximum(total / jnp.where(variance > 0, variance, 1), 1)
