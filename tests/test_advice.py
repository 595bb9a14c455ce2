"""Assert that the advice is what the figures say, in one line, with true flags."""

import math
import re
from dataclasses import replace

import pytest

from lyapunov.findings import _rules as findings
from lyapunov.findings._advice import state_to_keep, weights_to_run
from lyapunov.implementations._flags import serving_flags
from lyapunov.results._check import (
    Exponents,
    LayerDivergence,
    LayerExponents,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
    ReferenceLoss,
)


def _exponents(**fields) -> Exponents:
    row = LayerExponents(**{"layer": 3, "kind": "mamba1", "max": -0.01, **fields})
    return Exponents(row.max, row.min, 0, 3, None, None, 512, [row])


def _execution(precision="bf16", state="fp32", output=None, shares=None, **fields):
    shares = shares or {3: None}
    rows = [
        LayerDivergence(layer, "mamba1", sigma_share=share, **fields)
        for layer, share in shares.items()
    ]
    output = OutputDivergence(
        **{
            "argmax_total": 512,
            "kl_mean": 1e-5,
            "measured_rel_l2": 1e-3,
            **(output or {}),
        }
    )
    return PrecisionReport(precision, state, "flow", "prefill", "x", rows, output)


def _advice(exponents, *executions, changes=()):
    found = findings.find(exponents, executions, changes=changes)
    line = findings.recommendation(exponents, executions, found, changes)
    assert "\n" not in line
    assert line.endswith(".")
    return line


# --- The recommendation ----------------------------------------------------------


@pytest.mark.parametrize(
    ("exponents", "execution", "words"),
    [
        ({}, {"violations": 1}, "bug in the bf16 execution"),
        ({"max": 0.1}, {}, "A_log and dt_bias of layer 3"),
        ({"suspicions": ["x"]}, {}, "original file"),
        ({}, {"precision": "fp16", "non_finite": 1}, "Do not run in fp16"),
        ({"max_abs_state": math.inf}, {}, "checkpoint itself is damaged"),
        ({}, {"state": "bf16", "stagnation": 0.3}, "Keep the state in fp32"),
        ({}, {"precision": "fp16", "max_abs_stored": {"z": 6e4}}, "prefer bf16"),
        ({}, {"output": {"kl_mean": 1e-5}}, "no top token changes"),
        ({}, {"output": {"argmax_flips": 3}}, "are fine: 3 of 512 top tokens"),
        ({}, {"output": {"argmax_flips": 60}}, "bf16 change 60 of 512 top tokens"),
        ({}, {"output": {"kl_mean": 0.0}}, "no top token changes"),
        ({}, {"state": "fp16"}, "The state in fp16 is fine"),
    ],
)
def test_recommendation_names_the_first_thing_to_do(exponents, execution, words):
    assert words in _advice(_exponents(**exponents), _execution(**execution))


@pytest.mark.parametrize("suspects", [["D"], ["A_log", "dt_bias", "D"], ["out_proj"]])
def test_what_looks_lost_is_named_and_nothing_else(suspects):
    """Assert the parameters that were found in the advice, and no flags to serve."""
    exponents = _exponents(suspicions=["x"], suspects=suspects)
    line = _advice(exponents, _execution())
    for name in ("A_log", "dt_bias", "D ", "out_proj"):
        assert (name in line) == (name.strip() in suspects)
    assert "of layer 3" in line
    found = findings.find(exponents, [_execution()])
    assert not findings.advice(exponents, [_execution()], found)["flags"]


def test_a_hint_is_found_and_decides_nothing():
    """Assert LYA008 as a hint that changes no advice, unless damage is beside it."""
    exponents = _exponents(suspicions=["hint: rounded once"], suspects=["A_log"])
    (finding,) = findings.find(exponents, [_execution()])
    assert (finding.code, finding.hint) == ("LYA008", True)
    assert "no top token changes" in _advice(exponents, _execution())
    assert findings.advice(exponents, [_execution()], [finding])["flags"]
    both = _exponents(suspicions=["D is 0", "hint: rounded once"], suspects=["D"])
    (finding,) = findings.find(both, [_execution()])
    assert not finding.hint
    assert "D of layer 3" in _advice(both, _execution())


