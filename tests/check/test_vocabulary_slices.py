"""One program takes every slice of the vocabulary, and none counts a row twice."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.bounds import predicted, seen_logits
from lyapunov.bounds.end_to_end import _taken_in
from lyapunov.bounds.probes import ProbeLogits
from lyapunov.formats import BF16
from lyapunov.models import (
    Model,
    VocabularySlice,
    _language_model as language_model,
)
from lyapunov.questions import _changes, _compare
from lyapunov.questions._reference_loss import NextTokenLoss
from lyapunov.sublayers.config import LogitsEnd

from ..helpers import gamma


BATCH, SEQ, WIDTH, VOCABULARY = 2, 5, 8, 23
APART = [VocabularySlice(i, min(i + 8, 23), np.asarray(0)) for i in (0, 8, 16)]
LARGEST = 100.0


def slices(vocabulary: int) -> list[VocabularySlice]:
    config = SimpleNamespace(vocab_size=vocabulary)
    model = SimpleNamespace(has_head=True, config=config)
    return list(Model.vocabulary_slices(model))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(language_model, "VOCABULARY_SLICE", WIDTH)


@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9, 15, 16, 23, 64, 65])
def test_slices_are_of_one_size_and_leave_no_row_out(vocabulary):
    """Assert it, and that what is behind its beginning is all that one has twice."""
    found = slices(vocabulary)
    assert {rows.stop - rows.start for rows in found} == {min(WIDTH, vocabulary)}
    once = [i for rows in found for i in range(rows.start, rows.stop)[rows.behind :]]
    assert once == [*range(vocabulary)]
    assert all(rows.start % WIDTH == 0 == rows.behind for rows in found[:-1])
    assert len(found) == -(-vocabulary // WIDTH)


@pytest.fixture
def logits(rng):
    """Of the reference and of a run, with ties and infinities where slices overlap."""
    reference = rng.integers(-3, 4, (BATCH, SEQ, VOCABULARY)).astype(float)
    other = reference + rng.normal(size=reference.shape)
    reference[0, 0, 15] = reference[0, 0, 22] = 9.0
    other[0, 1, 15], other[0, 2, 15], other[1, 1, 20] = np.inf, np.nan, np.inf
    other[0, 3, 15] = other[0, 3, 17] = 30.0
    return reference, other


def same(one, other) -> None:
    """Up to the order of sums over the vocabulary of squares of at most LARGEST."""
    error = gamma(2 * VOCABULARY, 2.0**-53)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b, size = np.asarray(a), np.asarray(b), VOCABULARY * LARGEST**2
        if a.dtype.kind == "i":
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, b, rtol=error, atol=error * size)


def test_the_distance_of_logits_is_that_of_slices_that_stand_apart(logits, programs):
    """Assert it for every sum, and that a second slice compiles nothing."""

    def sums(cuts):
        found = _compare.no_logits(BATCH, SEQ)
        for rows in cuts:
            one, other = (jnp.asarray(x[..., rows.start : rows.stop]) for x in logits)
            found = _compare.add_logits(found, one, other, rows)
        return found

    found = sums(slices(VOCABULARY))
    assert programs.count("_added") == 1
    apart = sums(APART)
    same(found, apart)
    sums_of_many = {"weight", "weighted", "other_weight", "total", "square"}
    sums_of_many |= {"difference", "difference_square"}
    for name in set(found._fields) - sums_of_many:
        np.testing.assert_array_equal(getattr(found, name), getattr(apart, name))


def test_the_loss_is_that_of_slices_that_stand_apart(logits, rng):
    """Assert it for every token."""
    ids = rng.integers(0, VOCABULARY, (BATCH, SEQ))
    found = []
    for cuts in (slices(VOCABULARY), APART):
        loss = NextTokenLoss(ids)
        for rows in cuts:
            loss.add(logits[0][..., rows.start : rows.stop], rows)
        found.append(loss.bits())
    same(*found)


def test_random_roundings_are_those_of_slices_that_stand_apart(
    logits, rng, programs, monkeypatch
):
    """Assert it for every sum behind T3, and that one program takes all slices, the
    first as well; a slice has more rows than there are candidates."""
    monkeypatch.setattr(predicted, "CANDIDATES", 4)
    shifted, *drawn = (logits[0] + rng.normal(size=logits[0].shape) for _ in range(3))
    arrays = logits[0], shifted, np.stack(drawn), rng.random(VOCABULARY)

    def sums(cuts):
        found = predicted.no_sums(BATCH, SEQ, 2, WIDTH)
        for start, stop, behind in cuts:
            reference, *probes = (jnp.asarray(x[..., start:stop]) for x in arrays)
            drawn = ProbeLogits(probes[0], probes[1], probes[2], None)
            other, sites = logits[1][..., start:stop], {"logits": BF16.numbers()}
            given = (
                reference,
                drawn,
                other,
                sites,
                LogitsEnd(),
                behind,
                None,
            )
            found, _ = _taken_in(found, *given)
        return found

    found = sums(slices(VOCABULARY))
    assert programs.count("_taken_in") == 1
    assert np.all(np.isfinite(found.candidates.logits))
    same(found, sums(APART))


def test_a_few_log_probabilities_are_those_of_slices_that_stand_apart(
    logits, rng, programs
):
    """Assert it, and that a second slice compiles nothing."""
    runs = np.stack([logits[0], logits[0] + 0.5, logits[0] - 0.5])
    ids = rng.integers(-1, VOCABULARY, (BATCH, SEQ, 3))
    seen = SimpleNamespace(ids=ids, positions=np.arange(SEQ), tokens=(BATCH, SEQ))
    numbers = {"logits": BF16.numbers()}

    def sums(cuts):
        held = seen_logits.SeenFew(seen, 1)  # type: ignore[arg-type]
        for rows in cuts:
            own = runs[..., rows.start : rows.stop]
            norms = np.ones(own.shape[-1])
            given: Any = own[0], own[1], own[2:], norms, numbers, 0.0, LogitsEnd()
            held.add(seen_logits.Slice(rows, *given))
        return held._sums

    found = sums(slices(VOCABULARY))
    assert programs.count("_take") == 1
    same(found, sums(APART))


def test_changed_weights_are_those_of_slices_that_stand_apart(logits, rng, programs):
    """Assert it for the tangent of the logits, and that one program takes all."""
    normed, pushed = rng.normal(size=(2, BATCH, SEQ, 3))
    heads = rng.normal(size=(2, VOCABULARY, 3))

    def sums(cuts):
        found = np.zeros((4, 2, BATCH, SEQ))
        for start, stop, behind in cuts:
            own = *heads[:, start:stop], *(x[..., start:stop] for x in logits)
            given = found, normed, pushed, *own, LogitsEnd(), behind
            found = _changes._add_head(*given)
        return found

    found = sums(slices(VOCABULARY))
    assert programs.count("_add_head") == 1
    same(found, sums(APART))
