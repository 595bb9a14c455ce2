"""A kind that the library does not know is one class and its registration.

It goes through check, plan, changed weights and every form of the report, and nothing
in the library was told of it.
"""

import json

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.formats import FP8_E4M3
from lyapunov.implementations import IMPLEMENTATIONS
from lyapunov.models import Model
from lyapunov.questions._plan import plan
from lyapunov.questions._weight_sets import rounded_weights
from lyapunov.report import to_html, to_markdown, to_table
from lyapunov.sublayers import KINDS
from lyapunov.sublayers.groups import rounded_group
from lyapunov.sublayers.sites import FLOW_ORDER

from ..helpers import not_none
from . import pretend_kind
from .pretend_kind import LeakyImplementation, LeakySublayer


TOKENS = np.array([3, 17, 0, 28, 9, 9, 4])
BOUNDS_ALONE = {"floor": False, "probes": 0, "ball": False, "growth": False}


@pytest.fixture(scope="module")
def registered():
    KINDS["leaky"] = LeakySublayer
    IMPLEMENTATIONS["leaky_emulated"] = LeakyImplementation()
    yield
    del KINDS["leaky"], IMPLEMENTATIONS["leaky_emulated"]


@pytest.fixture(scope="module")
def stored(registered, tmp_path_factory):
    """The model, and its weights as NumPy has them."""
    layout, weights = pretend_kind.layout(tmp_path_factory.mktemp("leaky") / "m")
    return Model(layout, "leaky"), weights


def test_it_is_the_network_that_numpy_computes(stored):
    model, weights = stored
    theirs, _ = pretend_kind.numpy_forward(weights, TOKENS)
    ours = np.asarray(model.logits(TOKENS))
    # some hundred roundings a token, of numbers that cancel to a tenth
    assert np.abs(ours - theirs).max() < 1e4 * 2.0**-53 * np.abs(theirs).max()


def test_its_exponents_and_reasons_are_reported_in_every_form(stored):
    """Assert NumPy's mean log decays, and that each form names the kind."""
    model, weights = stored
    report = lyapunov.check(model, TOKENS, measure="none", growth=False)
    _, decays = pretend_kind.numpy_forward(weights, TOKENS)
    recurrence, mlp = report.exponents.layers
    assert (recurrence.kind, mlp.kind) == ("leaky", "mlp")
    expected = decays[0].mean(axis=0)
    assert recurrence.max == pytest.approx(expected.max(), rel=1e-12)
    assert recurrence.min == pytest.approx(expected.min(), rel=1e-12)
    assert recurrence.reason is None
    assert recurrence.dt_min is None, "it tells no time step apart"
    assert mlp.reason == "no exponent: no state"
    assert json.loads(json.dumps(report.to_dict()))["exponents"]["layers"][0]["max"]
    for form in (to_table, to_markdown, to_html):
        assert "leaky" in form(report)


@pytest.mark.slow
def test_a_check_holds_it_to_bounds(stored):
    report = lyapunov.check(
        stored[0],
        TOKENS,
        precisions="bf16",
        measure="leaky_emulated",
        round_weights="bf16:leaky",
        layers=(0,),
        **BOUNDS_ALONE,
    )
    (row,) = report.precisions[0].layers
    assert row.kind == "leaky"
    assert row.violations == 0
    assert row.elements_bounded == not_none(row.elements_total) > 0
    assert row.local_max is not None
    assert row.bound_t1_ratio is not None
    assert row.local_max > 0.0
    # as tight as for other kinds: a few roundings of bf16 are what is measured
    assert 1.0 <= row.bound_t1_ratio < 100.0
    assert row.bound_t0 is not None
    assert {"leaky_in", "leaky_y"} <= row.bound_t0.keys()
    (change,) = report.parameter_changes
    assert sorted(change.rounded) == sorted(
        f"leaky.{name}" for name in ("norm", "leaky_in", "leak", "leaky_out")
    )
    assert all(
        one.violations == 0 < not_none(one.elements_total) for one in change.layers
    )
    for form in (to_table, to_markdown, to_html):
        assert "leaky" in form(report)


