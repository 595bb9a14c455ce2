"""T0 and T1: certified bounds within one sublayer, compared with what was measured.

T0 (op-local): the operation that ends in a stored tensor, on the stored tensors that
the execution itself fed into it. T1 (sublayer-local): the sublayer's output on the
execution's own input, against the checkpoint's weights in exact arithmetic.

T1 is centred: |execution - reference| <= |centre - reference| + radius. The centre
goes through the middle of what executions may have stored, which is one number where
no rounding tie is near; its distance from the reference is computed, not bounded. The
radius holds what the declared kind leaves open. Without centring every rounding counts
at its worst, which is what a bound known before the run has to do.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._devices import over_batch
from .._xla import little_memory
from ..arithmetic import Bounded, Weight
from ..arithmetic._programs import program
from ..arithmetic.rules.declared import written_out
from ..implementations import Execution
from ..sublayers.residual import Incoming, sublayer
from ..sublayers.sites import FLOW_ORDER
from ._norms import norms_of
from .passes import (
    Interpreter,
    Numbers,
    bounded_pass,
    exact_pass,
    numbers_of,
    without_error,
)


# The fp64 reference of a sublayer is taken to be off by at most this share of its
# token's norm. By the rules of this package with a unit of 2^-53 the bundled model's is
# within 2^-31, a random one of width 768 within 2^-24 (tests hold them to it).
REFERENCE_SHARE = 2.0**-24


class Comparison(NamedTuple):
    """A tensor of an execution against its bound, by token."""

    measured_square: Float[Array, "batch seq"]
    bound_square: Float[Array, "batch seq"]
    measured_max: Float[Array, "batch seq"]
    violations: Int[Array, "batch seq"]
    unbounded: Int[Array, "batch seq"]
    """Elements without a finite bound, which neither hold nor violate it."""
    largest: Float[Array, "batch seq"]
    """Largest magnitude of the execution's tensor."""
    non_finite: Int[Array, "batch seq"]


class Violation(NamedTuple):
    """Where an execution first exceeded its bound."""

    batch: int
    token: int
    channel: int
    measured: float
    bound: float


class Held(NamedTuple):
    """A tensor held to its bound."""

    violations: Int[Array, "batch seq"]
    unbounded: Int[Array, "batch seq"]
    """Elements without a finite bound, which neither hold nor violate it."""
    ratio: Float[Array, "batch seq"]
    """Largest measured over bound among the channels; 0 under an infinite bound."""
    place: Int[Array, ""]
    """The first violating element, in (batch, seq, channel) order."""
    measured: Float[Array, ""]
    """How far that element is off, and what its bound allows."""
    bound: Float[Array, ""]

    def first(self, shape: tuple[int, ...]) -> Violation | None:
        """The first violating element of a tensor of that shape."""
        if not np.any(self.violations):
            return None
        where = element(int(self.place), shape)
        return Violation(*where, float(self.measured), float(self.bound))


def finite_limit(value, error):
    """The error where it bounds something, else inf: an element that is unbounded.

    An overflow on the way leaves inf or inf times 0 (NaN), no finite bound either way,
    and there is none around a value that is not finite itself.
    """
    known = jnp.isfinite(error) & jnp.isfinite(value)
    return jnp.where(known, error, jnp.inf)


def compare(
    measured: Float[Array, "*batch seq channels"], against: Bounded
) -> Comparison:
    """Hold a tensor of an execution to its bound, element by element.

    The bound has the reference's own error in it. A measured inf or NaN under a finite
    bound violates. An element whose bound is inf or NaN is unbounded, and no more.
    """
    measured = written_out(measured)
    norm = jnp.where(jnp.isnan(against.norm), jnp.inf, against.norm)
    distance = jnp.abs(measured - against.value)
    limit = finite_limit(against.value, against.error)
    violated = ~(distance <= limit) & jnp.isfinite(limit)
    return Comparison(
        measured_square=jnp.sum(distance**2, axis=-1),
        bound_square=norm**2,
        measured_max=jnp.max(distance, axis=-1),
        violations=jnp.sum(violated, axis=-1),
        unbounded=jnp.sum(~jnp.isfinite(limit), axis=-1),
        largest=jnp.max(jnp.abs(measured), axis=-1),
        non_finite=jnp.sum(~jnp.isfinite(measured), axis=-1),
    )


def hold(measured: Float[Array, "batch seq *channels"], against: Bounded) -> Held:
    """Hold a tensor to a bound, and find the first element that exceeds it."""
    limit = finite_limit(against.value, against.error)
    distance = jnp.abs(measured - against.value)
    finite = jnp.isfinite(limit)
    violated = ~(distance <= limit) & finite
    ratio = jnp.where(distance > 0, distance / limit, 0.0)
    ratio = jnp.where(finite, jnp.where(jnp.isnan(ratio), jnp.inf, ratio), 0.0)
    place = jnp.argmax(violated.reshape(-1))
    return Held(
        jnp.sum(violated, axis=-1),
        jnp.sum(~finite, axis=-1),
        jnp.max(ratio, axis=-1),
        place,
        distance.reshape(-1)[place],
        limit.reshape(-1)[place],
    )


