"""Kernels broken on purpose are caught at the right sublayer; correct ones never.

Each kernel is NumPy's (`kernels.mamba1`), so that nothing here shares code with the
emulator. A mutant (`mutants.mamba1`) runs in layer 1 of 2; layer 0 is right. What each
one does, element by element, is the difference of two fp64 evaluations: the right
operation and the broken one. Whatever exceeds twice the bound somewhere has to be seen.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from analysis.elementwise import Elementwise, exceeding
from lyapunov.arithmetic import Bounded
from lyapunov.bounds.local import (
    compare,
    element,
    first_violation,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.implementations._trace import SublayerRecord
from oracles.checkpoints.hard import SEQ, SIZES
from oracles.kernels import mamba1 as kernel
from oracles.mutants.faults import Mutant
from oracles.mutants.mamba1 import EQUIVALENT, MUTANTS, make

from ..helpers import not_none


# What is less than half a bound wherever it is looked at.
BELOW = {("epsilon outside the root", "bf16")}
# T1 in fp16, and of what is below its bound in bf16: smaller here than what the
# declared stores of the whole sublayer may do near ties. T0 sees them.
HIDDEN = {
    "epsilon outside the root",
    "dt stored low",
    "A in the low format",
    "drive in the low format",
    "state stored low",
    "state stored low after the read-out",
    "state read out low",
    "state flushed below 2^-14",
    "x_proj.weight: split-K partials in the low format",
    "x_proj stored toward zero",
    "x_proj stored stochastically",
    "dt stored toward zero",
    "dt stored stochastically",
}
RIGHT = [
    {"order": "sequential", "fused": True},
    {"order": "sequential", "fused": False},
    {"order": "block_scan", "fused": True},
    {"order": "block_scan", "fused": False},
    {"order": "tree", "fused": False},
]


@pytest.fixture(scope="module")
def setting(checkpoint):
    """Everything about layer 1 that does not depend on the kernel."""
    folder, weights, tokens = checkpoint("plain")
    model = lyapunov.load(folder)
    return model, weights, tokens


def run_stack(weights, tokens, precision, wrong_layer=None, **options):
    """Stored tensors of both layers; `options` are for the wrong layer's kernel."""
    rows = weights["backbone.embeddings.weight"].astype(np.float32)
    before = kernel.cast(rows, precision)[tokens]
    hidden = np.zeros_like(before)
    records = []
    for i in range(SIZES.layers):
        held = kernel.held(kernel.layer_weights(weights, i), precision)
        changed = options if wrong_layer in (None, i) else {}
        layer = make(held, precision, **changed)
        stored = layer.run(before, hidden)
        records.append((before, hidden, stored))
        before, hidden = stored["residual"], stored["out"]
    return records


def bounded_by(model, records, i, precision):
    """What bounds of layer i take: (execution, flow, record, weights), start."""
    execution = mamba_ssm_prefill(precision)
    before, hidden, stored = records[i]
    parameters = with_operator_norms(model.parameters(i, execution))
    wide = {k: jnp.asarray(v, jnp.float64)[None] for k, v in stored.items()}
    record = SublayerRecord(
        i,
        "mamba1",
        jnp.asarray(before, jnp.float64)[None],
        jnp.asarray(hidden, jnp.float64)[None],
        wide["out"],
        wide,
        {},
    )
    flow = model.sublayers[i].flow
    return (execution, flow, record, parameters), model.start(parameters)


def verdicts(model, records, precision):
    """Violations of every tensor (T0) and of the output (T1), by layer."""
    out = []
    for i in range(len(records)):
        given, start = bounded_by(model, records, i, precision)
        tensors = operation_bounds(*given, start)
        t1 = sublayer_bound(*given, model.parameters(i), start).comparison
        t0 = {site: int(np.sum(c.violations)) for site, c in tensors.items()}
        out.append((t0, int(np.sum(t1.violations))))
    return out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", RIGHT, ids=lambda o: f"{o['order']}-{o['fused']}")
def test_correct_kernels_are_never_flagged(setting, options, precision):
    """Assert it for every order of the scan, fused or not."""
    model, weights, tokens = setting
    records = run_stack(weights, tokens, precision, **options)
    for t0, t1 in verdicts(model, records, precision):
        assert not any(t0.values()), t0
        assert t1 == 0


@pytest.mark.parametrize("seed", [4, 5])
def test_correct_kernels_are_never_flagged_on_other_weights(checkpoint, seed):
    """Assert it for other seeds and for the hard kinds."""
    for kind in ("plain", "dt", "A", "repeated"):
        folder, weights, tokens = checkpoint(kind, seed)
        records = run_stack(weights, tokens, "bf16", order="block_scan")
        for t0, t1 in verdicts(lyapunov.load(folder), records, "bf16"):
            assert not any(t0.values()), (kind, t0)
            assert t1 == 0


