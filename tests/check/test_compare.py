"""The logits' divergence, gathered slice by slice, against whole arrays in SciPy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from lyapunov.models import VocabularySlice
from lyapunov.questions._compare import (
    MARGIN_QUANTILES,
    add_logits,
    by_position,
    no_logits,
    output_divergence,
)

from ..helpers import gamma, not_none


BATCH, SEQ, VOCAB = 2, 5, 12
SLICINGS = {
    "whole": [12],
    "halves": [6, 6],
    "single tokens": [1] * 12,
    "uneven": [1, 7, 4],
    "last alone": [11, 1],
}
UNIT = 2.0**-53


def gather(reference, other, lengths):
    sums = no_logits(*reference.shape[:2])
    bounds = itertools.pairwise(np.cumsum([0, *lengths]))
    for start, stop in bounds:
        sums = add_logits(
            sums,
            jnp.asarray(reference[..., start:stop]),
            jnp.asarray(other[..., start:stop]),
            VocabularySlice(start, stop, np.asarray(0)),
        )
    return output_divergence(sums, reference.shape[-1])


def kl(reference, other):
    left, right = log_softmax(reference, axis=-1), log_softmax(other, axis=-1)
    return np.sum(np.exp(left) * (left - right), axis=-1)


def relative(reference, other):
    def centred(x):
        return x - x.mean(axis=-1, keepdims=True)

    moved = centred(other) - centred(reference)
    return np.linalg.norm(moved) / np.linalg.norm(centred(reference))


def pairs(rng, noise, offset=0.0):
    reference = 5 * rng.normal(size=(BATCH, SEQ, VOCAB)) + offset
    return reference, reference + noise * rng.normal(size=reference.shape)


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
@pytest.mark.parametrize("noise", [1e-6, 0.03, 3.0, 60.0])
def test_slices_give_what_whole_arrays_give(rng, lengths, noise):
    """Assert KL, relative L2, maximum, flips and margins for any cut."""
    reference, other = pairs(rng, noise)
    found = gather(reference, other, lengths)
    expected = kl(reference, other)
    # about VOCAB sums of numbers of this size, and logarithms of them
    size = np.abs(reference).max() + np.abs(other).max()
    error = gamma(8 * VOCAB, UNIT) * size
    assert found.kl_mean == pytest.approx(expected.mean(), abs=error)
    assert found.kl_max == pytest.approx(expected.max(), abs=error)
    by_token = expected.mean(axis=0)
    np.testing.assert_allclose(
        not_none(found.kl_by_position), by_token, atol=error, rtol=0
    )
    # sums of squares lose the mean's square: 2 ||x||^2 V u over ||moved||^2
    ratio = relative(reference, other)
    assert found.measured_rel_l2 == pytest.approx(ratio, rel=1e3 * VOCAB * UNIT)
    assert found.measured_max == np.abs(other - reference).max()
    flips = reference.argmax(-1) != other.argmax(-1)
    assert found.argmax_flips == flips.sum()
    assert found.argmax_ties == found.reference_ties == 0
    assert found.non_finite == found.reference_non_finite == found.constant_tokens == 0
    assert found.argmax_total == BATCH * SEQ
    top = np.sort(reference, axis=-1)
    margins = np.quantile(top[..., -1] - top[..., -2], MARGIN_QUANTILES)
    np.testing.assert_array_equal(
        list(not_none(found.margin_quantiles).values()), margins
    )


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_what_softmax_does_not_see_is_removed(rng, lengths):
    """Assert that a shift of all logits of a token is neither KL nor relative L2."""
    reference, _ = pairs(rng, 0)
    shift = 2.0 ** rng.integers(-3, 6, (BATCH, SEQ, 1))
    found = gather(reference, reference + shift, lengths)
    assert not_none(found.kl_max) <= gamma(8 * VOCAB, UNIT) * 100
    # the root of what cancels: V u of the squared shift
    assert found.measured_rel_l2 <= np.sqrt(gamma(4 * VOCAB, UNIT)) * shift.max()
    assert found.measured_max == pytest.approx(shift.max(), rel=1e-13)
    assert found.argmax_flips == 0


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_equal_logits_diverge_by_nothing(rng, lengths):
    """Assert zeros throughout, KL not negative, for logits of 1e4 as well."""
    for scale in (1.0, 2.0**13):
        reference, _ = pairs(rng, 0)
        found = gather(scale * reference, scale * reference, lengths)
        assert found.measured_rel_l2 == found.measured_max == 0
        assert 0 <= not_none(found.kl_max) <= gamma(8 * VOCAB, UNIT) * scale * 50
        assert found.argmax_flips == found.argmax_ties == 0


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_lowest_index_wins_a_tie_and_ties_are_counted_apart(lengths):
    """Assert it within a slice and across slices, on either side."""
    reference = np.zeros((1, 6, VOCAB))
    other = np.zeros((1, 6, VOCAB))
    reference[..., 7] = other[..., 7] = 3.0
    other[0, 1, 9] = 3.0  # tie after the leader: 7 still wins, no flip
    other[0, 2, 2] = 3.0  # tie before it: 2 wins, a flip
    other[0, 3, 2] = 3.5  # a flip
    reference[0, 4, 2] = 3.0  # the reference is tied, and 2 leads it: a tie
    other[0, 5] = 0.0  # all equal: 0 leads, a flip
    found = gather(reference, other, lengths)
    assert found.argmax_flips == 3
    assert found.argmax_ties == 1
    assert found.argmax_total == 6
    assert found.reference_ties == 1
    assert found.constant_tokens == 1
    margins = not_none(found.margin_quantiles)
    assert margins["0"] == 0.0
    assert margins["0.5"] == 3.0


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_changed_tokens_are_those_of_two_argmaxes_however_many_tie(rng, lengths):
    """Assert it against NumPy's argmax for logits of a few values, where ties abound:
    only a choice of another of the reference's own leaders is told apart."""
    flips = ties = 0
    for _ in range(20):
        shape = BATCH, SEQ, VOCAB
        reference, other = (rng.integers(0, 4, shape).astype(float) for _ in range(2))
        found = gather(reference, other, lengths)
        chosen, choice = reference.argmax(-1), other.argmax(-1)
        there = np.take_along_axis(reference, choice[..., None], -1)[..., 0]
        changed = chosen != choice
        apart = changed & (there == reference.max(-1))
        assert found.argmax_flips == np.sum(changed & ~apart)
        assert found.argmax_ties == np.sum(apart)
        leaders = np.sum(reference == reference.max(-1, keepdims=True), axis=-1)
        assert found.reference_ties == np.sum(leaders > 1)
        by_text = [text.argmax_flips for text in not_none(found.texts)]
        np.testing.assert_array_equal(by_text, np.sum(changed & ~apart, axis=1))
        assert (
            sum(text.argmax_ties for text in not_none(found.texts)) == found.argmax_ties
        )
        flips, ties = flips + found.argmax_flips, ties + found.argmax_ties
    assert min(flips, ties) > 20


