"""Assert that each finding fires when it should and is silent when it should not."""

import dataclasses
import math

import pytest

from lyapunov._errors import UsageError
from lyapunov.findings import _rules as findings
from lyapunov.formats import Precision
from lyapunov.formats._table import FORMAT_TABLE, NARROW_RANGE, STATE_PRECISIONS
from lyapunov.questions._cause import StateFacts, state_cause
from lyapunov.results._check import (
    Decisions,
    Exponents,
    Finding,
    FunctionDistance,
    LayerChange,
    LayerDivergence,
    LayerExponents,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
)

from .report.example import delta_exponents


def _exponents(**fields) -> Exponents:
    row = LayerExponents(**{"layer": 3, "kind": "mamba1", "max": -0.01, **fields})
    return Exponents(row.max, row.min, 0, 3, None, None, 512, [row])


def _execution(precision="bf16", state="fp32", output=None, **fields):
    row = LayerDivergence(**{"layer": 3, "kind": "mamba1", **fields})
    given = {"argmax_total": 512, "measured_rel_l2": 1e-3, **(output or {})}
    output = OutputDivergence(**given)
    return PrecisionReport(precision, state, "flow", "prefill", "x", [row], output)


def _codes(exponents=None, *executions, settings=None):
    found = findings.find(exponents or _exponents(), executions, settings or {})
    return [finding.code for finding in found]


def test_a_healthy_report_has_no_findings():
    healthy = _exponents(
        min=-20.0,
        max_abs_state=90.0,
        max_abs_output=400.0,
        decay_is_one={"fp32": 1e-5, "bf16": 0.4},
        dt_min=1e-4,
    )
    execution = _execution(max_abs_stored={"gated": 200.0}, stagnation=0.01)
    assert _codes(healthy, execution) == []


@pytest.mark.parametrize(
    ("largest", "fires"), [(0.0, True), (0.3, True), (-1.0, False)]
)
def test_exponent_not_negative(largest, fires):
    assert ("LYA001" in _codes(_exponents(max=largest))) is fires


def test_layers_without_recurrence_have_no_exponent_to_judge():
    assert _codes(_exponents(max=None, reason="no recurrence")) == []


@pytest.mark.parametrize(
    ("fields", "fires"),
    [
        ({"max": math.nan}, True),
        ({"max_abs_state": math.inf}, True),
        ({"max_abs_output": math.nan}, True),
        ({"max": -math.inf}, False),
    ],
)
def test_reference_not_finite(fields, fires):
    assert ("LYA002" in _codes(_exponents(**fields))) is fires


@pytest.mark.parametrize(
    ("fields", "fires"),
    [
        ({"non_finite": 2}, True),
        ({"output": {"non_finite": 1}}, True),
        # a head of zeros: 0 / 0 is no logit that is not finite
        ({"output": {"measured_rel_l2": math.nan, "kl_max": 0.0}}, False),
        ({"output": {"kl_max": math.inf}}, True),
        ({"output": {"kl_max": 3.0}}, False),
    ],
)
def test_execution_not_finite(fields, fires):
    assert ("LYA002" in _codes(None, _execution(**fields))) is fires


def test_bound_violated_names_the_first_element():
    first = {"tensor": "gated", "batch": 0, "token": 17, "channel": 5}
    first |= {"measured": 0.3, "bound": 0.01}
    execution = _execution(violations=2, elements_total=100, first_violation=first)
    (finding,) = findings.find(_exponents(), [execution])
    assert finding.code == "LYA003"
    assert finding.severity == "error"
    assert (finding.value, finding.limit) == (0.3, 0.01)
    assert (finding.layer, finding.precision) == (3, "bf16")
    assert "2 of 100" in finding.message
    assert "gated at batch 0, token 17, channel 5" in finding.message


def test_a_violation_without_its_place_is_told_all_the_same():
    assert _codes(None, _execution(violations=1)) == ["LYA003"]


