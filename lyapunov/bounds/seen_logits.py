r"""T3 of a run of which the logits alone are seen, or a few log-probabilities a token.

Nothing is certified: what is far beyond what random roundings of the declared stores do
to the logits is no rounding, and what is not may be anything that is as small. At each
token the distance from the logits of rounded weights is told in sigmas, the root mean
square of what probes did (`probes`), of the stores of the logits, and of what writing
the values down rounds. A few probes say little of one token, so that the mean over all
tokens stands in where it is more.

Logits are held as they are; of log-probabilities of the whole vocabulary each token's
mean is taken out, which no probability sees; those of a few tokens are held one by one.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..arithmetic._programs import program
from ..implementations.dump._logits import FP32_UNIT, LOGITS, SeenLogits
from ..models import VocabularySlice
from ..sublayers.config import LogitsEnd
from .head import logit_roundings
from .predicted import add_logits, no_sums, random_error
from .segments import FP64_SHARE_OF_OUTPUT


class Slice(NamedTuple):
    """Logits of a slice of the vocabulary at some positions, before they are stored."""

    rows: VocabularySlice
    reference: Float[Array, "batch k rows"]
    shifted: Float[Array, "batch k rows"]
    """Of rounded weights alone."""
    drawn: Float[Array, "probes batch k rows"]
    norms: Float[Array, " rows"]
    sites: dict
    """Formats of the logits' own stores."""
    unit: float
    """Unit roundoff of the coarsest of them; 0 where there is none."""
    end: LogitsEnd


class Apart(NamedTuple):
    """How far a run is from the reference, squared L2 by position."""

    rest: Float[np.ndarray, "batch k"]
    """Beyond what rounding the weights does."""
    drawn: Float[np.ndarray, "batch k"]
    """Expected of random roundings."""
    size: Float[np.ndarray, "batch k"]
    sigma: float | None
    """Of the relative L2 of all logits."""
    centred: Float[np.ndarray, "batch k"]
    """`rest` without each position's mean."""

    @property
    def z(self) -> Float[np.ndarray, "batch k"]:
        """`rest` in sigmas; infinite where something is not finite."""
        return self._in_sigmas(self.rest)

    @property
    def z_centred(self) -> Float[np.ndarray, "batch k"]:
        """The same of `centred`."""
        return self._in_sigmas(self.centred)

    def _in_sigmas(self, square):
        floor = self.drawn + FP64_SHARE_OF_OUTPUT**2 * self.size
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.sqrt(square / np.maximum(floor, np.mean(floor)))
            z = np.where(square == 0, 0.0, z)
        return np.where(np.isnan(z), np.inf, z)


class AbstractSeen(abc.ABC):
    """Collects what a run's logits are apart, a slice of the vocabulary at a time."""

    def __init__(self, seen: SeenLogits, n_probes: int):
        self.seen = seen
        self.shape = (seen.tokens[0], len(seen.positions))
        self.n_probes = n_probes

    @abc.abstractmethod
    def add(self, part: Slice) -> None:
        """Take in one slice."""

    @abc.abstractmethod
    def apart(self, vocabulary: int, independent: int) -> Apart:
        """After the last slice.

        **Arguments:**

        - `independent`: how many of the probes count.
        """

    def _written(self, stored: float) -> float:
        """Relative variance of what making and writing the values rounds.

        **Arguments:**

        - `stored`: unit roundoff of the declared store of the logits, which is
          counted already.
        """
        unit, made = self.seen.unit, 0.0
        if self.seen.form == LOGITS:
            unit = unit if unit > stored else 0.0
        else:
            made = FP32_UNIT
        return (unit**2 + made**2) / 3


class SeenVocabulary(AbstractSeen):
    """Logits or log-probabilities of all tokens of the vocabulary."""

    def __init__(self, seen: SeenLogits, n_probes: int):
        super().__init__(seen, n_probes)
        self._sums: Any = None
        self._n_probes = n_probes
        self.square = np.zeros(self.shape)
        """Sum of the squares of what is given."""
        self._stored = 0.0

    def add(self, part: Slice) -> None:
        """Take in one slice."""
        rows = part.rows
        given = self.seen.values(rows.start, rows.stop)
        with np.errstate(over="ignore", invalid="ignore"):
            self.square += np.sum(given[..., rows.behind :] ** 2, axis=-1)
        self._stored = part.unit
        if self._sums is None:
            width = rows.stop - rows.start
            self._sums = no_sums(*self.shape, self._n_probes, width)
        self._sums = add_logits(
            self._sums,
            part.reference,
            part.shifted,
            part.drawn,
            part.norms,
            given,
            part.sites,
            part.end,
            rows.behind,
        )

    def apart(self, vocabulary: int, independent: int) -> Apart:
        """After the last slice."""
        host = jax.tree.map(np.asarray, self._sums)
        error = random_error(self._sums, vocabulary)
        drawn = np.mean(error.drawn[:independent], axis=0)
        rest = error.rest
        if self.seen.form == LOGITS:
            rest = host.rest[1]
            drawn = np.mean(host.probes[:independent, 1], axis=0) + host.store
        with np.errstate(invalid="ignore", divide="ignore"):
            written = self._written(self._stored) * self.square
            written = np.where(np.isfinite(written), written, 0.0)
            apart = np.sum(error.shift) + np.mean(
                np.sum(error.drawn[:independent], axis=(1, 2))
            )
            sigma = float(np.sqrt((apart + np.sum(written)) / np.sum(error.size)))
        return Apart(rest, drawn + written, host.size[1], sigma, error.rest)


