"""Sigma's standard error on text that repeats itself: copies are not independent."""

import numpy as np
import pytest

import lyapunov
from lyapunov.bounds._scatter import CONTEXT, contexts_of, relative_error_of, widening
from lyapunov.bounds.end_to_end import CALIBRATED, _shown_apart, _why_withheld

from ..helpers import not_none
from .estimates import held_out


def test_contexts_are_the_tokens_and_those_in_front_of_them():
    """Assert one number for a token that repeats, seven for a period of seven, all
    apart at the start and in text without repetition; the same in another sequence."""
    same = contexts_of(np.full((1, 50), 7))
    assert len(np.unique(same)) == CONTEXT
    assert len(np.unique(same[0, CONTEXT - 1 :])) == 1
    period = contexts_of(np.tile(np.arange(7), 10)[None])
    assert len(np.unique(period[0, CONTEXT - 1 :])) == 7
    assert len(np.unique(contexts_of(np.arange(50)[None]))) == 50
    twice = contexts_of(np.tile(np.arange(50), (2, 1)))
    np.testing.assert_array_equal(twice[0], twice[1])
    # what follows a start is another context than what follows the token -1 stands for
    assert contexts_of(np.zeros((1, 1), int)).shape == (1, 1)


@pytest.mark.parametrize("period", [1, 7, 48, 192])
def test_a_run_scatters_by_the_widened_error(period):
    """Assert the scatter of 4000 runs' sums, whose squares are those of one draw a
    context, against what a probe's draws at every token say, widened."""
    rng = np.random.default_rng(period)
    tokens = np.tile(np.arange(period), 192 // period)[None, : 192 // period * period]
    contexts = contexts_of(tokens)
    drawn = rng.chisquare(4, size=(4000, contexts.max() + 1))
    sums = drawn[:, contexts[0]].sum(axis=1)
    true = sums.std() / sums.mean()
    said = []
    for _ in range(200):
        squares = rng.chisquare(4, size=(1, 1, tokens.size))
        wider = widening(squares[0], contexts)
        said.append(relative_error_of(squares) * wider)
    assert np.mean(said) == pytest.approx(true, rel=0.2)
    assert wider == pytest.approx(np.sqrt(192 / period), rel=0.15)


def test_prose_is_left_as_it_is():
    """Assert less than 3 % on the bundled model's text, and 1 without any error."""
    contexts = contexts_of(np.asarray(held_out(1, 192, first=1000)))
    assert 1 <= widening(np.ones((1, 192)), contexts) < 1.03
    assert widening(np.zeros((1, 192)), contexts) == 1


@pytest.mark.parametrize("z", [1.33, 1.301, 1.3000001, 0.699, 0.69999, 0.1, 250.0])
def test_z_is_printed_with_digits_enough_to_be_outside(z):
    """Assert that the number shown is itself outside of 0.7 to 1.3."""
    shown = float(_shown_apart(z))
    assert not CALIBRATED[0] <= shown <= CALIBRATED[1]
    assert shown == pytest.approx(z, rel=0.05)
    assert f"z is {_shown_apart(z)}, outside 0.7 to 1.3" in str(_why_withheld(0.01, z))


TEXTS = {
    "a": b"a" * 192,
    "ab": b"ab" * 96,
    "the cat": (b"the cat" * 28)[:192],
    "byte 255": bytes([255]) * 192,
    "spaces": b" " * 182 + b"the letter",
    "prose": None,
    "one sentence": b"It was a bright cold day in April, and the clocks"[:48] * 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_what_was_measured_is_within_two_of_the_errors_printed(name):
    """Assert it, or that sigma is withheld; and that prose keeps its 1.5 %."""
    text = TEXTS[name]
    if text is None:
        tokens = np.asarray(held_out(1, 192, first=1000))[0]
    else:
        tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    report = lyapunov.check(
        lyapunov.load(),
        tokens,
        precisions=["bf16"],
        floor=False,
        readouts=0,
        ball=False,
    )
    found = report.precisions[0].output
    if found.sigma_t3 is None:
        assert "outside 0.7 to 1.3" in not_none(found.sigma_withheld)
        assert name != "prose"
        return
    away = abs(not_none(found.measured_rel_l2) - found.sigma_t3)
    assert away <= 2 * not_none(found.sigma_t3_stderr)
    if name == "prose":
        assert not_none(found.sigma_t3_stderr) < 0.02 * found.sigma_t3