class SublayerBound(NamedTuple):
    """T1 for one sublayer of one execution."""

    comparison: Comparison
    weights_square: Float[Array, "batch seq"]
    """Squared L2 of what rounding the weights alone does to the output."""
    radius_square: Float[Array, "batch seq"]
    """Squared L2 of the radius, the part of T1 that is not computed."""
    shares: dict[str, Float[Array, ""]]
    """For each stored tensor the radius over the tensor's L2 norm."""


def operation_bounds(
    execution: Execution, flow, record, parameters, start
) -> dict[str, Comparison]:
    """T0: every stored tensor of the record against the operation that ends in it.

    **Arguments:**

    - `record`: a `SublayerRecord` of the execution.
    - `parameters`: as the execution holds them, with operator norms if known.
    - `start`: the sublayer's state before the first token.
    """
    return _operations(*_traced(execution, flow, record), parameters, start)


def sublayer_bound(
    execution: Execution,
    flow,
    record,
    parameters,
    original,
    start,
    *,
    centred: bool = True,
) -> SublayerBound:
    """T1: the sublayer's output on the execution's own input.

    **Arguments:** as for `operation_bounds`, and

    - `original`: the checkpoint's own parameters, or None where they are the same.
    - `centred`: False for the bound that treats every rounding as free.
    """
    bounded, held, reference = _passes(
        execution, flow, record, parameters, original, start, centred
    )
    comparison, weights, radius = _compared(
        record.output, reference, held, bounded.output
    )
    return SublayerBound(comparison, weights, radius, bounded.shares)


def first_violation(
    execution: Execution, flow, record, parameters, original, start
) -> tuple[str, Violation] | None:
    """The first tensor, in the order of the flow, that exceeds its bound, and where.

    Everything is bounded once more, since the arrays are kept only for this.
    """
    tensors = _operations_whole(*_traced(execution, flow, record), parameters, start)
    pairs = [(site, record.stored[site], tensors[site]) for site in tensors]
    pairs.sort(key=lambda pair: FLOW_ORDER.index(pair[0]))
    bounded, _, reference = _passes(
        execution, flow, record, parameters, original, start, True
    )
    output = "sublayer output", record.output, around(reference, bounded.output)
    for site, measured, against in [*pairs, output]:
        first = hold(measured, against).first(measured.shape)
        if first is not None:
            return site, first
    return None


def element(place: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Batch, token and channel of the element `place` of a flattened tensor.

    Channels of several axes (rank, head, state) are counted through, the last fastest.
    """
    token, channel = divmod(place, math.prod(shape[2:]))
    batch, token = divmod(token, shape[1])
    return batch, token, channel


class _Inputs(NamedTuple):
    """What differs from one run to the next: arrays alone."""

    numbers: Numbers
    incoming: Incoming
    stored: dict[str, Float[Array, "batch seq channels"]]


def _traced(execution: Execution, flow, record):
    inputs = _Inputs(numbers_of(execution), record.incoming, record.stored)
    return flow, Interpreter(execution, record.residual.shape[1], True), inputs


def _at_stores(keeps, flow, interpreter, inputs: _Inputs, parameters, start):
    """What is kept of the bound at each site: `keeps` of `BoundedArithmetic`."""

    def one(incoming, stored):
        at = interpreter(*inputs.numbers, stored, keeps=keeps)
        sublayer(at, flow, incoming, parameters, start)
        return at.records

    return over_batch(one, inputs.incoming, inputs.stored)


@program
def _operations_whole(*given):
    return _at_stores(None, *given)


# every stored tensor has a bound of its own, as large as itself
@program(**little_memory())
def _operations(*given):
    at_anchors = lambda bound, own: None if own is None else compare(own, bound)
    return _at_stores(at_anchors, *given)


def _passes(execution, flow, record, parameters, original, start, centred):
    """The bounded pass, and the exact ones with the held and the own weights."""
    seq = record.residual.shape[1]
    bounded = bounded_pass(
        flow,
        Interpreter(execution, seq, centred),
        numbers_of(execution),
        without_error(record.incoming),
        parameters,
        start,
    )._replace(stream=None)
    held = exact_pass(flow, record.incoming, parameters, start)
    reference = (
        held if original is None else exact_pass(flow, record.incoming, original, start)
    )
    return bounded, held, reference


@program
def around(reference, radius: Bounded) -> Bounded:
    """The radius around the centre as a bound around the reference."""
    own = REFERENCE_SHARE * jnp.linalg.norm(reference, axis=-1)
    shift = radius.value - reference
    return Bounded(
        reference,
        radius.error + jnp.abs(shift) + own[..., None],
        radius.norm + jnp.linalg.norm(shift, axis=-1) + own,
    )


@program
def _compared(output, reference, held, radius: Bounded):
    comparison = compare(output, around(reference, radius))
    return comparison, jnp.sum((held - reference) ** 2, axis=-1), radius.norm**2


def with_operator_norms(parameters):
    """The parameters with certified operator norms for all projections."""
    is_weight = lambda leaf: isinstance(leaf, Weight)
    leaves, structure = jax.tree.flatten(parameters, is_leaf=is_weight)
    norms = iter(norms_of([leaf.matrix for leaf in leaves if is_weight(leaf)]))
    known = [
        Weight(leaf.matrix, next(norms)) if is_weight(leaf) else leaf for leaf in leaves
    ]
    return jax.tree.unflatten(structure, known)
