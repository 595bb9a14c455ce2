r"""Random roundings at the logits: their size, their calibration, greedy tokens.

Everything is summed over slices of the vocabulary. Per token, with l the reference's
logits, s those of rounded weights alone, p_k those of probe k before they are stored,
and x an execution's: the shift s - l is computed, the probes' p_k - s is what random
roundings do, and the logits' own store adds b(s)^2 / 3 in variance. All norms are taken
after removing each token's mean, which softmax does not see.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..arithmetic._programs import program
from ..formats import FormatNumbers
from ..sublayers.config import LogitsEnd
from ..sublayers.residual import NO_END
from .head import logit_roundings


# Tokens that compete for the first place; what holds for all others is told from the
# largest of each quantity over the vocabulary.
CANDIDATES = 64
SIGMAS = 4.0


class Candidates(NamedTuple):
    """The largest logits of the reference, in order, each (batch, seq, candidates)."""

    logits: Float[Array, "batch seq candidates"]
    shift: Float[Array, "batch seq candidates"]
    norms: Float[Array, "batch seq candidates"]
    """L2 norms of the head's rows."""
    store: Float[Array, "batch seq candidates"]
    """The most that storing the logit moves it by."""
    probes: Float[Array, "probes batch seq candidates"]
    """p_k - s."""


class RandomSums(NamedTuple):
    """Running sums over the vocabulary, (batch, seq) each, of a tensor and its square.

    `rest`: the execution's logits less those of rounded weights, x - s.
    """

    size: Float[Array, "2 batch seq"]
    shift: Float[Array, "2 batch seq"]
    probes: Float[Array, "probes 2 batch seq"]
    rest: Float[Array, "2 batch seq"]
    odd: Float[Array, "2 batch seq"]
    """Of an antithetic pair, f(d) - f(-d)."""
    even: Float[Array, "2 batch seq"]
    """f(d) + f(-d) - 2 f(0)."""
    of_state: Float[Array, "2 batch seq"] | None
    """Of the probe that draws the state's roundings alone, where there is one."""
    store: Float[Array, "batch seq"]
    """Variance of storing the logits."""
    rows: Float[Array, ""]
    """Squared L2 norms of the head's rows."""
    norm_max: Float[Array, ""]
    store_max: Float[Array, "batch seq"]
    shift_range: Float[Array, "2 batch seq"]
    """Smallest and largest."""
    candidates: Candidates


def no_sums(
    batch: int, seq: int, n_probes: int, rows: int, *, of_state: bool = False
) -> RandomSums:
    """The sums before the first slice, of so many rows."""
    # with all their places, so that the first slice's program is the others'
    room = CANDIDATES if rows >= CANDIDATES else 0
    pair: Any = np.zeros((2, batch, seq))
    none: Any = np.zeros((batch, seq, room))
    worst: Any = np.full((batch, seq, room), -np.inf)
    probes: Any = np.zeros((n_probes, 2, batch, seq))
    drawn: Any = np.zeros((n_probes, batch, seq, room))
    zero: Any = np.zeros(())
    shift: Any = pair + np.array([np.inf, -np.inf])[:, None, None]
    return RandomSums(
        size=pair,
        shift=pair,
        probes=probes,
        rest=pair,
        odd=pair,
        even=pair,
        of_state=pair if of_state else None,
        store=pair[0],
        rows=zero,
        norm_max=zero,
        store_max=pair[0],
        shift_range=shift,
        candidates=Candidates(worst, none, none, none, drawn),
    )


def _sums(x):
    return jnp.stack([jnp.sum(x, axis=-1), jnp.sum(x**2, axis=-1)])


@program
def add_logits(
    sums: RandomSums,
    reference: Float[Array, "batch seq rows"],
    shifted: Float[Array, "batch seq rows"],
    probes: Float[Array, "probes batch seq rows"],
    norms: Float[Array, " rows"],
    other: Float[Array, "batch seq rows"] | None,
    sites: dict[str, FormatNumbers],
    end: LogitsEnd = NO_END,
    behind: Int[np.ndarray, ""] | int = 0,
    of_state: Float[Array, "batch seq rows"] | None = None,
) -> RandomSums:
    """Take in one slice of the vocabulary.

    **Arguments:**

    - `shifted`, `probes`, `norms`: as `Probes.logits` gives them.
    - `other`: the execution's own logits, where it was run.
    - `sites`, `end`: as `logit_roundings` takes them.
    - `behind`: rows that an earlier slice had, as an array; they count no more.
    - `of_state`: the probe of the state's roundings alone, where `sums` has one.
    """
    new = jnp.arange(reference.shape[-1]) >= behind
    kept = lambda x: jnp.where(new, x, 0.0)
    worst = jnp.where(new, reference, -jnp.inf)
    reference, norms = kept(reference), kept(norms)
    shift, drawn = kept(shifted - reference), kept(probes - shifted)
    square = jnp.zeros_like(shifted)
    for size in logit_roundings(jnp.abs(shifted), sites, end).values():
        square = square + size**2
    store = kept(jnp.sqrt(square))
    rest = jnp.zeros_like(shift) if other is None else kept(other - shifted)
    low, high = (jnp.where(new, shift, end) for end in (jnp.inf, -jnp.inf))
    return RandomSums(
        size=sums.size + _sums(reference),
        shift=sums.shift + _sums(shift),
        probes=sums.probes + jax.vmap(_sums)(drawn),
        rest=sums.rest + _sums(rest),
        odd=sums.odd + _sums(drawn[0] - drawn[-1]),
        even=sums.even + _sums(drawn[0] + drawn[-1]),
        of_state=(
            None
            if sums.of_state is None or of_state is None
            else sums.of_state + _sums(kept(of_state - shifted))
        ),
        store=sums.store + jnp.sum(store**2, axis=-1) / 3,
        rows=sums.rows + jnp.sum(norms**2),
        norm_max=jnp.maximum(sums.norm_max, jnp.max(norms)),
        store_max=jnp.maximum(sums.store_max, jnp.max(store, axis=-1)),
        shift_range=jnp.stack(
            [
                jnp.minimum(sums.shift_range[0], jnp.min(low, axis=-1)),
                jnp.maximum(sums.shift_range[1], jnp.max(high, axis=-1)),
            ]
        ),
        candidates=_merged(
            sums.candidates,
            Candidates(
                worst,
                shift,
                jnp.broadcast_to(norms, shift.shape),
                store,
                drawn,
            ),
        ),
    )