def test_flips_are_told_and_ties_are_not_flips():
    assert _codes(None, _execution(output={"argmax_ties": 9})) == []
    execution = _execution(output={"argmax_flips": 4, "argmax_ties": 1})
    (finding,) = findings.find(_exponents(), [execution])
    assert (finding.code, finding.severity) == ("LYA004", "warning")
    assert "4 of 512" in finding.message
    assert "1 tie not counted" in finding.message


@pytest.mark.parametrize(
    ("precision", "state", "stored", "fires"),
    [
        ("fp16", "fp32", {"gated": 9000.0}, True),
        ("fp16", "fp32", {"gated": 8000.0}, False),
        ("bf16", "fp32", {"gated": 9e9}, False),
        ("fp16", "fp32", {"state": 9e9}, False),
        ("bf16", "fp16", {"state": 60000.0, "gated": 9e9}, True),
        ("fp8_e4m3", "fp32", {"out": 100.0}, True),
    ],
)
def test_range_at_risk(precision, state, stored, fires):
    execution = _execution(precision, state, max_abs_stored=stored)
    assert ("LYA005" in _codes(None, execution)) is fires


def test_range_says_how_far_overflow_is():
    execution = _execution("fp16", max_abs_stored={"xz": 9000.0, "out": 32752.0})
    (finding,) = findings.find(_exponents(), [execution])
    assert "out reaches" in finding.message
    assert "a factor 2 from overflow" in finding.message
    assert finding.limit == 65504.0


def test_range_falls_back_on_the_reference():
    assert _codes(_exponents(max_abs_output=6e4), _execution("fp16")) == ["LYA005"]
    assert _codes(_exponents(max_abs_state=6e4), _execution("fp16")) == []


@pytest.mark.parametrize(
    ("fields", "state", "fires"),
    [
        ({"max": -1e-9}, "fp32", True),
        ({"max": -1e-6}, "fp32", False),
        ({"max": -1e-3}, "bf16", True),
        ({"max": -0.01}, "bf16", False),
        ({"decay_is_one": {"bf16": 0.3}}, "bf16", True),
        ({"decay_is_one": {"bf16": 0.3}}, "fp32", False),
        ({"decay_is_one": {"bf16": 0.005}}, "bf16", False),
        ({"dt_min": 0.0}, "fp32", True),
        ({"dt_min": 1e-30}, "fp32", False),
    ],
)
def test_marginal_decay(fields, state, fires):
    codes = _codes(_exponents(**fields), _execution(state=state))
    assert ("LYA006" in codes) is fires


def test_a_state_that_is_stored_rarely_forgets_in_between():
    """Assert that decays are those between two stores: 16 tokens make bf16 tell a mean
    decay from 1 that a single token does not, and single tokens count no more."""

    def fires(every, **fields):
        row = dataclasses.replace(_execution(state="bf16"), state_stored_every=every)
        return "LYA006" in _codes(_exponents(**fields), row)

    # bf16 tells exp(-0.00195) from 1, 2^-9 in nats
    assert fires(1, max=-1e-3)
    assert not fires(16, max=-1e-3)
    assert fires(16, max=-1e-4)
    assert not fires(16, decay_is_one={"bf16": 0.3})
    # of two executions of one format the one that stores more often counts
    often = _execution("fp16", "bf16")
    rarely = dataclasses.replace(_execution(state="bf16"), state_stored_every=16)
    for both in ((often, rarely), (rarely, often)):
        assert "LYA006" in _codes(_exponents(max=-1e-3), *both)


def test_an_exponent_of_a_delta_rule_is_no_mean_of_decays():
    """Assert that near 0 it says nothing of decays, and that its gates do."""
    near = {"max": -1e-9, "decay_is_one": {"bf16": 0.0}}
    heads = delta_exponents(0).heads
    assert "LYA006" in _codes(_exponents(**near), _execution(state="bf16"))
    assert "LYA006" not in _codes(
        _exponents(**near, heads=heads), _execution(state="bf16")
    )
    gates = near | {"decay_is_one": {"bf16": 0.3}, "heads": heads}
    assert "LYA006" in _codes(_exponents(**gates), _execution(state="bf16"))


