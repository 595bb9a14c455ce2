"""Measured divergence: a sublayer's output, and logits a vocabulary slice at a time."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._results import OutputDivergence, TextDivergence


MARGIN_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5)
POSITION_BLOCKS = 64


class LogitSums(NamedTuple):
    """Running sums over the vocabulary, each (batch, seq).

    `top`: the reference's two largest; `place`: the first of its largest; `ties`: how
    many share it. `other_*`: the same for the execution. `weight`, `weighted`: sums of
    e^(l - top) and of e^(l - top) (l - l'), `other_weight` of e^(l' - other_top).
    """

    top: Float[Array, "batch seq 2"]
    place: Int[Array, "batch seq"]
    ties: Int[Array, "batch seq"]
    other_top: Float[Array, "batch seq"]
    other_place: Int[Array, "batch seq"]
    other_ties: Int[Array, "batch seq"]
    weight: Float[Array, "batch seq"]
    weighted: Float[Array, "batch seq"]
    other_weight: Float[Array, "batch seq"]
    total: Float[Array, "batch seq"]
    square: Float[Array, "batch seq"]
    difference: Float[Array, "batch seq"]
    difference_square: Float[Array, "batch seq"]
    difference_max: Float[Array, "batch seq"]


def no_logits(batch: int, seq: int) -> LogitSums:
    """The sums before the first slice."""
    zero = jnp.zeros((batch, seq))
    low = jnp.full((batch, seq), -jnp.inf)
    count = jnp.zeros((batch, seq), jnp.int64)
    return LogitSums(
        top=jnp.full((batch, seq, 2), -jnp.inf),
        place=count,
        ties=count,
        other_top=low,
        other_place=count,
        other_ties=count,
        weight=zero,
        weighted=zero,
        other_weight=zero,
        total=zero,
        square=zero,
        difference=zero,
        difference_square=zero,
        difference_max=zero,
    )


def _leader(top, place, ties, logits, start):
    best = jnp.max(logits, axis=-1)
    count = jnp.sum(logits == best[..., None], axis=-1)
    first = jnp.argmax(logits, axis=-1) + start
    return (
        jnp.maximum(top, best),
        jnp.where(best > top, first, place),
        jnp.where(best > top, count, ties + jnp.where(best == top, count, 0)),
    )


@eqx.filter_jit
def add_logits(sums: LogitSums, reference, other, start) -> LogitSums:
    """Take in the logits (batch, seq, rows) of one slice of the vocabulary."""
    two = jax.lax.top_k(reference, min(2, reference.shape[-1]))[0]
    top, place, ties = _leader(
        sums.top[..., 0], sums.place, sums.ties, reference, start
    )
    other_top, other_place, other_ties = _leader(
        sums.other_top, sums.other_place, sums.other_ties, other, start
    )
    difference = other - reference
    power = jnp.exp(reference - top[..., None])
    rescale = jnp.exp(sums.top[..., 0] - top)
    # a mass of 0 times an infinite difference is no mass
    weighted = jnp.where(power > 0, power * difference, 0.0)
    return LogitSums(
        top=jax.lax.top_k(jnp.concatenate([sums.top, two], axis=-1), 2)[0],
        place=place,
        ties=ties,
        other_top=other_top,
        other_place=other_place,
        other_ties=other_ties,
        weight=sums.weight * rescale + jnp.sum(power, axis=-1),
        weighted=sums.weighted * rescale - jnp.sum(weighted, axis=-1),
        other_weight=sums.other_weight * jnp.exp(sums.other_top - other_top)
        + jnp.sum(jnp.exp(other - other_top[..., None]), axis=-1),
        total=sums.total + jnp.sum(reference, axis=-1),
        square=sums.square + jnp.sum(reference**2, axis=-1),
        difference=sums.difference + jnp.sum(difference, axis=-1),
        difference_square=sums.difference_square + jnp.sum(difference**2, axis=-1),
        difference_max=jnp.maximum(
            sums.difference_max, jnp.max(jnp.abs(difference), axis=-1)
        ),
    )


def by_position(per_token: Float[np.ndarray, "batch seq"]) -> list[float]:
    """Root of the sum over batch and tokens, in at most 64 equal blocks of tokens."""
    return [
        float(np.sqrt(np.sum(part)))
        for part in np.array_split(
            per_token, min(POSITION_BLOCKS, per_token.shape[1]), axis=1
        )
    ]


def flips(
    sums: LogitSums,
) -> tuple[Bool[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]:
    """Tokens whose leader is another, and tokens where a leader is shared.

    Logits that are all NaN or -inf have no leader, and agree with nothing.
    """
    host = jax.tree.map(np.asarray, sums)
    leaderless = np.isnan(host.other_top) | (host.other_top == -np.inf)
    differs = (host.place != host.other_place) | leaderless
    return differs, ((host.ties > 1) | (host.other_ties > 1)) & ~leaderless


def output_divergence(sums: LogitSums, vocab_size: int) -> OutputDivergence:
    """What the sums say about the logits.

    KL(reference || execution) per token from fp64 log-softmax:
    sum p (l - l') - (log Z - log Z'). The relative L2 is taken after removing each
    token's mean, since softmax does not see it. Ties: the lowest index wins; a flip
    where either side's leader is shared counts as a tie, not as a flip.
    """
    host = jax.tree.map(np.asarray, sums)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        log_z = np.log(host.weight) + host.top[..., 0]
        other_log_z = np.log(host.other_weight) + host.other_top
        kl = host.weighted / host.weight - (log_z - other_log_z)
        # rounding can leave a KL of exactly equal logits at -1e-16
        kl = np.where(np.isnan(kl), np.inf, np.maximum(kl, 0.0))
        moved = host.difference_square - host.difference**2 / vocab_size
        size = host.square - host.total**2 / vocab_size
        relative = np.sqrt(np.maximum(np.sum(moved), 0.0) / np.sum(size))
        by_text = np.sqrt(np.maximum(np.sum(moved, 1), 0.0) / np.sum(size, 1))
    differs, tied = flips(sums)
    margins = np.quantile(host.top[..., 0] - host.top[..., 1], MARGIN_QUANTILES)
    blocks = np.array_split(kl, min(POSITION_BLOCKS, kl.shape[1]), axis=1)
    return OutputDivergence(
        measured_rel_l2=float(relative),
        measured_max=float(np.max(host.difference_max)),
        argmax_flips=int(np.sum(differs & ~tied)),
        argmax_ties=int(np.sum(differs & tied)),
        argmax_total=int(differs.size),
        kl_mean=float(np.mean(kl)),
        kl_max=float(np.max(kl)),
        kl_by_position=[float(np.mean(block)) for block in blocks],
        margin_quantiles={
            f"{q:g}": float(m) for q, m in zip(MARGIN_QUANTILES, margins, strict=True)
        },
        texts=_texts(by_text, kl, differs, tied) if len(kl) > 1 else None,
    )


def _texts(
    relative: Float[np.ndarray, "batch"],
    kl: Float[np.ndarray, "batch seq"],
    differs: Bool[np.ndarray, "batch seq"],
    tied: Bool[np.ndarray, "batch seq"],
) -> list[TextDivergence]:
    """The same figures for each sequence on its own."""
    return [
        TextDivergence(
            measured_rel_l2=float(relative[i]),
            kl_mean=float(np.mean(kl[i])),
            kl_max=float(np.max(kl[i])),
            argmax_flips=int(np.sum(differs[i] & ~tied[i])),
            argmax_ties=int(np.sum(differs[i] & tied[i])),
        )
        for i in range(len(kl))
    ]
