"""Sums over slices of the vocabulary, and greedy tokens predicted to be stable."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.bounds.end_to_end import decided
from lyapunov.bounds.predicted import (
    CANDIDATES,
    SIGMAS,
    add_logits,
    no_sums,
    predicted_stable,
    random_error,
)
from lyapunov.formats import BF16
from lyapunov.implementations import mamba_ssm_prefill
from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers

from ..helpers import assert_within, gamma, not_none
from .estimates import estimates


BATCH, SEQ, VOCABULARY, PROBES = 2, 40, 200, 3


@pytest.fixture
def logits(rng):
    """reference, shifted, probes, norms of rows, the execution's."""
    norms = rng.uniform(0.5, 2, VOCABULARY)
    shape = (BATCH, SEQ, VOCABULARY)
    reference = 3 * rng.normal(size=shape)
    shifted = reference + 0.01 * norms * rng.normal(size=shape)
    probes = shifted + 0.02 * norms * rng.normal(size=(PROBES, *shape))
    other = shifted + 0.02 * norms * rng.normal(size=shape)
    return reference, shifted, probes, norms, other


def summed(logits, cuts, stored=BF16):
    reference, shifted, probes, norms, other = map(jnp.asarray, logits)
    sums = no_sums(BATCH, SEQ, PROBES, VOCABULARY - max(cuts, default=0))
    numbers = {} if stored is None else {"logits": stored.numbers()}
    for start, stop in zip((0, *cuts), (*cuts, VOCABULARY), strict=True):
        part = slice(start, stop)
        sums = add_logits(
            sums,
            reference[..., part],
            shifted[..., part],
            probes[..., part],
            norms[part],
            other[..., part],
            numbers,
        )
    return sums


def centred_square(x):
    return np.sum((x - x.mean(axis=-1, keepdims=True)) ** 2, axis=-1)


def half_ulp(x):
    return 2.0**-8 * 2.0 ** (np.frexp(np.abs(x))[1] - 1)


@pytest.mark.parametrize("cuts", [(), (64,), (10, 11, 150)])
def test_sums_are_the_norms_of_what_they_stand_for(logits, cuts):
    """Assert every norm against NumPy on whole arrays, however the slices are cut."""
    reference, shifted, probes, _, other = logits
    error = random_error(summed(logits, cuts), VOCABULARY)
    store = np.sum(half_ulp(shifted) ** 2, axis=-1) / 3 * (1 - 1 / VOCABULARY)
    tolerance = 1e4 * gamma(10 * VOCABULARY, 2.0**-53)
    for found, expected in [
        (error.size, centred_square(reference)),
        (error.shift, centred_square(shifted - reference)),
        (error.rest, centred_square(other - shifted)),
        (error.drawn, centred_square(probes - shifted) + store),
    ]:
        assert_within(found, expected, tolerance)
    even = centred_square(probes[0] + probes[-1] - 2 * shifted).sum()
    odd = centred_square(probes[0] - probes[-1]).sum()
    assert math.isclose(error.nonlinearity, (even / odd) ** 0.5, rel_tol=1e-9)


def stable_by_hand(logits):
    """Every token against every other, nothing left to a limit of the rest."""
    reference, shifted, probes, norms, _ = logits
    shift, drawn, store = shifted - reference, probes - shifted, half_ulp(shifted)
    order = np.argsort(-reference, axis=-1)
    take = lambda x: np.take_along_axis(x, order, axis=-1)
    reference, shift, store = take(reference), take(shift), take(store)
    drawn = np.stack([take(d) for d in drawn])
    norms = np.broadcast_to(norms, shift.shape)
    weight = (take(norms)[..., :1] + take(norms)[..., 1:]) ** 2
    own = np.mean((drawn[..., :1] - drawn[..., 1:]) ** 2, axis=0)
    # the mean of the token's leading candidates, and of all tokens'
    share = np.mean((own / weight)[..., : CANDIDATES - 1], axis=-1)
    pooled = np.maximum(share, share.mean())[..., None]
    variance = np.maximum(own, weight * pooled)
    variance += (shift[..., :1] - shift[..., 1:]) ** 2
    variance += (store[..., :1] ** 2 + store[..., 1:] ** 2) / 3
    margin = reference[..., :1] - reference[..., 1:]
    return np.all(margin > SIGMAS * np.sqrt(variance), axis=-1)


