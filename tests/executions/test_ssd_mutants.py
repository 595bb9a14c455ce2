"""Mamba-2 kernels broken on purpose are caught where they are.

Each is NumPy's (`oracles`), which shares nothing with the flow, and
runs in layer 1 of 2; layer 0 is right. What a mutant does, element by element, is the
difference of two fp64 evaluations: the right operation and the broken one. Whatever
exceeds twice the bound somewhere has to be seen.
"""

import numpy as np
import pytest

import lyapunov
from analysis.elementwise import Elementwise, exceeding
from lyapunov.bounds.local import with_operator_norms
from oracles.kernels import mamba2 as ssd
from oracles.mutants.mamba2 import MUTANTS, OPERANDS, Mutant

from . import ssd_models as models, ssd_runs as runs


SEQ = 50
SIZES = models.Sizes(dt_limit=(0.004, 0.2))
# What is less than its bound: casting A or dt once moves y by less than storing y
# does. T0, by precision.
BELOW = {
    ("A in the low format", "bf16"),
    ("A in the low format", "fp16"),
    ("dt in the low format", "fp16"),
}
# and T1, which has all of the sublayer's stores
BELOW_T1 = {("A in the low format", "fp16")}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The model, its weights and tokens."""
    weights = models.hard("plain", SIZES)
    folder = models.save(tmp_path_factory.mktemp("ssd") / "model", weights, SIZES)
    return lyapunov.load(folder), weights, models.tokens_for("plain", SIZES, SEQ)


@pytest.fixture(scope="module")
def study(setting):
    """A function: mutant, precision -> what it does over its bounds, what is seen."""
    model, weights, tokens = setting
    shape = runs.shape_of(SIZES)
    flow = model.sublayers[1].flow
    bounds = Elementwise(runs.execution_of("bf16", SIZES), flow, SEQ)

    def one(mutant: Mutant, precision: str):
        execution = runs.execution_of(precision, SIZES)
        before, hidden, _ = runs.run_stack(weights, tokens, precision, SIZES)[1]
        held = ssd.held(ssd.layer_weights(weights, 1), precision)
        with np.errstate(over="ignore", invalid="ignore"):
            stored = mutant.kernel(held, precision, shape).run(before, hidden)
        p = with_operator_norms(model.parameters(1, execution))
        original, start = model.parameters(1), model.start(p)
        given = {site: x for site, x in stored.items() if site in execution.sites}
        records, t0, t1 = bounds(execution, before, hidden, given, p, original, start)
        right, wrong = (
            kind(held, precision, shape, wide=True) for kind in (ssd.Ssd, mutant.kernel)
        )
        ends = [
            k.operation(mutant.site, stored, before, hidden) for k in (right, wrong)
        ]
        effect = np.abs(ends[1] - ends[0]) / t0[mutant.site]
        outs = [k.run(before, hidden)["out"] for k in (right, wrong)]
        # the mutant's own roundings may hide so much of it
        through = np.abs(outs[1] - outs[0]) - np.abs(stored["out"] - outs[1])
        seen = {site: exceeding(stored[site], records[site]) for site in records}
        return effect, through / t1.error, seen, exceeding(stored["out"], t1)

    return one


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mutation", MUTANTS)
def test_mutants_are_caught_where_they_are(study, mutation, precision):
    """Assert that what exceeds twice its bound anywhere is caught, and where.

    T0: at the tensor concerned and at no other. T1: in the sublayer's output.
    """
    mutant = MUTANTS[mutation]
    effect, through, seen, in_output = study(mutant, precision)
    assert {site for site, count in seen.items() if count} <= {mutant.site}
    assert seen[mutant.site] or effect.max() <= 2
    assert in_output or through.max() <= 2
    # and none of the table is there for nothing
    assert seen[mutant.site] or (mutation, precision) in BELOW
    assert in_output or (mutation, precision) in BELOW_T1


def test_the_right_kernel_is_not_caught(study):
    """Assert it of the study itself."""
    _, _, seen, in_output = study(Mutant("scan_output", {}), "bf16")
    assert not any(seen.values())
    assert not in_output


@pytest.mark.slow
@pytest.mark.parametrize("how", OPERANDS)
def test_operands_read_otherwise_than_declared_are_caught(setting, how):
    """Assert in fp32, where TF32 is cut off: bf16, fp16 and TF32 to nearest.

    By T0, in most elements. T1 is around exact arithmetic, to which two of them are
    closer than what is declared.
    """
    model, weights, tokens = setting
    kernel = Mutant("scan_output", {"operand": OPERANDS[how]}).kernel
    records = runs.run_stack(weights, tokens, "fp32", SIZES, make=kernel)
    execution = runs.execution_of("fp32", SIZES)
    for t0, _, _ in runs.verdicts(model, execution, records):
        assert t0.pop("scan_output") > SEQ * SIZES.d_inner / 2
        assert not any(t0.values())
