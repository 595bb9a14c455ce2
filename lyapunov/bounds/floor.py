"""What no bound that treats roundings as free could beat.

A bound for every rounding of the declared sites must cover the worst choice of their
signs. Searching for a bad choice gives a lower limit of any such bound: where it is
close to the bound, tightening the rules gains nothing more.
"""

import jax
import jax.numpy as jnp

from ..arithmetic import Exact, Perturbed
from ..arithmetic._programs import program
from ..arithmetic.random_keys import random_key
from ..formats import OperandNumbers, state_error_bound
from ..implementations import Execution
from ..sublayers.residual import sublayer


# Tokens of the first sequence that the search looks at; a prefix is self-contained.
FLOOR_TOKENS = 256
# Each iteration is a forward and a backward; the third moves the result by < 2 %.
SIGN_ITERATIONS = 3


def floor_l2(execution: Execution, flow, record, parameters, original, start):
    """The largest L2 distance found by choosing the signs of the roundings.

    Every stored tensor is moved by its rounding bound, with signs that follow the
    gradient of the distance (a power iteration in the max-norm ball).

    **Arguments:** as for `bounds.local.sublayer_bound`.

    **Returns:** the distance found and the execution's measured one, both from exact
    arithmetic with the checkpoint's own weights, over the first sequence's leading
    tokens.
    """
    tokens = min(FLOOR_TOKENS, record.residual.shape[1])
    sites = {
        name: numbers
        for name, numbers in execution.site_numbers().items()
        if name in record.stored and name != "residual"
    }
    return _floor(
        flow,
        sites,
        execution.form,
        jax.tree.map(lambda x: x[0, :tokens], record.incoming),
        record.output[0, :tokens],
        parameters,
        parameters if original is None else original,
        start,
    )


@program
def _floor(flow, sites, form, incoming, output, parameters, original, start):
    def run(offsets):
        at = Perturbed(offsets, form=form)
        result = sublayer(at, flow, incoming, parameters, start)[1]
        return result, at.records

    # The shapes of the stored tensors come from a run that is only traced.
    shapes = jax.eval_shape(lambda: run({name: jnp.zeros(()) for name in sites}))[1]
    zero = {name: jnp.zeros(shape.shape) for name, shape in shapes.items()}
    _, pull, values = jax.vjp(run, zero, has_aux=True)
    exact = sublayer(Exact(), flow, incoming, original, start)[1]
    end, size = {}, {}
    for name, numbers in sites.items():
        # beyond a fixed scale a value is read as its end, and moves one way alone
        held = values[name]
        if isinstance(numbers, OperandNumbers):
            held = numbers.within(held)
        most = state_error_bound(jnp.abs(held), numbers)
        end[name] = held - values[name]
        size[name] = jnp.where(jnp.isfinite(most), most, 0.0)

    def distance(offsets):
        return run(offsets)[0] - exact

    def improve(_, offsets):
        (gradient,) = pull(distance(offsets))
        return {
            name: end[name] + jnp.where(gradient[name] < 0, -size[name], size[name])
            for name in sites
        }

    keys = jax.random.split(random_key(0), len(sites))
    offsets = {
        name: end[name]
        + size[name] * jax.random.rademacher(key, size[name].shape, jnp.float64)
        for name, key in zip(sorted(sites), keys, strict=True)
    }
    offsets = jax.lax.fori_loop(0, SIGN_ITERATIONS, improve, offsets)
    return jnp.linalg.norm(distance(offsets)), jnp.linalg.norm(output - exact)