def test_an_execution_that_ties_where_the_reference_does_not_has_changed():
    """Assert it for the case of a bf16 head with an offset: 77 of steps of a half."""
    reference = np.zeros((BATCH, SEQ, VOCAB))
    reference[..., 5], reference[..., 9] = 77.1, 77.2
    other = np.where(reference > 0, 77.0, reference)
    found = gather(reference, other, [VOCAB])
    assert (found.argmax_flips, found.argmax_ties) == (BATCH * SEQ, 0)


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_a_head_of_zeros_has_no_distance_and_every_logit_is_finite(lengths):
    """Assert what a head that starts at zero (as muP has it) is told: relative L2 not
    defined, KL 0, nothing changed, nothing infinite, for other constants too."""
    for value in (0.0, 0.3):
        same = np.full((BATCH, SEQ, VOCAB), value)
        found = gather(same, same, lengths)
        assert np.isnan(not_none(found.measured_rel_l2))
        assert all(np.isnan(text.measured_rel_l2) for text in not_none(found.texts))
        assert found.kl_mean == pytest.approx(0.0, abs=gamma(8 * VOCAB, UNIT))
        assert found.argmax_flips == found.argmax_ties == 0
        assert found.non_finite == found.constant_tokens == 0
        assert found.reference_ties == BATCH * SEQ
        # what has a direction where the reference has none is infinitely far from it
        apart = same.copy()
        apart[1, 2, 3] += 1e-3
        assert gather(same, apart, lengths).measured_rel_l2 == np.inf


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_tokens_of_one_value_are_counted_where_the_reference_has_several(rng, lengths):
    """Assert it beside tokens that are constant in both, or in the reference alone."""
    reference, other = pairs(rng, 0.1)
    other[0, 1:3] = 0.0
    reference[1, 0] = other[1, 0] = 2.5
    reference[1, 1] = 1.0
    found = gather(reference, other, lengths)
    assert found.constant_tokens == 2


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_overflowed_logits_are_infinitely_far(rng, lengths):
    """Assert KL inf for +inf, -inf and NaN at a token, whatever the slice."""
    for bad in (np.inf, -np.inf, np.nan):
        for place in range(VOCAB):
            reference, other = pairs(rng, 0.01)
            other[0, 2, place] = bad
            with np.errstate(all="raise"):
                found = gather(reference, other, lengths)
            assert found.kl_max == np.inf
            assert found.kl_mean == np.inf
            assert not_none(found.kl_by_position)[2] == np.inf
            finite = [k for i, k in enumerate(not_none(found.kl_by_position)) if i != 2]
            assert np.isfinite(finite).all()
            assert not np.isfinite(not_none(found.measured_max))
            assert not np.isfinite(not_none(found.measured_rel_l2))
            assert (found.non_finite, found.reference_non_finite) == (1, 0)


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_a_token_of_nothing_but_overflow_is_no_agreement(rng, lengths):
    """Assert that logits that are all NaN, or all -inf, do not count as no flip."""
    for bad in (np.nan, -np.inf):
        reference, other = pairs(rng, 0.0)
        reference[0, 2, 0] = 100.0
        other[0, 2] = bad
        found = gather(reference, other, lengths)
        assert found.argmax_flips + found.argmax_ties == 1, bad


