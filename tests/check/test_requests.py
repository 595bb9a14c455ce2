"""What `lyapunov.check` is asked for and cannot do is refused, with what to type."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import LyapunovError, TokensError, UsageError

from .conftest import SIZES, exponents_only


@pytest.mark.parametrize("layers", [[3], [-1], [0, 99], []])
def test_layers_that_do_not_exist_are_refused(checkpoint, layers):
    """Assert one line with the number of sublayers."""
    folder, _, tokens = checkpoint
    with pytest.raises(UsageError, match="3"):
        exponents_only(folder, tokens, layers=layers)


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((2, 3, 4), int),
        np.zeros((0, 5), int),
        np.zeros((1, 1), int),
        np.array([5]),
        np.array([], int),
        np.array([0.0, 1.0]),
        np.array([True, False]),
        np.array([1, SIZES.vocab]),
        np.array([-1, 2]),
        np.array([1, 2**63], np.uint64),
        np.array(["a", "b"]),
    ],
    ids=lambda t: f"{t.dtype}{t.shape}",
)
def test_tokens_that_cannot_be_used_are_refused(checkpoint, tokens):
    """Assert `TokensError` in one line with a hint."""
    with pytest.raises(TokensError) as caught:
        exponents_only(checkpoint[0], tokens)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"precisions": ["fp12"]},
        {"precisions": ["fp64"]},
        {"state_precision": "int8"},
        {"measure": "guess"},
        {"mode": "train"},
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(checkpoint, options):
    """Assert a `LyapunovError`, before anything long is begun."""
    folder, _, tokens = checkpoint
    with pytest.raises(LyapunovError) as caught:
        lyapunov.check(str(folder), tokens, **options)
    assert "\n" not in caught.value.message
