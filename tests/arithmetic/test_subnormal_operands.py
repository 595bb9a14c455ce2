"""Products of subnormal fp16 numbers as an H200's tensor cores add them.

`analysis.subnormal_operands` measured them; one product lies whole beside its figures.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov import LyapunovError
from lyapunov.arithmetic import BoundedArithmetic, Weight
from lyapunov.formats import FORMATS
from lyapunov.implementations import IMPLEMENTATIONS, executions_for
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, tensor_core_depth
from lyapunov.sublayers import NetworkConfig

from ..model.every_kind import SIZES


MEASURED = json.loads(
    (Path(__file__).parents[2] / "analysis/results/subnormal_operands.json").read_text()
)
FP16 = FORMATS["fp16"]


def bounds(constants):
    """Of the example's product, as einsum and as a matrix on a vector."""
    a, b, found = (np.array(MEASURED["example"][name]) for name in ("a", "b", "found"))
    at = BoundedArithmetic(
        {}, constants.model(), accumulation_depth=tensor_core_depth, scan_depth=1
    )
    products = {
        "einsum": at.einsum("ik,kj->ij", jnp.asarray(a), jnp.asarray(b)),
        "matmul": at.matmul(jnp.asarray(a), Weight(jnp.asarray(b.T))),
    }
    return np.abs(found - a @ b), products


def test_a_sum_of_subnormal_products_is_within_its_bound():
    """Assert it of the measured product, and that the bound is of its size."""
    off, products = bounds(KERNEL.on_tensor_cores(FP16))
    assert off.max() > 0
    for name, bound in products.items():
        np.testing.assert_array_less(off, bound.error, name)
    # depth 17 of units of a sum whose operands count as 2^-14 at least
    a = np.abs(MEASURED["example"]["a"])
    most = 17 * 2.0**-23 * (2.0**-14 * a.sum(1) + 1e-12)
    np.testing.assert_array_less(products["einsum"].error.max(1), 2 * most)


def test_a_bound_relative_to_small_products_is_exceeded():
    """Assert that the same product is caught where operands are taken as they are."""
    off, products = bounds(KERNEL)
    for bound in products.values():
        assert np.mean(off > bound.error) > 0.5


def test_figures_are_those_that_bounds_rest_on():
    """Assert that no product was off by more than its terms say."""
    rows = MEASURED["rows"]
    assert max(row["of_products"] for row in rows) > 100
    for row in rows:
        assert row["of_normal_products"] <= tensor_core_depth(row["terms"])


ON_GPUS = [name for name, one in IMPLEMENTATIONS.items() if one.needs_gpu]


@pytest.mark.parametrize("measure", ON_GPUS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_execution_on_a_gpu_knows_its_operands(measure, precision):
    """Assert it of every kind of sublayer that it runs, whole and by steps."""
    fmt = FORMATS[precision]
    normal = fmt.smallest_normal if fmt.is_reduced else 0.0
    ran = set()
    for kind, sizes in SIZES.items():
        for mode in ("prefill", "decode"):
            network = NetworkConfig(50, 50, 8, (sizes,))
            try:
                (found,) = executions_for(
                    network, [precision], mode=mode, measure=measure
                )
            except LyapunovError:
                continue
            for one in (found, *found.kinds.values()):
                assert one.constants.operand_normal == normal, (kind, mode, one.name)
            ran.add(kind)
    assert ran