@pytest.mark.slow
def test_what_stores_in_a_coarser_format_is_told(stored, monkeypatch):
    monkeypatch.setattr(LeakyImplementation, "stored", FP8_E4M3)
    found = lyapunov.check(
        stored[0],
        TOKENS,
        precisions="bf16",
        measure="leaky_emulated",
        layers=(0,),
        **BOUNDS_ALONE,
    )
    (row,) = found.precisions[0].layers
    assert not_none(row.violations) > 0
    assert row.first_violation is not None
    assert row.first_violation["tensor"] == "leaky_in"
    assert found.summary.exit_code == 1


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("bf16:leak", "leaky.leak"),
        ("bf16:leaky", "leaky.norm leaky.leaky_in leaky.leak leaky.leaky_out"),
        ("bf16:mixers", "leaky.norm leaky.leaky_in leaky.leak leaky.leaky_out"),
        ("bf16:recurrence", "leaky.leak"),
        ("fp8_e4m3", "leaky.leaky_in leaky.leaky_out mlp.up mlp.gate mlp.down"),
    ],
)
def test_its_weights_are_rounded_by_group(stored, group, names):
    assert set(rounded_weights(stored[0], group).rounded) == set(names.split())


def test_a_plan_counts_it(stored):
    model, _ = stored
    own = model.config.sublayers[0]
    matrices = [a.size for a in model.raw_parameters(0).values() if a.ndim > 1]
    assert own.count(7).weights == sum(matrices)
    start = model.start(model.parameters(0))
    assert own.count(7).states == start.state.size
    execution = IMPLEMENTATIONS["leaky_emulated"].execution(model.config, "bf16")
    found = plan(model, TOKENS[None], [execution])
    assert found.peak_bytes > 0
    assert {stage.name for stage in found.stages} >= {"reference", "T0 and T1"}


def test_its_stores_and_weights_are_known_while_it_is_registered(registered):
    assert FLOW_ORDER.index("leaky_in") < FLOW_ORDER.index("leaky_y")
    assert FLOW_ORDER.index("leaky_y") < FLOW_ORDER.index("out")
    for name in ("leaky", "leak", "leaky_out"):
        assert rounded_group(f"bf16:{name}").group == name


def test_without_its_registration_it_is_refused(registered, tmp_path, monkeypatch):
    """Assert an error that says what to type, and that nothing of it stays."""
    model = Model(pretend_kind.layout(tmp_path / "m")[0], "leaky")
    monkeypatch.delitem(KINDS, "leaky")
    assert "leaky_in" not in FLOW_ORDER
    with pytest.raises(UsageError, match="no group of weights 'leak'"):
        rounded_group("bf16:leak")
    for ask in (lambda: model.sublayers, lambda: model.parameters(0)):
        with pytest.raises(UsageError, match="no kind of sublayer 'leaky'") as caught:
            ask()
        assert "KINDS['leaky']" in caught.value.hint


@pytest.mark.parametrize("name", ["emulated", "mamba_ssm", "transformers"])
def test_who_says_nothing_of_it_refuses_it(registered, name):
    """Assert it of implementations: none stores it as another kind."""
    with pytest.raises(UsageError, match="nothing for sublayers of kind 'leaky'"):
        IMPLEMENTATIONS[name].execution(pretend_kind.config(), "bf16")


def test_what_is_registered_is_a_kind_and_calls_itself_so(registered):
    with pytest.raises(UsageError, match="is of kind 'leaky', not 'delta'"):
        KINDS["delta"] = LeakySublayer
    with pytest.raises(UsageError, match="is no kind of sublayer"):
        KINDS["delta"] = dict
    assert "delta" not in KINDS