def test_an_untrained_network_is_not_lost():
    """Assert LYA020 once where every sublayer that tells is at its start, and LYA008
    where one is not; and that a loss better than counting refutes it."""
    first = {"suspicions": ["as before training"], "at_initialisation": True}
    fresh = _exponents(**first)
    row = fresh.layers[0]
    many = replace(fresh, layers=[row, replace(row, layer=4, at_initialisation=None)])
    codes = lambda *given: [f.code for f in findings.find(*given)]
    assert codes(many, []) == ["LYA020"]
    assert "trained weights" in _advice(many, _execution())
    assert not findings.advice(many, [], findings.find(many, []))["flags"]
    moved = replace(row, layer=4, at_initialisation=False)
    assert codes(replace(fresh, layers=[row, moved]), []) == ["LYA008", "LYA008"]
    for loss, judged, expected in (
        (3.0, True, ["LYA008"]),
        (3.0, False, ["LYA020"]),
        (9.0, True, ["LYA020"]),
    ):
        reference = ReferenceLoss(loss, 0.1, "", None, 8.0, 4.5, 0.1, 500, judged)
        assert codes(fresh, [], None, (), reference) == expected


def test_a_loss_worse_than_guessing_is_what_the_advice_is_about():
    """Assert the order: parameters that look lost first, then the loss, then formats;
    and no flags above either."""
    loss = lambda bits: ReferenceLoss(bits, 0.1, "", None, 8.0, 4.5, 0.1, 500, True)
    for bits, words in ((9.0, "a uniform guess"), (6.0, "own frequencies")):
        for fields, expected in (({}, words), ({"suspicions": ["x"]}, "original file")):
            exponents = _exponents(**fields)
            found = findings.find(exponents, [_execution()], None, (), loss(bits))
            told = findings.advice(exponents, [_execution()], found)
            assert expected in told["recommendation"]
            assert not told["flags"]
    found = findings.find(_exponents(), [_execution()], None, (), loss(4.0))
    assert found == []


def test_recommendation_tells_state_weights_and_limit_in_one_line():
    good = _execution("bf16", output={"argmax_flips": 2})
    bad = _execution(
        "bf16",
        "bf16",
        output={"argmax_flips": 90, "cause": "stagnation: 40 % of updates are lost"},
        shares={2: 0.1, 17: 0.8, 20: 0.1},
    )
    assert _advice(_exponents(), good, bad) == (
        "Keep the state in fp32, not in bf16 (stagnation); weights in bf16 are fine: "
        "2 of 512 top tokens change, mean KL 1e-05 nats; limit: layer 17 (80% of the "
        "predicted variance), stagnation: 40 % of updates are lost."
    )


def test_the_head_is_named_where_the_layers_leave_most_to_it():
    def line(*shares):
        return _advice(_exponents(), _execution(shares=dict(enumerate(shares))))

    assert "limit: the head (62% of the predicted variance)" in line(0.2, 0.1, 0.08)
    assert "limit: layer 0 (50% of the predicted variance)" in line(0.5, 0.1, 0.08)
    # a layer that was not looked at may have the rest
    assert "limit: layer 0 (20%" in line(0.2, None, 0.08)


def test_the_model_is_not_the_state_formats_fault():
    line = _advice(
        _exponents(),
        _execution("bf16", "bf16", output={"cause": "the model, not the precision"}),
    )
    assert "Keep the state in fp32" not in line
    assert "the model, not the precision" in line


def test_decays_of_one_are_the_reason_where_the_state_is_little_of_the_error():
    """Assert that a share that is small on a short text does not make a state that
    forgets nothing fine, nor is said to bind."""
    near = _exponents(max=-1e-9)
    cause = "the model, not the precision of its state, which is 4% of the error's"
    output = {"cause": cause, "state_share": 0.04}
    line = _advice(near, _execution("bf16", "bf16", output=output))
    assert "not in bf16 (decays that are 1 in it, so that errors add up" in line
    assert "mantissa" not in line