@pytest.fixture(scope="module")
def elementwise(setting):
    """A function: mutant, precision, strength -> what it does, bounds, what is seen."""
    model, weights, tokens = setting
    bounds = Elementwise(mamba_ssm_prefill("bf16"), model.sublayers[1].flow, SEQ)

    def study(mutant: Mutant, precision: str, strength: float = 1.0, worst=False):
        execution = mamba_ssm_prefill(precision)
        before, hidden, _ = run_stack(weights, tokens, precision)[1]
        held = kernel.held(kernel.layer_weights(weights, 1), precision)
        stored = mutant.kernel(held, precision, strength).run(before, hidden)
        p = with_operator_norms(model.parameters(1, execution))
        records, t0, t1 = bounds(
            execution, before, hidden, stored, p, model.parameters(1), model.start(p)
        )
        right = kernel.Kernel(held, precision, wide=True)
        wrong = mutant.kernel(held, precision, strength, wide=True)
        ends = [
            k.operation(mutant.site, stored, before, hidden) for k in (right, wrong)
        ]
        effect = np.abs(ends[1] - ends[0]) / t0[mutant.site]
        outs = [k.run(before, hidden)["out"] for k in (right, wrong)]
        through, limit = np.abs(outs[1] - outs[0]), t1.error
        if worst:
            limit = bounds.worst(execution, before, hidden, p, model.start(p))
        else:
            # the mutant's own roundings may hide so much of it
            through = through - np.abs(stored["out"] - outs[1])
        through = through / limit
        seen = {site: exceeding(stored[site], records[site]) for site in stored}
        return effect, through, seen, exceeding(stored["out"], t1)

    return study


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mutation", MUTANTS)
def test_mutants_are_caught_where_they_are(elementwise, mutation, precision):
    """Assert that what exceeds twice its bound anywhere is caught, and where.

    T0: at the tensor concerned and at no other. T1: in the sublayer's output.
    """
    mutant = MUTANTS[mutation]
    effect, through, seen, in_output = elementwise(mutant, precision)
    assert {site for site, count in seen.items() if count} <= {mutant.site}
    assert seen[mutant.site] or effect.max() <= 2
    assert in_output or through.max() <= 2
    # and none of the table is there for nothing
    assert seen[mutant.site] or (mutation, precision) in BELOW
    assert in_output or mutation in HIDDEN
    assert in_output or precision == "fp16" or (mutation, precision) in BELOW


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mutation", MUTANTS)
@pytest.mark.slow
def test_small_shares_of_a_mutant_are_caught_from_twice_the_bound_on(
    elementwise, mutation, precision
):
    """Assert it for strengths down to 2^-20, where nothing else is accused.

    In T1, twice the bound in which every rounding counts at its worst: the stores on
    the way may swallow what is smaller.
    """
    mutant = MUTANTS[mutation]
    for power in range(2, 21, 3):
        effect, through, seen, in_output = elementwise(
            mutant, precision, 2.0**-power, worst=True
        )
        assert {site for site, count in seen.items() if count} <= {mutant.site}
        assert seen[mutant.site] or effect.max() <= 2, power
        assert in_output or through.max() <= 2, power


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", EQUIVALENT)
def test_equivalent_kernels_are_not_called_broken(elementwise, name, precision):
    """Assert that they do less than the bound, for the reason given, and are free."""
    reason, mutant = EQUIVALENT[name]
    effect, _, seen, in_output = elementwise(mutant, precision)
    assert effect.max() < 0.5, reason
    assert not any(seen.values()), reason
    assert in_output == 0, reason


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "mutation", ["D dropped", "state stored low", "residual added twice"]
)
def test_the_library_counts_what_was_found_element_by_element(
    setting, elementwise, mutation, precision
):
    """Assert that `operation_bounds` and `sublayer_bound` say the same of a mutant."""
    model, weights, tokens = setting
    _, _, seen, in_output = elementwise(MUTANTS[mutation], precision)
    records = run_stack(weights, tokens, precision, 1, mutation=mutation)
    (first_t0, first_t1), (t0, t1) = verdicts(model, records, precision)
    assert not any(first_t0.values())
    assert first_t1 == 0
    assert t0 == seen
    # the output's bound has a share of its norm for the reference's own error on top
    assert (t1 > 0) == (in_output > 0)


def test_there_are_enough_mutants():
    """Assert their number, and one at least for every stored tensor."""
    assert len(MUTANTS) >= 100
    assert {mutant.site for mutant in MUTANTS.values()} == set(kernel.STORED)


