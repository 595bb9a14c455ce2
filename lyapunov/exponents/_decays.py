"""Statistics of the decays of a layer, without forming all of them."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from .._errors import ArgumentError
from ..formats import Format


MOST_SAMPLED = 200_000
MOST_WINDOWS = 64
LOG10_EDGES = np.linspace(2, -8, 51)


class Decays:
    """Count and average the decays of a layer over its tokens, channels and states.

    They are exp(dt A), a channel's states sharing a dt, and never formed all at once:
    whether one lies beyond a threshold is a question about dt alone, at the threshold
    divided by |A|; each channel's dt are sorted once, and every count is a search in
    them. Where a layer gives log decays themselves, `of_logs` takes them.

    **Arguments:**

    - `dt`: at least 0.
    - `A`: at most 0; one value a head, or one a channel and state.

    **Raises:** `ArgumentError` for other shapes or signs, or no tokens.
    """

    def __init__(
        self,
        dt: Float[Array | np.ndarray, "batch seq d_inner"],
        A: Float[Array | np.ndarray, " d_inner *d_state"],
    ):
        dt, A = np.asarray(dt, np.float64), np.asarray(A, np.float64)
        if dt.ndim != 3 or 0 in dt.shape:
            raise ArgumentError(
                f"dt has shape {dt.shape}",
                hint="give (batch, seq, d_inner), none of them 0",
            )
        if A.ndim not in (1, 2) or A.shape[0] != dt.shape[-1] or A.size == 0:
            raise ArgumentError(
                f"A has shape {A.shape} and dt {dt.shape}",
                hint=f"give A as ({dt.shape[-1]}, d_state), or one value a head",
            )
        if np.any(dt < 0) or np.any(A > 0):
            raise ArgumentError(
                f"dt goes down to {np.min(dt)} and A up to {np.max(A)}: exp(dt A) is "
                "no decay",
                hint="give dt behind softplus, and A = -exp(A_log)",
            )
        self._dt, self._A = dt, A.reshape(len(A), -1)
        self._ordered = np.array(dt.reshape(-1, dt.shape[-1]).T, order="C")
        self._ordered.sort(axis=1)

    @staticmethod
    def of_logs(log_decay: Float[Array | np.ndarray, "batch seq *states"]) -> "Decays":
        """Take log decays as they are, one a state (or head) and token.

        **Arguments:**

        - `log_decay`: at most 0; -inf where the decay is 0.

        **Raises:** `ArgumentError` for other shapes, a decay above 1, or no tokens.
        """
        logs = np.asarray(log_decay, np.float64)
        if logs.ndim < 3 or 0 in logs.shape:
            raise ArgumentError(
                f"log decays have shape {logs.shape}",
                hint="give (batch, seq, states), none of them 0",
            )
        if np.any(logs > 0):
            raise ArgumentError(
                f"a log decay is {np.nanmax(logs):.6g}, a decay above 1",
                hint="of a step that may grow, lyapunov_spectrum gives the exponents",
            )
        logs = logs.reshape(*logs.shape[:2], -1)
        return Decays(-logs, np.full(logs.shape[-1], -1.0))

    @property
    def n_tokens(self) -> int:
        """Count the tokens of a sequence."""
        return self._dt.shape[1]

    @property
    def exponents(self) -> Float[np.ndarray, "d_inner d_state"]:
        """Average the log decays of each channel and state over all tokens."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self._dt.mean(axis=(0, 1))[:, None] * self._A

    def log_decay(self, channel: int, state: int) -> Float[np.ndarray, "batch seq"]:
        """Give the log decays of one channel and state at every token."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self._dt[:, :, channel] * self._A[channel, state]

    def finite_time(self) -> dict[str, list[int] | list[float]]:
        """Find the largest exponent of each of at most 64 windows, and where they end.

        A window's exponents are means over its tokens and the batch; `token` counts the
        tokens up to its end. The last window may be shorter.
        """
        seq = self.n_tokens
        width = -(-seq // MOST_WINDOWS)
        starts = np.arange(0, seq, width)
        ends = np.minimum(starts + width, seq)
        sums = np.add.reduceat(self._dt.mean(axis=0), starts, axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            # dt >= 0: the slowest state of a channel has the largest exponent
            slowest = sums / (ends - starts)[:, None] * self._A.max(axis=1)
        return {"token": ends.tolist(), "max": slowest.max(axis=1).tolist()}

    @property
    def min(self) -> float:
        """Find the smallest decay."""
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.exp((self._ordered[:, -1] * self._A.min(axis=1)).min()))

    @property
    def max(self) -> float:
        """Find the largest decay."""
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.exp((self._ordered[:, 0] * self._A.max(axis=1)).max()))

    def shares_rounded(
        self, formats: Sequence[Format]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Count the shares of decays that round to 1, and to 0, in each format.

        Counts over all tokens, channels and states. A decay rounds to 1 if and only
        if dt |A| is at most `decay_rounds_to_one_below()`; to 0 if and only if it is
        at most half the smallest subnormal (the tie goes to 0).
        """
        rate = -self._A
        thresholds = [f.decay_rounds_to_one_below() for f in formats]
        thresholds += [rounds_to_zero_from(f) for f in formats]
        with np.errstate(divide="ignore"):
            limits = np.array(thresholds)[:, None] / rate[:, None, :]
        below = limits[:, len(formats) :, :]
        # what is not below the second kind of limit is what rounds to 0
        below[:] = np.nextafter(below, -np.inf)
        limits = limits.reshape(len(rate), -1)
        counts = np.empty(limits.shape, np.int64)
        for ordered, limit, count in zip(self._ordered, limits, counts, strict=True):
            count[:] = ordered.searchsorted(limit, side="right")
        total = self._ordered.size * rate.shape[1]
        by_format = counts.reshape(len(rate), -1, rate.shape[1]).sum(axis=(0, 2))
        ones, not_zeros = by_format[: len(formats)], by_format[len(formats) :]
        return (
            {f.name: int(n) / total for f, n in zip(formats, ones, strict=True)},
            {
                f.name: (total - int(n)) / total
                for f, n in zip(formats, not_zeros, strict=True)
            },
        )

    def histogram(self) -> dict[str, list[float]]:
        """Count the shares of decays between edges that make those near 1 visible.

        Edges are uniform in log10 of -log a: five to each factor of ten of the
        memory -1 / log a, from 0.01 to 10^8 tokens, with 0 and 1 at the ends. Where
        there are more than 200,000 decays, (token, channel) pairs are taken at an
        even stride that visits all channels.
        """
        pairs, states = self._dt.size, self._A.shape[1]
        stride = max(1, -(-pairs * states // MOST_SAMPLED))
        channels = self._dt.shape[-1]
        while math.gcd(stride, channels) > 1:
            stride += 1
        at = np.arange(0, pairs, stride)
        dt, A = self._dt.reshape(-1)[at], self._A[at % channels]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            size = np.log10(dt[:, None] * -A)
        size = size[~np.isnan(size)]
        start, step = LOG10_EDGES[0], LOG10_EDGES[1] - LOG10_EDGES[0]
        bins = np.clip(np.floor((size - start) / step), -1, len(LOG10_EDGES) - 1)
        counts = np.bincount(bins.astype(int) + 1, minlength=len(LOG10_EDGES) + 1)
        edges = np.exp(-(10.0**LOG10_EDGES))
        return {
            "edges": [0.0, *edges.tolist(), 1.0],
            "share": (counts / max(1, counts.sum())).tolist(),
        }


def rounds_to_zero_from(format: Format) -> float:  # noqa: A002
    """Find the smallest d such that exp(-d) rounds to 0 in this format.

    Half the smallest subnormal is 2^(emin - p); the tie goes to 0, which is even.
    """
    return (format.significand_bits - format.min_exponent) * math.log(2)