def test_one_infinite_logit_leads(rng):
    """Assert that +inf at another place than the leader's is a flip."""
    reference, other = pairs(rng, 0.0)
    place = reference[0, 2].argmin()
    other[0, 2, place] = np.inf
    for lengths in SLICINGS.values():
        assert gather(reference, other, lengths).argmax_flips == 1


def test_far_apart_logits_neither_overflow_nor_vanish(rng):
    """Assert KL between sharp distributions of logits of some thousands."""
    reference, other = pairs(rng, 0.0)
    reference, other = 1000 * reference, -1000 * other
    expected = kl(reference, other)
    for lengths in SLICINGS.values():
        found = gather(reference, other, lengths)
        assert found.kl_mean == pytest.approx(expected.mean(), rel=1e-12)


@pytest.mark.parametrize("lengths", SLICINGS.values(), ids=SLICINGS)
def test_each_text_is_measured_as_if_it_were_alone(rng, lengths):
    """Assert that a batch's texts equal what each gives on its own, and that one
    text is not told twice."""
    reference, other = pairs(rng, 2.0)
    other[1] += 3.0 * rng.normal(size=other[1].shape)
    other[1, 2, 4] = other[1, 2].max()
    texts = not_none(gather(reference, other, lengths).texts)
    assert len(texts) == BATCH
    for i, text in enumerate(texts):
        alone = gather(reference[i : i + 1], other[i : i + 1], lengths)
        assert alone.texts is None
        for name in ("measured_rel_l2", "kl_mean", "kl_max"):
            # the same sums in another order of at most SEQ of them
            found, expected = getattr(text, name), getattr(alone, name)
            assert found == pytest.approx(expected, rel=gamma(SEQ, UNIT))
        assert text.argmax_flips == alone.argmax_flips
        assert text.argmax_ties == alone.argmax_ties
    assert texts[0].measured_rel_l2 < texts[1].measured_rel_l2


def test_a_text_that_overflows_leaves_the_others_alone(rng):
    """Assert that infinities stay with the sequence that has them."""
    reference, other = pairs(rng, 0.01)
    other[1, 3, 0] = np.nan
    first, second = not_none(gather(reference, other, [VOCAB]).texts)
    assert first.kl_max < 1
    assert second.kl_max == np.inf
    assert not np.isfinite(second.measured_rel_l2)


def test_positions_are_gathered_in_at_most_64_blocks(rng):
    """Assert roots of sums of squares over equal blocks of tokens."""
    squares = rng.random((3, 130))
    blocks = by_position(squares)
    assert len(blocks) == 64
    assert np.sum(np.square(blocks)) == pytest.approx(squares.sum(), rel=1e-13)
    assert blocks[0] == pytest.approx(np.sqrt(squares[:, :3].sum()), rel=1e-14)
    short = by_position(squares[:, :5])
    np.testing.assert_allclose(short, np.sqrt(squares[:, :5].sum(0)), rtol=1e-14)