def test_marginal_decay_without_executions_takes_the_settings_state():
    exponents = _exponents(decay_is_one={"bf16": 0.3})
    assert _codes(exponents) == []
    assert _codes(exponents, settings={"state_precision": "bf16"}) == ["LYA006"]


@pytest.mark.parametrize(
    ("share", "fires"), [(0.2, True), (0.01, False), (None, False)]
)
def test_stagnation(share, fires):
    assert ("LYA007" in _codes(None, _execution(stagnation=share))) is fires


LOSSES = {
    "LYA005": {"max_abs_stored": {"state": 1e9}},
    "LYA006": {"max": -1e-9, "decay_is_one": dict.fromkeys(FORMAT_TABLE, 0.3)},
    "LYA007": {"stagnation": 0.4},
}
"""What each finding about the state's format fires on."""


@pytest.mark.parametrize("code", LOSSES)
@pytest.mark.parametrize("state", [s for s in STATE_PRECISIONS if s != "fp32"])
def test_what_a_scale_and_stochastic_rounding_mend_is_not_found(code, state):
    """Assert that a scale takes away the limit of the range, and stochastic rounding
    those of updates and decays that rounding to nearest loses every time."""
    held = Precision.named(state)
    form, scaled, stochastic = held.format, held.scaled, held.stochastic
    loss = LOSSES[code]
    row = {"max_abs_stored", "stagnation"} & set(loss)
    exponents = _exponents(**({} if row else loss))
    execution = _execution("fp32", state, **(loss if row else {}))
    mended = {"LYA005": scaled, "LYA006": stochastic, "LYA007": stochastic}[code]
    concerned = {
        "LYA005": form in FORMAT_TABLE and FORMAT_TABLE[form].largest < NARROW_RANGE,
        # a decay is never held in an integer: what it loses there LYA007 counts
        "LYA006": form in FORMAT_TABLE,
        "LYA007": True,
    }[code]
    assert (code in _codes(exponents, execution)) is (concerned and not mended)


@pytest.mark.parametrize("state", [s for s in STATE_PRECISIONS if "stochastic" in s])
def test_stochastic_rounding_is_not_advised_against_for_stagnation(state):
    """Assert that neither the cause nor the advice calls it stagnation, and that a
    mantissa of few bits counts only where it does harm."""
    facts = [StateFacts(3, 1.0, 0.0, 0.4)]
    cause = state_cause(state, facts, state_share=0.9)
    assert cause is not None
    assert cause.startswith("mantissa")
    for flips, advised in ((1, False), (90, True)):
        output = {"argmax_flips": flips, "kl_mean": 3e-3, "cause": cause}
        execution = _execution("fp32", state, output, stagnation=0.4)
        found = findings.find(_exponents(), [execution])
        line = findings.recommendation(_exponents(), [execution], found)
        assert ("Keep the state in fp32" in line) is advised
    assert "not raised" in findings.CATALOGUE["LYA007"].explanation


def test_lost_dynamics_carry_the_words():
    found = findings.find(_exponents(suspicions=["dt_bias is zero", "D is one"]), [])
    assert [finding.code for finding in found] == ["LYA008"]
    assert found[0].message == "dt_bias is zero; D is one"


def test_errors_come_first_and_order_is_stable():
    exponents = _exponents(max=0.1, suspicions=["x"])
    execution = _execution(violations=1, stagnation=0.5, output={"argmax_flips": 1})
    codes = _codes(exponents, execution)
    assert codes == ["LYA001", "LYA003", "LYA004", "LYA007", "LYA008"]


def test_catalogue_explains_every_code():
    for code, kind in findings.CATALOGUE.items():
        assert kind.code == code
        assert kind.severity in ("error", "warning")
        assert kind.explanation.count(". ") >= 2
        assert kind.title[:1].islower()


# --- The verdict -----------------------------------------------------------------