class _Few(NamedTuple):
    """Running values of a few tokens: of reference, rounded weights and probes."""

    values: Float[Array, "runs batch k n"]
    top: Float[Array, "runs batch k"]
    weight: Float[Array, "runs batch k"]
    place: Int[Array, "batch k"]
    """The reference's leader."""
    store: Float[Array, "batch k n"]
    """The most that storing the logit moves it by."""


class SeenFew(AbstractSeen):
    """Log-probabilities of a few tokens."""

    def __init__(self, seen: SeenLogits, n_probes: int):
        super().__init__(seen, n_probes)
        assert seen.ids is not None
        self.ids, runs = seen.ids, 2 + n_probes
        low = np.full((runs, *self.shape), -np.inf)
        place = np.zeros(self.shape, np.int64)
        nothing: Any = (
            np.zeros((runs, *self.ids.shape)),
            low,
            np.zeros_like(low),
            place,
            np.zeros(self.ids.shape),
        )
        self._sums = _Few(*nothing)

    def add(self, part: Slice) -> None:
        """Take in one slice."""
        runs = part.reference, part.shifted, part.drawn
        self._sums = _take(
            self._sums, runs, self.ids, np.asarray(part.rows.start), part.rows.behind,
            part.sites, part.end,
        )  # fmt: skip

    @property
    def leader(self) -> Int[np.ndarray, "batch k"]:
        """The reference's, of the whole vocabulary."""
        return np.asarray(self._sums.place)

    @property
    def best(self) -> Float[np.ndarray, "batch k"]:
        """The log-probability of that one."""
        return -np.log(np.asarray(self._sums.weight[0]))

    @property
    def log_probabilities(self) -> Float[np.ndarray, "runs batch k n"]:
        """Of the reference, rounded weights and the probes; NaN where no token is."""
        host = jax.tree.map(np.asarray, self._sums)
        normaliser = host.top + np.log(host.weight)
        return np.where(self.ids < 0, np.nan, host.values - normaliser[..., None])

    @property
    def given(self) -> Float[np.ndarray, "batch k n"]:
        """What the run says; NaN where no token is."""
        return np.where(self.ids < 0, np.nan, self.seen.values())

    def apart(self, vocabulary: int, independent: int) -> Apart:
        """After the last slice."""
        del vocabulary
        _, shifted, *drawn = self.log_probabilities
        there, given = self.ids >= 0, self.given
        total = lambda x: np.sum(np.where(there, x, 0.0) ** 2, axis=-1)
        drawn = np.mean([total(one - shifted) for one in drawn[:independent]], axis=0)
        # the normaliser moves less than the logits that it is a mean of
        stores = total(np.asarray(self._sums.store)) / 3
        finite = np.where(np.isfinite(given), given, 0.0)
        with np.errstate(invalid="ignore"):
            rest = total(given - shifted)
        drawn = drawn + stores + self._written(0.0) * total(finite)
        return Apart(rest, drawn, total(shifted), None, rest)


@program
def _take(sums: _Few, runs, ids, start, behind, sites, end) -> _Few:
    reference, shifted, drawn = runs
    runs = jnp.concatenate([reference[None], shifted[None], drawn], axis=0)
    place = ids - start
    rows = runs.shape[-1]
    inside = (ids >= 0) & (place >= 0) & (place < rows)
    at = jnp.broadcast_to(jnp.where(inside, place, 0), (len(runs), *ids.shape))
    picked = jnp.take_along_axis(runs, at, axis=-1)
    runs = jnp.where(jnp.arange(rows) >= behind, runs, -jnp.inf)
    best = jnp.max(runs, axis=-1)
    top = jnp.maximum(sums.top, best)
    power = jnp.sum(jnp.exp(runs - top[..., None]), axis=-1)
    square = jnp.zeros(picked.shape[1:])
    for size in logit_roundings(jnp.abs(picked[1]), sites, end).values():
        square = square + size**2
    first = jnp.argmax(runs[0], axis=-1) + start
    return _Few(
        jnp.where(inside, picked, sums.values),
        top,
        sums.weight * jnp.exp(sums.top - top) + power,
        jnp.where(best[0] > sums.top[0], first, sums.place),
        jnp.where(inside, jnp.sqrt(square), sums.store),
    )


def seen_by(seen: SeenLogits, n_probes: int) -> AbstractSeen:
    """What collects the logits of a run, by the form that they are given in."""
    return (SeenVocabulary if seen.ids is None else SeenFew)(seen, n_probes)