def _merged(before: Candidates, new: Candidates) -> Candidates:
    both = Candidates(
        *(jnp.concatenate(pair, axis=-1) for pair in zip(before, new, strict=True))
    )
    count = min(CANDIDATES, both.logits.shape[-1])
    _, place = jax.lax.top_k(both.logits, count)
    take = lambda x: jnp.take_along_axis(x, place, axis=-1)
    return Candidates(
        logits=take(both.logits),
        shift=take(both.shift),
        norms=take(both.norms),
        store=take(both.store),
        probes=jax.vmap(take)(both.probes),
    )


def _square(sums, vocabulary: int):
    """Squared L2 after removing the mean, from a sum and a sum of squares."""
    return np.maximum(sums[..., 1, :, :] - sums[..., 0, :, :] ** 2 / vocabulary, 0.0)


class RandomError(NamedTuple):
    """The sums over the whole vocabulary, squared L2 norms by token."""

    size: Float[np.ndarray, "batch seq"]
    shift: Float[np.ndarray, "batch seq"]
    drawn: Float[np.ndarray, "probes batch seq"]
    """What each probe's roundings do, the store of the logits included."""
    rest: Float[np.ndarray, "batch seq"]
    """What the execution's roundings did."""
    nonlinearity: float
    """L2 of f(d) + f(-d) - 2 f(0) over that of f(d) - f(-d)."""
    of_state: Float[np.ndarray, "batch seq"] | None
    """What the state's roundings alone do, where they were drawn."""


def random_error(sums: RandomSums, vocabulary: int) -> RandomError:
    """Squared norms, (batch, seq) each."""
    host = jax.tree.map(np.asarray, sums)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        store = host.store * (1 - 1 / vocabulary)
        odd = np.sum(_square(host.odd, vocabulary))
        even = np.sum(_square(host.even, vocabulary))
        # of logits that are all equal only rounding is left of the two sums
        size = _square(host.size, vocabulary)
        noise = vocabulary * 2.0**-52 * host.size[..., 1, :, :]
        return RandomError(
            size=np.where(size > noise, size, 0.0),
            shift=_square(host.shift, vocabulary),
            drawn=_square(host.probes, vocabulary) + store,
            rest=_square(host.rest, vocabulary),
            nonlinearity=float(np.sqrt(even / odd)),
            of_state=(
                None if host.of_state is None else _square(host.of_state, vocabulary)
            ),
        )


def predicted_stable(
    sums: RandomSums, vocabulary: int
) -> Bool[np.ndarray, "batch seq"]:
    r"""Where the margin to every other token exceeds 4 sigma of the difference.

    $\sigma^2 = (s_1 - l_1 - s_j + l_j)^2 + q + (b_1^2 + b_j^2) / 3$. A few probes say
    little of one difference, so q is the largest of three: the mean of its own squares
    over probes; and the mean over all candidates of the token, and of all tokens, of
    squares over $(|w_1| + |w_j|)^2$, times the same. Beyond the candidates the largest
    norm, shift and store of the vocabulary count, and all of the vocabulary's squares.
    """
    c = jax.tree.map(np.asarray, sums.candidates)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        margin = c.logits[..., :1] - c.logits[..., 1:]
        if not margin.shape[-1]:
            return np.ones(margin.shape[:-1], bool)
        weight = (c.norms[..., :1] + c.norms[..., 1:]) ** 2
        own = np.mean((c.probes[..., :1] - c.probes[..., 1:]) ** 2, axis=0)
        # a head with rows of zeros moves nothing
        share = np.mean(own / np.where(weight > 0, weight, 1.0), axis=-1)
        pooled = np.maximum(share, np.mean(share))
        drawn = np.maximum(own, weight * pooled[..., None])
        shift = c.shift[..., :1] - c.shift[..., 1:]
        stores = (c.store[..., :1] ** 2 + c.store[..., 1:] ** 2) / 3
        stable = np.all(margin > SIGMAS * np.sqrt(shift**2 + drawn + stores), axis=-1)

        low, high = np.asarray(sums.shift_range)
        shift = np.maximum(high - c.shift[..., 0], c.shift[..., 0] - low)
        everywhere = np.mean(_square(np.asarray(sums.probes), vocabulary), axis=0)
        pooled = np.maximum(pooled, everywhere / np.asarray(sums.rows))
        drawn = (c.norms[..., 0] + np.asarray(sums.norm_max)) ** 2 * pooled
        stores = (c.store[..., 0] ** 2 + np.asarray(sums.store_max) ** 2) / 3
        beyond = margin[..., -1] > SIGMAS * np.sqrt(shift**2 + drawn + stores)
    return stable & (beyond | (c.logits.shape[-1] == vocabulary))
