"""Measured divergence: a sublayer's output, and logits a vocabulary slice at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..arithmetic._programs import program
from ..models import VocabularySlice
from ..results._audit import LogitsAudit
from ..results._check import OutputDivergence, TextDivergence


MARGIN_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5)
POSITION_BLOCKS = 64


class LogitSums(NamedTuple):
    """Running sums over the vocabulary, each (batch, seq).

    `top`: the reference's two largest; `place`: the first of its largest; `ties`: how
    many share it; `low`: its smallest. `other_*`: the same for the execution.
    `at_other`: the reference's logit of the token that the execution chose.
    `weight`, `weighted`: sums of e^(l - top) and of e^(l - top) (l - l'),
    `other_weight` of e^(l' - other_top). `non_finite`: how many are inf or NaN.
    """

    top: Float[Array, "batch seq 2"]
    place: Int[Array, "batch seq"]
    ties: Int[Array, "batch seq"]
    low: Float[Array, "batch seq"]
    other_top: Float[Array, "batch seq"]
    other_place: Int[Array, "batch seq"]
    other_low: Float[Array, "batch seq"]
    at_other: Float[Array, "batch seq"]
    weight: Float[Array, "batch seq"]
    weighted: Float[Array, "batch seq"]
    other_weight: Float[Array, "batch seq"]
    total: Float[Array, "batch seq"]
    square: Float[Array, "batch seq"]
    difference: Float[Array, "batch seq"]
    difference_square: Float[Array, "batch seq"]
    difference_max: Float[Array, "batch seq"]
    non_finite: Int[Array, "batch seq"]
    other_non_finite: Int[Array, "batch seq"]


def no_logits(batch: int, seq: int) -> LogitSums:
    """The sums before the first slice."""
    zero: Any = np.zeros((batch, seq))
    low: Any = np.full((batch, seq), -np.inf)
    count: Any = np.zeros((batch, seq), np.int64)
    none: Any = np.stack([low, low], axis=-1)
    return LogitSums(
        top=none,
        place=count,
        ties=count,
        low=-low,
        other_top=low,
        other_place=count,
        other_low=-low,
        at_other=low,
        weight=zero,
        weighted=zero,
        other_weight=zero,
        total=zero,
        square=zero,
        difference=zero,
        difference_square=zero,
        difference_max=zero,
        non_finite=count,
        other_non_finite=count,
    )


def add_logits(sums: LogitSums, reference, other, rows: VocabularySlice) -> LogitSums:
    """Take in the logits (batch, seq, rows) of one slice of the vocabulary."""
    return _added(sums, reference, other, np.asarray(rows.start), rows.behind)


@program
def _added(sums: LogitSums, reference, other, start, behind) -> LogitSums:
    new = jnp.arange(reference.shape[-1]) >= behind
    difference = jnp.where(new, other - reference, 0.0)
    count_bad = lambda logits: jnp.sum(new & ~jnp.isfinite(logits), axis=-1)
    bad, other_bad = count_bad(reference), count_bad(other)
    total, square = (
        jnp.sum(jnp.where(new, x, 0.0), axis=-1) for x in (reference, reference**2)
    )
    low, other_low = (
        jnp.min(jnp.where(new, x, jnp.inf), axis=-1) for x in (reference, other)
    )
    reference, other = (jnp.where(new, x, -jnp.inf) for x in (reference, other))
    two = jax.lax.top_k(reference, min(2, reference.shape[-1]))[0]
    best, first = jnp.max(reference, axis=-1), jnp.argmax(reference, axis=-1)
    count = jnp.sum(new & (reference == best[..., None]), axis=-1)
    known = sums.top[..., 0]
    top = jnp.maximum(known, best)
    other_best = jnp.max(other, axis=-1)
    other_first = jnp.argmax(other, axis=-1)
    other_top = jnp.maximum(sums.other_top, other_best)
    # the lowest index wins a tie, so that only a larger one leads from here on
    leads, other_leads = best > known, other_best > sums.other_top
    there = jnp.take_along_axis(reference, other_first[..., None], axis=-1)[..., 0]
    power = jnp.exp(reference - top[..., None])
    rescale = jnp.exp(known - top)
    # a mass of 0 times an infinite difference is no mass
    weighted = jnp.where(power > 0, power * difference, 0.0)
    return LogitSums(
        top=jax.lax.top_k(jnp.concatenate([sums.top, two], axis=-1), 2)[0],
        place=jnp.where(leads, first + start, sums.place),
        ties=jnp.where(leads, count, sums.ties + jnp.where(best == known, count, 0)),
        low=jnp.minimum(sums.low, low),
        other_top=other_top,
        other_place=jnp.where(other_leads, other_first + start, sums.other_place),
        other_low=jnp.minimum(sums.other_low, other_low),
        at_other=jnp.where(other_leads, there, sums.at_other),
        weight=sums.weight * rescale + jnp.sum(power, axis=-1),
        weighted=sums.weighted * rescale - jnp.sum(weighted, axis=-1),
        other_weight=sums.other_weight * jnp.exp(sums.other_top - other_top)
        + jnp.sum(jnp.exp(other - other_top[..., None]), axis=-1),
        total=sums.total + total,
        square=sums.square + square,
        difference=sums.difference + jnp.sum(difference, axis=-1),
        difference_square=sums.difference_square + jnp.sum(difference**2, axis=-1),
        difference_max=jnp.maximum(
            sums.difference_max, jnp.max(jnp.abs(difference), axis=-1)
        ),
        non_finite=sums.non_finite + bad,
        other_non_finite=sums.other_non_finite + other_bad,
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
    """Tokens whose choice is another, and those of them that the reference ties.

    On both sides the lowest index among the largest logits is chosen, as `argmax` of
    NumPy, JAX and torch does: an execution whose leader is shared chose all the same.
    A tie is a choice of another of several equal leaders of the reference, between
    which exact arithmetic does not tell.
    Logits that are all NaN or -inf have no leader, and agree with nothing.
    """
    host = jax.tree.map(np.asarray, sums)
    leaderless = np.isnan(host.other_top) | (host.other_top == -np.inf)
    differs = (host.place != host.other_place) | leaderless
    return differs, differs & (host.at_other == host.top[..., 0]) & ~leaderless


def output_divergence(sums: LogitSums, vocab_size: int) -> OutputDivergence:
    """What the sums say about the logits.

    KL(reference || execution) per token from fp64 log-softmax:
    sum p (l - l') - (log Z - log Z'). The relative L2 is taken after removing each
    token's mean, since softmax does not see it; NaN where the reference's logits are
    one value at every token, so that nothing is left, and the execution's as well.
    Flips and ties are those of `flips`.
    """
    host = jax.tree.map(np.asarray, sums)
    # of equal logits only rounding is left of the two sums behind a variance
    flat, other_flat = host.low == host.top[..., 0], host.other_low == host.other_top
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        log_z = np.log(host.weight) + host.top[..., 0]
        other_log_z = np.log(host.other_weight) + host.other_top
        kl = host.weighted / host.weight - (log_z - other_log_z)
        # rounding can leave a KL of exactly equal logits at -1e-16
        kl = np.where(np.isnan(kl), np.inf, np.maximum(kl, 0.0))
        moved = host.difference_square - host.difference**2 / vocab_size
        moved = np.where(flat & other_flat, 0.0, moved)
        size = np.where(flat, 0.0, host.square - host.total**2 / vocab_size)
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
        reference_ties=int(np.sum(host.ties > 1)),
        constant_tokens=int(np.sum(other_flat & ~flat)),
        non_finite=int(np.sum(host.other_non_finite)),
        reference_non_finite=int(np.sum(host.non_finite)),
    )


def logits_audit(against: str, sums: LogitSums, vocab_size: int) -> LogitsAudit:
    """What the sums say as an audit tells it, beside the logits `against`."""
    found = output_divergence(sums, vocab_size)
    return LogitsAudit(
        against=against,
        rel_l2=found.measured_rel_l2,
        max=found.measured_max,
        kl_max=found.kl_max,
        flips=found.argmax_flips,
        ties=found.argmax_ties,
        kl_mean=found.kl_mean,
    )


def _texts(
    relative: Float[np.ndarray, " batch"],
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
