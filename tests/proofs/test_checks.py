"""The checks refuse what is false, and what they cannot decide."""

import pytest


sympy = pytest.importorskip("sympy")
pytest.importorskip("flint")

from proofs import _check, _show  # noqa: E402
from proofs.__main__ import main  # noqa: E402
from proofs._statement import (  # noqa: E402
    Given,
    Hypothesis,
    Number,
    Row,
    Statement,
    Step,
)


x = sympy.Symbol("x", real=True)


def test_identities_hold_for_all_values_or_fail():
    assert _check.identity("", sympy.sin(x) ** 2 + sympy.cos(x) ** 2, 1).holds
    assert not _check.identity("", x**2, x).holds
    assert not _check.identity("", x * sympy.Rational(10**9 + 1, 10**9), x).holds


def test_an_unknown_sign_is_a_failure():
    positive = sympy.Symbol("p", positive=True)
    assert _check.sign("", positive + 1, ">").holds
    assert not _check.sign("", positive - 1, ">").holds
    assert not _check.sign("", x, ">=").holds
    assert not _check.sign("", -positive, ">").holds


def test_balls_cover_and_find_what_is_above():
    bump = lambda t: (-t * t).exp()
    assert _check.ball("", bump, -3, 3, "1.0001").holds
    assert not _check.ball("", bump, -3, 3, "0.9999", most=2000).holds
    # the largest value lies between any few samples
    spike = lambda t: 1 / (1 + (t - 0.333333) ** 2 * 10**6)
    assert not _check.ball("", spike, 0, 1, "0.99", most=2000).holds


def test_silu_constants_are_not_loose():
    from proofs.rounding import _sigmoid

    slope = lambda t: _sigmoid(t) * (1 + t * (1 - _sigmoid(t)))
    assert not _check.ball("", slope, -50, 50, "1.0998", most=2000).holds


def test_rising_from_zero_needs_both():
    y = sympy.Symbol("y", nonnegative=True)
    assert _check.rises_from_zero("", 1 - sympy.exp(-y), y).holds
    assert not _check.rises_from_zero("", 2 - sympy.exp(-y), y).holds
    assert not _check.rises_from_zero("", sympy.exp(-y) - 1, y).holds


def test_induction_needs_base_and_step():
    assert _check.induction("", base=True, step=True).holds
    assert not _check.induction("", base=False, step=True).holds
    assert not _check.induction("", base=True, step=False).holds


def test_limits_are_compared():
    n = sympy.Symbol("n", positive=True)
    assert _check.limit("", 1 / n, n, sympy.Integer(0)).holds
    assert not _check.limit("", n / (n + 1), n, sympy.Integer(0)).holds


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no hypothesis named other"):
        Given([Hypothesis("own", "")], ["other"])
    with pytest.raises(KeyError):
        assert "other" in Given([Hypothesis("own", "")])
    with pytest.raises(ValueError, match="unknown kind"):
        Step("assertion", "", True)


def row(steps, numbers):
    one = Statement("a", "a title", (), "ours", "x", lambda _: steps, lambda _: numbers)
    return Row(one, steps, numbers)


def test_a_row_without_steps_or_numbers_is_not_fine():
    good = Number("n", 0.0, 1.0, "d"), Step("lemma", "s", True)
    assert not row((), (good[0],)).proved
    assert not row((good[1],), ()).reproduced
    assert not row((good[1],), (Number("n", float("nan"), 1.0, "d"),)).reproduced


def test_a_failure_is_seen_in_table_derivation_and_page():
    failed = row((Step("sign", "wrong <b>", False),), (Number("n", 2.0, 1.0, "d"),))
    assert "FAILED" in _show.table([failed])
    assert "FAILS" in _show.derivation(failed)
    page = _show.page([failed])
    assert "class=failed" in page
    assert "<b>wrong" not in page
    assert "wrong &lt;b&gt;" in page


def test_the_command_exits_by_the_outcome(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["lora_tying", "--html", str(page)]) == 0
    assert "<math" in page.read_text()
    assert "http-equiv" not in page.read_text()
    assert "Derivation" in capsys.readouterr().out
    assert main(["lora_tying", "--broken", "one_adapter"]) == 1
    assert "FAILS" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])


def test_what_is_missing_is_named_in_one_line(monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "flint" else found(n)
    )
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error == "the proofs need python-flint: pip install python-flint\n"