def test_variance_of_the_state_counts_only_where_tokens_change():
    def line(flips):
        output = {"argmax_flips": flips, "state_share": 0.9}
        return _advice(_exponents(), _execution("bf16", "fp16", output=output))

    assert "The state in fp16 is fine" in line(1)
    assert "Keep the state in fp32, not in fp16" in line(80)


def test_recommendation_prefers_the_closer_precision():
    bf16 = _execution("bf16", output={"kl_mean": 1e-4, "argmax_flips": 2})
    fp16 = _execution("fp16", output={"kl_mean": 1e-6})
    line = _advice(_exponents(), bf16, fp16)
    assert line.index("fp16 are fine") < line.index("bf16 are fine")
    calm = _execution("bf16", output={"kl_mean": 1e-4})
    assert "bf16 and fp16 are fine: no top token" in _advice(_exponents(), calm, fp16)


def test_a_changed_weight_set_is_told():
    def change(name, flips):
        output = OutputDivergence(argmax_flips=flips, argmax_total=512)
        return ParameterChangeReport(name, "rounding", [], output, 1e-3, None, {})

    line = _advice(_exponents(), changes=[change("bf16:A_log", 9), change("x", 2)])
    assert "the weights bf16:A_log change 9 of 512 top tokens" in line.lower().replace(
        "a_log", "A_log"
    )


def test_recommendation_without_measurements():
    assert "Every recurrence forgets" in _advice(_exponents())
    assert "No recurrence" in _advice(_exponents(max=None))


# --- What is called fine ---------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"kl_mean": 0.01, "measured_rel_l2": 0.1}, "are fine: no top token changes"),
        ({"kl_mean": 0.0101}, "no top token of 512 changes with weights in bf16, but"),
        ({"kl_mean": 0.0101}, "mean KL 0.01 nats, fine up to 0.01"),
        ({"kl_mean": 1.2e-2, "argmax_flips": 2}, "bf16 change 2 of 512 top tokens"),
        ({"measured_rel_l2": 0.11}, "relative L2 0.11, fine up to 0.1"),
        ({"argmax_flips": 5}, "are fine: 5 of 512 top tokens change"),
        ({"argmax_flips": 6}, "weights in bf16 change 6 of 512 top tokens"),
        ({"argmax_total": 100}, "are fine: no top token changes"),
        ({"argmax_total": 99}, "no top token of 99 changes with weights in bf16; too"),
        ({"argmax_total": 8}, "too few to say fine (at least 100)"),
        # the reference tells no token from another, so KL decides
        ({"measured_rel_l2": math.nan, "kl_mean": 0.0}, "are fine: no top token"),
        ({"measured_rel_l2": None}, "not all is known of its logits"),
    ],
)
def test_fine_needs_tokens_kl_distance_and_enough_of_them(output, words):
    """Assert each limit at its edge and beyond; only what is fine gets a flag."""
    execution = _execution(output=output)
    line = _advice(_exponents(), execution)
    assert words.lower() in line.lower()
    fine = "are fine" in line
    assert (weights_to_run([execution], []) == "bf16") is fine
    flags = findings.advice(_exponents(), [execution], [])["flags"]
    assert any(flag["flag"] == "--dtype bfloat16" for flag in flags) is fine


