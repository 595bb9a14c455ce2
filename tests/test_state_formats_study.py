"""The study of state formats counts changed tokens as the library does."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from analysis.state_formats import compare
from lyapunov.models import VocabularySlice
from lyapunov.questions._compare import add_logits, no_logits, output_divergence

from .helpers import not_none


RESULTS = Path(__file__).parents[1] / "analysis" / "results" / "state_formats.json"


def test_the_study_counts_as_the_library_does(rng):
    """Assert flips, ties, KL and distance on logits of a few values, where ties of
    either side abound."""
    for _ in range(10):
        exact, other = (rng.integers(0, 4, (2, 5, 12)).astype(float) for _ in range(2))
        rows = VocabularySlice(0, exact.shape[-1], np.asarray(0))
        sums = add_logits(no_logits(2, 5), jnp.asarray(exact), jnp.asarray(other), rows)
        ours, theirs = output_divergence(sums, 12), compare(exact, other)
        assert theirs["flips"] == ours.argmax_flips
        assert theirs["ties"] == ours.argmax_ties
        np.testing.assert_allclose(
            theirs["kl_mean"], not_none(ours.kl_mean), rtol=1e-12
        )
        np.testing.assert_allclose(
            theirs["rel_l2"], not_none(ours.measured_rel_l2), rtol=1e-12
        )


def test_committed_flips_leave_nothing_out():
    """The reference ties none of these tokens, so no changed one is a tie."""
    rows = json.loads(RESULTS.read_text())["rows"]
    assert all(not row.get("ties") for row in rows)
