"""Every flow takes parameters that may lie anywhere in a box, as changed weights do."""

import jax
import jax.numpy as jnp
import pytest

from lyapunov.arithmetic import Bounded, Weight
from lyapunov.bounds.parameters import (
    BoundedParameter,
    BoundedWeight,
    ParameterArithmetic,
)

from .full_parameters import VARIANTS, parameters, width_of


TOKENS = 5


def boxed(p):
    """Parameters in boxes of no size."""
    none = jnp.zeros(())

    def one(a):
        if isinstance(a, Weight):
            return BoundedWeight(a.matrix, none, jnp.zeros_like(a.matrix), none)
        return BoundedParameter(a, jnp.zeros_like(a), jnp.zeros(a.shape[:-1]))

    return jax.tree.map(one, p, is_leaf=lambda x: isinstance(x, Weight))


@pytest.mark.parametrize("place", range(len(VARIANTS)))
def test_a_flow_asks_nothing_of_a_parameter_that_a_box_has_not(place):
    """Signs, sums and shapes of parameters go through the arithmetic."""
    sublayer, without = VARIANTS[place]
    with jax.enable_x64(True):
        p = parameters(sublayer, *without)

        def run(x):
            start = p.initial_state()
            return sublayer.flow(ParameterArithmetic(), x, boxed(p), start)[0]

        found = jax.eval_shape(run, jnp.zeros((TOKENS, width_of(sublayer))))
    assert isinstance(found, Bounded)
    assert found.value.shape[0] == TOKENS