@pytest.mark.parametrize(
    ("output", "kept", "words"),
    [
        ({}, "fp16", "The state in fp16 is fine"),
        ({"argmax_total": 8}, None, "8 tokens are too few to call the state in fp16"),
        ({"kl_mean": 0.02}, None, "but mean KL 0.02"),
        ({"measured_rel_l2": 0.2}, None, "but relative L2 0.2"),
        ({"argmax_flips": 80}, None, "change 80 of 512"),
        # most of the error is the state's
        ({"kl_mean": 0.02, "state_share": 0.9}, "fp32", "not in fp16"),
    ],
)
def test_a_state_is_kept_where_its_execution_is_fine(output, kept, words):
    execution = _execution("fp32", "fp16", output=output)
    assert state_to_keep([execution], []) == kept
    line = _advice(_exponents(), execution)
    assert words in line
    assert ("the state in fp16 is fine" in line.lower()) is (kept == "fp16")
    flags = findings.advice(_exponents(), [execution], [])["flags"]
    told = [f["flag"] for f in flags if f["flag"].startswith("--mamba-ssm-dtype")]
    dtype = {"fp16": "float16", "fp32": "float32"}
    assert told == ([] if kept is None else [f"--mamba-ssm-dtype {dtype[kept]}"])


_BROKEN = {"non_finite": 9, "kl_max": math.inf, "kl_mean": math.inf}
_LOST = {"kl_mean": 2.0}


@pytest.mark.parametrize(
    ("failing", "held", "broken", "lost"),
    [
        (["fp16"], [], "bf16", "fp32"),
        (["fp16"], ["bf16"], "bf16", "bf16"),
        (["bf16"], [], "fp32", "fp32"),
        (["bf16"], ["fp16"], "fp16", "fp16"),
        (["bf16", "fp16"], [], "fp32", "fp32"),
        (["bf16", "fp16"], ["fp32"], "fp32", "fp32"),
        (["fp32"], [], None, None),
        (["bf16", "fp32"], [], None, None),
        (["fp16", "bf16", "fp32"], [], None, None),
        (["fp32"], ["bf16"], "bf16", "bf16"),
        (["fp16-cast"], ["bf16-cast"], "bf16-cast", "bf16-cast"),
    ],
)
def test_advice_never_sends_to_a_format_that_failed(failing, held, broken, lost):
    """Assert what is advised instead, for values not finite and for lost logits."""
    for output, use in ((_BROKEN, broken), (_LOST, lost)):
        runs = [_execution(name, output=output) for name in failing]
        line = _advice(_exponents(), *runs, *map(_execution, held))
        assert line.startswith("Do not run in ")
        said = re.findall(r"Use (\S+) there", line)
        assert said == ([] if use is None else [use])
        assert not set(said) & set(failing)
        if use is None:
            assert "look at the weights" in line


# --- The flags -------------------------------------------------------------------


def test_flags_follow_the_advice():
    good = _execution("fp16", output={"kl_mean": 1e-6})
    bad = _execution("bf16", "bf16", output={"argmax_flips": 90, "cause": "mantissa"})
    found = findings.find(_exponents(), [good, bad])
    flags = findings.advice(_exponents(), [good, bad], found)["flags"]
    told = {(flag["stack"], flag["flag"]) for flag in flags}
    assert ("vLLM", "--mamba-ssm-cache-dtype float32") in told
    assert ("SGLang", "--mamba-ssm-dtype float32") in told
    assert ("vLLM", "--dtype float16") in told
    assert all(flag["why"] for flag in flags)


def test_no_flags_for_what_is_broken_or_was_not_measured():
    broken = _execution(violations=3)
    found = findings.find(_exponents(), [broken])
    assert findings.advice(_exponents(), [broken], found)["flags"] == []
    assert findings.advice(_exponents(), [], [])["flags"] == []


@pytest.mark.parametrize(
    ("state", "served"),
    [
        ("fp32", "--mamba-ssm-dtype float32"),
        ("bf16", "--mamba-ssm-dtype bfloat16"),
        (
            "fp16-stochastic",
            "--mamba-ssm-dtype float16 --enable-mamba-cache-stochastic-rounding "
            "--mamba-backend flashinfer",
        ),
        ("bf16-stochastic", None),
        ("fp8_e4m3-scaled", None),
        ("fp8_e4m3", None),
    ],
)
def test_a_format_without_a_flag_gets_none(state, served):
    flags = {f["stack"]: f["flag"] for f in serving_flags([], state, None)}
    assert flags.get("SGLang") == served
