"""Assert that an execution declares what its network has: state, scan, kernels."""

import dataclasses
import itertools

import pytest

from lyapunov._errors import UsageError
from lyapunov.bounds.passes import Interpreter
from lyapunov.bounds.segments import _Plan
from lyapunov.formats import FP32
from lyapunov.implementations import executions_for
from lyapunov.implementations._segment import Segment
from lyapunov.implementations.transformers.networks import OF_TORCH_ALONE
from lyapunov.report._words import execution_sentence
from lyapunov.results._check import (
    Exponents,
    LayerExponents,
    OutputDivergence,
    PrecisionReport,
)
from lyapunov.sublayers.config import NetworkConfig
from lyapunov.sublayers.kinds import KINDS

from ..model.every_kind import SIZES


STATELESS = sorted(kind for kind in SIZES if not KINDS[kind].recurrent)
RECURRENT = sorted(kind for kind in SIZES if KINDS[kind].recurrent)
OF_A_STATE = ("state", "scan", "A_log", "mamba_ssm", "tensor cores add blocks")


def declared(kinds, mode, measure="emulated", state=None, precision="bf16"):
    config = NetworkConfig(50, 50, 8, tuple(SIZES[kind] for kind in kinds))
    (execution,) = executions_for(
        config,
        [precision],
        architecture="llama",
        mode=mode,
        measure=measure,
        state_precision=state,
    )
    return execution


def sentence(execution, kinds):
    """What the report says of it."""
    report = PrecisionReport(
        "bf16",
        execution.state_precision,
        execution.name,
        execution.mode,
        "emulated",
        [],
        OutputDivergence(),
    )
    rows = [
        LayerExponents(i, kind, reason=None if KINDS[kind].recurrent else "none")
        for i, kind in enumerate(kinds)
    ]
    return execution_sentence(
        report, Exponents(None, None, 0, None, None, None, 9, rows)
    )


def test_every_kind_is_here():
    assert set(SIZES) == set(KINDS)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("measure", ["emulated", "transformers"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_network_without_a_state_declares_none(mode, measure, precision):
    """Assert that no word of states, scans or kernels is said of one, whatever it is
    made of, and that a format for the state is refused."""
    for n in (1, 2):
        for kinds in itertools.combinations(STATELESS, n):
            found = declared(kinds, mode, measure, precision=precision)
            text = "; ".join([found.name, *found.assumptions, sentence(found, kinds)])
            assert not [word for word in OF_A_STATE if word in text], text
            assert found.state_precision == "fp32"
            with pytest.raises(UsageError, match="state") as caught:
                declared(kinds, mode, measure, state="fp16")
            assert caught.value.hint


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("state", [None, "fp32", "fp16"])
def test_the_states_format_is_the_recurrences_own(kind, mode, state):
    """Assert it of hybrids too, where another kind's default is another format."""
    for kinds in ([kind], ["attention", kind, "mlp"]):
        if (kind, mode, state) == ("mamba3", "prefill", "fp16"):
            continue
        found = declared(kinds, mode, state=state)
        own = found.of(kind)
        assert found.state_precision == own.state_precision
        assert f"state {own.state_precision}, {mode}" in sentence(found, kinds)
        library = "fla" if kind.endswith("_delta") else "mamba_ssm"
        library = "transformers" if kind in OF_TORCH_ALONE else library
        assert found.name == f"{library} {mode}, bf16"
        assert any("recurrent state" in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("measure", "mode", "expected"),
    [
        ("transformers", "prefill", True),
        ("transformers", "decode", False),
        ("mamba_ssm", "prefill", False),
        ("mamba_ssm", "decode", False),
    ],
)
def test_who_hands_states_on_in_one_product(measure, mode, expected):
    """Assert that it is transformers alone, and that it shapes what is compiled."""
    own = declared(["mamba2"], mode, measure).of("mamba2")
    assert own.form.chunks_at_once is expected
    other = dataclasses.replace(
        own, form=dataclasses.replace(own.form, chunks_at_once=not expected)
    )
    assert own.bounded(4, {}, None).form.chunks_at_once is expected
    assert other.bounded(4, {}, None).form.chunks_at_once is not expected
    assert Interpreter(own, 4, True) != Interpreter(other, 4, True)
    one, two = (
        _Plan([Segment(0, 4, each, FP32)], SIZES["mamba2"]) for each in (own, other)
    )
    assert one != two