def test_candidates_stand_for_the_whole_vocabulary(logits):
    """Assert never more stable tokens than by hand, and hardly fewer."""
    found = predicted_stable(summed(logits, (64, 128)), VOCABULARY)
    expected = stable_by_hand(logits)
    assert 0.2 < expected.mean() < 0.95
    assert not np.any(found & ~expected)
    assert np.sum(expected & ~found) <= 1


def test_what_does_not_compete_still_counts(logits):
    """Assert that one far token whose shift or row is huge takes stability away."""
    reference, shifted, probes, norms, other = (x.copy() for x in logits)
    last = np.argmin(reference.max(axis=(0, 1)))
    moved = shifted.copy()
    moved[..., last] += 50
    changed = (reference, moved, probes - shifted + moved, norms, other)
    assert not predicted_stable(summed(changed, (64,)), VOCABULARY).any()
    norms[last] = 1e4
    assert not predicted_stable(
        summed((reference, shifted, probes, norms, other), (64,)), VOCABULARY
    ).any()


def test_a_logit_that_may_overflow_is_stable_nowhere(logits):
    """Assert no prediction, and a size that is not finite, where a probe overflowed."""
    reference, shifted, probes, norms, other = (x.copy() for x in logits)
    probes[1, 0, 3, 7] = np.inf
    sums = summed((reference, shifted, probes, norms, other), (64,))
    assert not predicted_stable(sums, VOCABULARY)[0, 3]
    assert not np.isfinite(random_error(sums, VOCABULARY).drawn[1, 0, 3])


@pytest.mark.parametrize("value", [0.0, 0.3, 77.7])
def test_logits_of_one_value_have_no_size(logits, value):
    """Assert that what rounding leaves of two sums is not taken for a size."""
    _, shifted, probes, norms, other = logits
    flat = np.full_like(shifted, value)
    sums = summed((flat, shifted, probes, norms, other), (64,))
    assert np.all(random_error(sums, VOCABULARY).size == 0)
    sound = summed(logits, (64,))
    assert np.all(random_error(sound, VOCABULARY).size > 0)


def test_promises_are_counted_with_ties_apart():
    """Assert each count on five tokens; a certified token may not even tie."""
    yes, no = True, False
    differs = np.array([[no, yes, yes, yes, no]])
    tied = np.array([[no, no, yes, yes, yes]])
    predicted = np.array([[yes, yes, yes, no, no]])
    certified = np.array([[yes, no, yes, no, no]])
    found = decided(differs, tied, predicted, certified)
    assert found.total == 5
    assert found.certified_stable == 2
    assert found.certified_flipped == 1
    assert found.predicted_stable == 3
    assert found.predicted_flipped == 1
    assert found.ties == 2
    assert decided(differs, tied, predicted, None).certified_stable is None


def test_overflow_on_the_way_withholds_sigma(tmp_path):
    """Assert it in fp16 where the same network in bf16 has a finite one."""
    save_transformers(tmp_path / "model", hard_weights("overflow"), SIZES)
    model, tokens = lyapunov.load(str(tmp_path / "model")), tokens_for("overflow")[None]
    executions = [mamba_ssm_prefill(name) for name in ("fp16", "bf16")]
    fp16, bf16 = estimates(model, tokens, executions, n_readouts=0)
    assert "overflow" in not_none(fp16.estimate.sigma_withheld)
    assert not fp16.estimate.predicted_stable.any()
    assert math.isfinite(bf16.estimate.sigma_t3)
