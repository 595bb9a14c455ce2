"""T0 and T1: certified bounds within one sublayer, compared with what was measured.

T0 (op-local): the operation that ends in a stored tensor, on the stored tensors that
the execution itself fed into it. T1 (sublayer-local): the sublayer's output on the
execution's own input, against the checkpoint's weights in exact arithmetic.

T1 is centred: |execution - reference| <= |centre - reference| + radius. The centre is
the execution that computes exactly between its stores; its distance from the reference
is computed, not bounded. The radius holds what the declared kind leaves open. Without
centring every rounding counts at its worst, which is what a bound known before the run
has to do.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..arithmetic import Bounded, BoundedArithmetic, Exact, RoundingModel, Weight
from ..executions import Execution
from ..flows.residual import sublayer
from .operator_norm import operator_norm_bound


def reference_share(seq: int) -> float:
    """The reference's own error as a share of any bound of an fp32 execution.

    The reference follows the same rules with a unit 2^-29 times fp32's. The rules are
    sums of products with nonnegative coefficients and no constant term in the units,
    so they shrink at least as fast; only the additions on a term's way through the
    scan are more, `seq` where a kernel may have as few as one, and its exp is good to
    4 ulp where a kernel may promise one half.
    """
    return 2.0**-29 * (seq + 8)


class Comparison(NamedTuple):
    """A tensor of an execution against its bound, by token."""

    measured_square: Float[Array, "batch seq"]
    bound_square: Float[Array, "batch seq"]
    measured_max: Float[Array, "batch seq"]
    violations: Int[Array, "batch seq"]
    largest: Float[Array, "batch seq"]
    """Largest magnitude of the execution's tensor."""
    non_finite: Int[Array, "batch seq"]
    channels: int


class Violation(NamedTuple):
    """Where an execution first exceeded its bound."""

    batch: int
    token: int
    channel: int
    measured: float
    bound: float


def _limit(against: Bounded, seq: int):
    # An overflow on the way leaves inf or inf times 0: no finite bound either way.
    bound = jnp.where(jnp.isnan(against.error), jnp.inf, against.error)
    return bound * (1.0 + reference_share(seq))


def compare(
    measured: Float[Array, "batch seq channels"], against: Bounded
) -> Comparison:
    """Hold a tensor of an execution to its bound, element by element.

    An element violates when its distance exceeds the bound plus the reference's own
    error; a measured inf or NaN under a finite bound violates.
    """
    norm = jnp.where(jnp.isnan(against.norm), jnp.inf, against.norm)
    distance = jnp.abs(measured - against.value)
    limit = _limit(against, measured.shape[1])
    violated = ~(distance <= limit) & jnp.isfinite(limit)
    return Comparison(
        measured_square=jnp.sum(distance**2, axis=-1),
        bound_square=norm**2,
        measured_max=jnp.max(distance, axis=-1),
        violations=jnp.sum(violated, axis=-1),
        largest=jnp.max(jnp.abs(measured), axis=-1),
        non_finite=jnp.sum(~jnp.isfinite(measured), axis=-1),
        channels=measured.shape[-1],
    )


def first_violation(
    measured: Float[Array, "batch seq channels"], against: Bounded
) -> Violation | None:
    """The first violation by batch, token and channel."""
    distance = np.asarray(jnp.abs(measured - against.value))
    limit = np.asarray(_limit(against, measured.shape[1]))
    violated = ~(distance <= limit) & np.isfinite(limit)
    if not violated.any():
        return None
    place = np.unravel_index(np.argmax(violated), violated.shape)
    batch, token, channel = (int(i) for i in place)
    return Violation(batch, token, channel, float(distance[place]), float(limit[place]))


class LocalBounds(NamedTuple):
    """Both tiers for one sublayer of one execution."""

    t0: dict[str, Comparison]
    t1: Comparison
    weights_square: Float[Array, "batch seq"]
    """Squared L2 of what rounding the weights alone does to the output."""
    radius_square: Float[Array, "batch seq"]
    """Squared L2 of the radius, the part of T1 that is not computed."""
    bounded: Bounded
    tensors: dict[str, Bounded]


def local_bounds(
    execution: Execution,
    flow,
    record,
    parameters,
    original,
    start,
    *,
    centred: bool = True,
) -> LocalBounds:
    """T0 for every stored tensor of the record, T1 for its output.

    **Arguments:**

    - `record`: a `SublayerRecord` of the execution.
    - `parameters`: as the execution holds them, with operator norms if known.
    - `original`: the checkpoint's own, or None where they are the same.
    - `centred`: False for the bound that treats every rounding as free.
    """
    seq = record.residual.shape[1]
    return _local_bounds(
        flow,
        _Interpreter(execution, seq, centred),
        execution.site_numbers(),
        execution.constants.model(),
        record.residual,
        record.hidden,
        record.output,
        record.stored,
        parameters,
        original,
        start,
    )


class _Interpreter:
    """Makes bounding interpreters; equal for executions that share their depths."""

    def __init__(self, execution: Execution, seq: int, centred: bool):
        self._execution = execution
        self._key = (execution.depths, seq, centred)

    def __call__(self, sites, model, anchors=None) -> BoundedArithmetic:
        _, seq, centred = self._key
        return self._execution.bounded(
            seq, sites, model, anchors=anchors, centred=centred
        )

    def __eq__(self, other) -> bool:
        return isinstance(other, _Interpreter) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@eqx.filter_jit
def _local_bounds(
    flow,
    interpreter: _Interpreter,
    sites: dict,
    model: RoundingModel,
    residual,
    hidden,
    output,
    stored: dict,
    parameters,
    original,
    start,
) -> LocalBounds:
    def t1(residual, hidden):
        at = interpreter(sites, model)
        return sublayer(at, flow, residual, hidden, parameters, start)[1]

    def t0(residual, hidden, stored):
        at = interpreter(sites, model, stored)
        sublayer(at, flow, residual, hidden, parameters, start)
        return at.records

    def exact(p):
        run = lambda r, h: sublayer(Exact(), flow, r, h, p, start)[1]
        return jax.vmap(run)(residual, hidden)

    radius = jax.vmap(t1)(residual, hidden)
    reference = held = exact(parameters)
    if original is not None:
        reference = exact(original)
    shift = jnp.abs(radius.value - reference)
    bounded = Bounded(
        reference,
        radius.error + shift,
        radius.norm + jnp.linalg.norm(shift, axis=-1),
    )
    tensors = jax.vmap(t0)(residual, hidden, stored) if stored else {}
    return LocalBounds(
        t0={name: compare(stored[name], tensors[name]) for name in tensors},
        t1=compare(output, bounded),
        weights_square=jnp.sum((held - reference) ** 2, axis=-1),
        radius_square=radius.norm**2,
        bounded=bounded,
        tensors=tensors,
    )


def with_operator_norms(parameters, names=("in_proj", "x_proj", "dt_proj", "out_proj")):
    """The parameters with certified operator norms for the named projections."""
    for name in names:
        weight = getattr(parameters, name)
        norm = operator_norm_bound(np.asarray(weight.matrix))
        parameters = eqx.tree_at(
            lambda p, n=name: getattr(p, n), parameters, Weight(weight.matrix, norm)
        )
    return parameters