def test_weights_of_another_layer_are_caught(setting):
    """Assert it for one projection read from the wrong layer, each in turn."""
    model, weights, tokens = setting
    sites = {
        "in_proj.weight": "xz",
        "x_proj.weight": "x_proj",
        "dt_proj.weight": "dt",
        "out_proj.weight": "out",
    }
    for name, site in sites.items():
        swapped = dict(weights)
        swapped[f"backbone.layers.1.mixer.{name}"] = weights[
            f"backbone.layers.0.mixer.{name}"
        ]
        records = run_stack(swapped, tokens, "bf16")
        (first, _), (t0, t1) = verdicts(model, records, "bf16")
        assert not any(first.values())
        assert {name for name, count in t0.items() if count} == {site}
        assert t1 > 0


@pytest.mark.parametrize("site", kernel.STORED)
def test_one_corrupted_number_is_caught(setting, site):
    """Assert that two steps of the format in one of all elements are seen by T0."""
    model, weights, tokens = setting
    records = run_stack(weights, tokens, "bf16", order="block_scan")
    stored = records[1][2]
    stored[site] = stored[site].copy()
    place = np.unravel_index(np.argmax(np.abs(stored[site])), stored[site].shape)
    step = 2.0**-21 if site == "residual" else 2.0**-6
    stored[site][place] *= 1 + step
    (first, _), (t0, _) = verdicts(model, records, "bf16")
    assert not any(first.values())
    assert t0[site] == 1


def test_one_corrupted_token_is_located(setting):
    """Assert that tensor, token and channel are named, NaN being beyond any bound."""
    model, weights, tokens = setting
    for wrong in (np.float32(0.25), np.float32(np.nan)):
        records = run_stack(weights, tokens, "bf16", order="block_scan")
        conv = records[1][2]["conv"] = records[1][2]["conv"].copy()
        conv[17, 5] += wrong
        given, start = bounded_by(model, records, 1, "bf16")
        site, place = not_none(first_violation(*given, model.parameters(1), start))
        assert (site, place.batch, place.token, place.channel) == ("conv", 0, 17, 5)
        assert not place.measured <= place.bound
    given, start = bounded_by(model, records, 0, "bf16")
    assert first_violation(*given, model.parameters(0), start) is None


def test_elements_of_tensors_with_several_axes_of_channels_are_found():
    """Assert batch, token and channel of every element, whatever a token holds."""
    for shape in ((2, 3, 5), (2, 3, 4, 5), (2, 3)):
        for place, at in enumerate(np.ndindex(*shape[:2])):
            count = int(np.prod(shape[2:]))
            for channel in range(count):
                assert element(place * count + channel, shape) == (*at, channel)


def test_comparison_counts_elements_beyond_their_bound(rng):
    """Assert counts by token; an infinite bound is never exceeded, NaN always is."""
    x = jnp.asarray(rng.normal(size=(2, 40, 7)))
    against = Bounded(x, jnp.full(x.shape, 1e-3).at[1, 31].set(jnp.inf))
    moved = x.at[0, 17, 5].add(2e-3).at[1, 30, 2].set(jnp.nan).at[1, 31].add(9.0)
    found = compare(moved, against)
    expected = np.zeros((2, 40), int)
    expected[0, 17] = expected[1, 30] = 1
    np.testing.assert_array_equal(found.violations, expected)
    assert int(np.sum(found.non_finite)) == 1
    assert float(found.measured_max[0, 17]) == pytest.approx(2e-3)


def test_a_better_format_than_declared_is_within_the_free_bound(setting):
    """Assert that stores in fp16 or fp32 are no defect under a declared bf16.

    They are not of the declared kind, whose stores round to bf16, so the centred bound
    does not speak of them; the bound for roundings of any size up to bf16's does.
    """
    model, weights, tokens = setting
    for better in ("fp16", "fp32"):
        rows = weights["backbone.embeddings.weight"].astype(np.float32)
        before = kernel.cast(rows, "bf16")[tokens]
        hidden, records = np.zeros_like(before), []
        for i in range(SIZES.layers):
            # weights are held as declared
            held = kernel.held(kernel.layer_weights(weights, i), "bf16")
            stored = kernel.Kernel(held, better).run(before, hidden)
            records.append((before, hidden, stored))
            before, hidden = stored["residual"], stored["out"]
        for i in range(SIZES.layers):
            given, start = bounded_by(model, records, i, "bf16")
            original = model.parameters(i)
            free = sublayer_bound(*given, original, start, centred=False).comparison
            assert not np.any(free.violations)


def test_a_worse_format_than_declared_is_a_defect(setting):
    """Assert that bf16 stores under a declared fp16 violate T0 in every tensor."""
    model, weights, tokens = setting
    records = run_stack(weights, tokens, "bf16")
    for t0, t1 in verdicts(model, records, "fp16"):
        assert all(t0[site] for site in ("norm", "xz", "conv", "x_proj", "out"))
        assert t1 > 0
