"""Statistics of the decays exp(dt A) of a layer, without forming all of them."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ..formats import Format


MOST_SAMPLED = 200_000
LOG10_EDGES = np.linspace(2, -8, 51)


class Decays:
    """All decays exp(dt A) of a layer over its tokens, channels and states.

    Whether a decay lies beyond a threshold is a question about dt alone, at the
    threshold divided by |A|: each channel's dt are sorted once, and every count is
    a search in them.

    **Arguments:**

    - `dt`: (batch, seq, d_inner), at least 0. `A`: (d_inner, d_state), at most 0.
    """

    def __init__(
        self,
        dt: Float[np.ndarray, "batch seq d_inner"],
        A: Float[np.ndarray, "d_inner d_state"],
    ):
        self._tokens = dt.reshape(-1, dt.shape[-1])
        self._A = A
        self._ordered = np.array(self._tokens.T, order="C")
        self._ordered.sort(axis=1)

    @property
    def min(self) -> float:
        """The smallest decay."""
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.exp((self._ordered[:, -1] * self._A.min(axis=1)).min()))

    @property
    def max(self) -> float:
        """The largest decay."""
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.exp((self._ordered[:, 0] * self._A.max(axis=1)).max()))

    def shares_rounded(
        self, formats: Sequence[Format]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Shares of decays that round to 1, and to 0, in each format.

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
        """Shares of decays between edges that make decays near 1 visible.

        Edges are uniform in log10 of -log a: five to each factor of ten of the
        memory -1 / log a, from 0.01 to 10^8 tokens, with 0 and 1 at the ends. Where
        there are more than 200,000 decays, (token, channel) pairs are taken at an
        even stride that visits all channels.
        """
        pairs, states = self._tokens.size, self._A.shape[1]
        stride = max(1, -(-pairs * states // MOST_SAMPLED))
        channels = self._tokens.shape[1]
        while math.gcd(stride, channels) > 1:
            stride += 1
        at = np.arange(0, pairs, stride)
        dt, A = self._tokens.reshape(-1)[at], self._A[at % channels]
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
    """The smallest d such that exp(-d) rounds to 0 in this format.

    Half the smallest subnormal is 2^(emin - p); the tie goes to 0, which is even.
    """
    return (format.significand_bits - format.min_exponent) * math.log(2)