ERROR = Finding("LYA003", "error", 1, "m")
WARNING = Finding("LYA004", "warning", None, "m")


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        ([], {}, ("held", 0)),
        ([WARNING], {}, ("held", 0)),
        ([WARNING], {"fail_on": "warning"}, ("findings", 1)),
        ([ERROR], {}, ("findings", 1)),
        ([ERROR], {"exit_zero": True}, ("findings", 0)),
        ([ERROR], {"ignore": ["LYA003"]}, ("held", 0)),
        ([ERROR], {"select": ["LYA004"]}, ("held", 0)),
        ([ERROR], {"select": ["LYA00"], "ignore": ["LYA"]}, ("findings", 1)),
        ([ERROR], {"select": ["LYA"], "ignore": ["LYA003"]}, ("held", 0)),
        ([], {"skipped": 1}, ("incomplete", 2)),
        ([], {"skipped": 1, "exit_zero": True}, ("incomplete", 2)),
        ([], {"skipped": 1, "allow_partial": True}, ("held", 0)),
        ([ERROR], {"skipped": 1}, ("findings", 1)),
        ([ERROR], {"skipped": 1, "exit_zero": True}, ("findings", 2)),
        ([], {"checked": 0, "allow_partial": True}, ("incomplete", 2)),
    ],
)
def test_verdict(found, options, expected):
    assert findings.verdict(found, **{"checked": 4, **options}) == expected


def test_unknown_severities_and_codes_are_refused():
    with pytest.raises(UsageError):
        findings.verdict([], checked=1, fail_on="never")
    with pytest.raises(UsageError, match="LYA9"):
        findings.check_codes(["LYA9"])
    assert findings.check_codes([" lya00 ", "LYA001"]) == ("LYA00", "LYA001")


def test_a_certified_token_that_flips_is_a_bug():
    """Assert that a promise broken is an error, and a promise kept is silent."""
    kept = Decisions(512, 300, 0, 400, 0, 0)
    broken = Decisions(512, 300, 2, 400, 2, 0)
    assert "LYA003" not in _codes(None, _execution(output={"decisions": kept}))
    found = findings.find(_exponents(), [_execution(output={"decisions": broken})])
    (bug,) = [finding for finding in found if finding.code == "LYA003"]
    assert bug.message == "2 top tokens of 300 that are certified stable changed"
    assert (bug.value, bug.limit, bug.layer) == (2.0, 0.0, None)


@pytest.mark.parametrize(
    ("rel_l2", "limit", "told"),
    [
        (0.036, [0.001, math.inf], "limits dt to [0.001, inf] in prefill"),
        (0.036, [0.0, math.inf], "does not limit dt in prefill"),
        (1e-12, [0.001, math.inf], None),
    ],
)
def test_another_function_is_no_violation(rel_l2, limit, told):
    """Assert one finding for all precisions, which names both and their distance."""
    function = FunctionDistance(
        "transformers", "prefill", limit, [0.0, 0.05], rel_l2, 6.4e-3, 3, 48
    )
    both = [
        dataclasses.replace(_execution(name), function=function)
        for name in ("bf16", "fp16")
    ]
    found = findings.find(_exponents(), both, {})
    assert [f.code for f in found] == ["LYA018"] * (told is not None)
    for finding in found:
        assert told in finding.message
        assert "[0, 0.05]: in fp64" in finding.message
        assert "0.036 apart" in finding.message
        assert "3 of 48 top tokens" in finding.message
        assert (finding.severity, finding.value) == ("warning", rel_l2)


def test_a_changed_weight_set_above_its_bound_is_a_bug():
    def change(violations):
        row = LayerChange(
            7, "mamba1", {}, 1.0, 1.0, 0.9, 0.9, None, violations, 9, 1.0, 1.0
        )
        output = OutputDivergence(argmax_total=512)
        return ParameterChangeReport(
            "bf16:A_log", "rounding", [row], output, 1e-3, None, {}
        )

    assert findings.find(_exponents(), [], changes=[change(0)]) == []
    (bug,) = findings.find(_exponents(), [], changes=[change(4)])
    assert (bug.code, bug.layer, bug.precision) == ("LYA003", 7, "bf16:A_log")


# --- Executions that are lost ----------------------------------------------------
