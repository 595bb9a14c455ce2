"""Every statement is proved and reproduced, and each of its hypotheses is needed."""

import pytest


pytest.importorskip("sympy")
pytest.importorskip("mpmath")
pytest.importorskip("flint")

from proofs._catalogue import STATEMENTS


BY_NAME = {one.name: one for one in STATEMENTS}
HYPOTHESES = [(one.name, each.name) for one in STATEMENTS for each in one.hypotheses]

# Where the numbers can be tried without the hypothesis, they must fail as well.
NUMBERS = [
    ("maximal_exponent", "negative"),
    ("deviation", "below_one"),
    ("left_out", "fed_back"),
    ("left_out", "finite_precision"),
    ("lora_tying", "one_adapter"),
    ("rounding", "counted_depth"),
    ("rounding", "nearest"),
    ("input_to_state", "negative"),
    ("delta_norm", "rate"),
    ("delta_determinant", "same_key"),
    ("delta_exponent", "rate"),
    ("delta_exponent", "not_spanned"),
    ("delta_keys", "nearest"),
    ("delta_channels", "mixing"),
    ("delta_channels", "rate"),
    ("delta_inverse", "decay_first"),
    ("delta_inverse", "rate"),
    ("delta_chunk", "start_faded"),
    ("delta_chunk", "rate"),
]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_step_holds(name):
    row = BY_NAME[name].run(numbers=False)
    assert row.proved, [step.text for step in row.steps if not step.holds]


@pytest.mark.parametrize(("name", "hypothesis"), HYPOTHESES)
def test_a_derivation_fails_without_its_hypothesis(name, hypothesis):
    assert not BY_NAME[name].run([hypothesis], numbers=False).proved


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"stack", "step_jacobian"}))
def test_numbers_agree(name):
    row = BY_NAME[name].run()
    assert row.reproduced, [one for one in row.numbers if not one.holds]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stack", "step_jacobian"])
def test_numbers_of_compiled_steps_agree(name):
    row = BY_NAME[name].run()
    assert row.reproduced, [one for one in row.numbers if not one.holds]


@pytest.mark.parametrize(("name", "hypothesis"), NUMBERS)
def test_numbers_fail_without_the_hypothesis(name, hypothesis):
    assert not BY_NAME[name].run([hypothesis]).reproduced


def test_all_fifteen_statements_say_whose_they_are():
    assert len(STATEMENTS) == 15
    for one in STATEMENTS:
        assert any(word in one.whose for word in ("paper", "ours", "elsewhere"))
        assert one.used
        assert one.hypotheses


def test_proofs_use_public_names_of_the_library_alone():
    import ast
    from pathlib import Path

    import proofs

    for path in Path(proofs.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module, *(each.name for each in node.names)]
            elif isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            if names and names[0].startswith("lyapunov"):
                parts = [part for name in names for part in name.split(".")]
                assert not [p for p in parts if p.startswith("_")], (path.name, parts)
