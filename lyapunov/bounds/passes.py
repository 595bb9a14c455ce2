"""Passes of one sublayer over a batch, compiled once for whoever needs them.

T1 and T4 send the same bounded sublayer through; what differs is the error that comes
in with the stream. Compiling it is what costs on small models.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._devices import over_batch
from ..arithmetic import (
    Bounded,
    BoundedArithmetic,
    Exact,
    RoundingModel,
    constant,
)
from ..arithmetic._programs import program
from ..implementations import Execution
from ..sublayers.residual import Incoming, sublayer
from ..sublayers.sites import FLOW_ORDER


# Relative error of rounding, rms over numbers whose logarithms are uniform, in units:
# sqrt(1/3 * integral of m^-3 / log 2 over [1, 2)) = sqrt(1 / (8 log 2)).
ROUNDING = 0.4247


class Interpreter:
    """Makes bounding interpreters; equal for executions that share their depths."""

    def __init__(self, execution: Execution, seq: int, centred: bool):
        self._execution = execution
        centred = centred and not execution.compiled  # as `Execution.bounded` has it
        self._key = (execution.depths, seq, centred, execution.form)

    def __call__(self, sites, model, anchors=None, *, keeps=None) -> BoundedArithmetic:
        """An interpreter for sites and an inner arithmetic with these numbers."""
        _, seq, centred, _ = self._key
        return self._execution.bounded(
            seq,
            sites,
            model,
            anchors=anchors,
            centred=centred,
            keeps=keeps,
        )

    def __eq__(self, other) -> bool:
        return isinstance(other, Interpreter) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> tuple:
        return self._key  # all that a program is kept by


class Numbers(NamedTuple):
    """What differs from one execution to the next of a kind: arrays alone."""

    sites: dict
    model: RoundingModel


def numbers_of(execution: Execution) -> Numbers:
    """The numbers of an execution's sites and of its inner arithmetic."""
    return Numbers(execution.site_numbers(), execution.constants.model())


class BoundedPass(NamedTuple):
    """What came out of a sublayer, and how its error grew inside."""

    stream: Bounded
    """The residual stream that the sublayer read."""
    output: Bounded
    shares: dict[str, Float[Array, ""]]
    """For each stored tensor the radius over the tensor's L2 norm, over all tokens."""
    largest: dict[str, Float[Array, ""]]
    """The same at the token where it is largest."""


@program
def without_error(x):
    """A tensor, or several, that every execution has exactly."""
    return jax.tree.map(constant, x)


@program
def bounded_pass(
    flow, interpreter: Interpreter, numbers: Numbers, incoming: Incoming, p, start
) -> BoundedPass:
    """One sublayer with certified errors.

    **Arguments:**

    - `incoming`: of Bounded, (batch, seq, d_model).
    """

    def one(incoming: Any):
        at = interpreter(*numbers, keeps=_lengths)
        stream, output, _ = sublayer(at, flow, incoming, p, start)
        return stream, output, at.records

    stream: Any
    stream, output, records = over_batch(one, incoming)
    return BoundedPass(
        stream,
        output,
        {site: _share(x) for site, x in records.items()},
        {site: jnp.max(_by_token(x)) for site, x in records.items()},
    )


class _Lengths(NamedTuple):
    """What is kept of a stored tensor."""

    norm: Float[Array, "*tokens"]
    """L2 of the radius."""
    length: Float[Array, "*tokens"]
    """L2 of the tensor."""


def _lengths(stored: Bounded, _) -> _Lengths:
    return _Lengths(stored.norm, jnp.linalg.norm(stored.value, axis=-1))


def _share(x: _Lengths):
    radius = jnp.linalg.norm(x.norm)
    return jnp.where(radius == 0, 0.0, radius / jnp.linalg.norm(x.length))


def _by_token(x: _Lengths):
    """A tensor of zeros without error has 0."""
    return jnp.where(x.norm == 0, 0.0, x.norm / x.length)


@program
def exact_pass(flow, incoming: Incoming, p, start) -> Float[Array, "batch seq d_model"]:
    """The output of one sublayer in exact arithmetic."""
    at = lambda: Exact(observes=False)
    return over_batch(lambda i: sublayer(at(), flow, i, p, start)[1], incoming)


def where_it_grows(
    shares: dict[str, float], units: dict[str, float]
) -> tuple[str | None, float | None]:
    """The store across which T1 moves away most from what roundings do.

    At each store the radius is held against one rounding of the tensor, relative to
    its size; where the sum of the two grows most, the bound is lost.

    **Arguments:**

    - `shares`: of `BoundedPass`, as numbers.
    - `units`: the unit roundoff of each store's format.

    **Returns:** the site, and its part of all growth on the way (logarithms of the
    factors above 1); nothing where the radius never grows.
    """
    before, growth = 1.0, {}
    for site in sorted(shares, key=FLOW_ORDER.index):
        loose = 1.0 + shares[site] / (ROUNDING * units[site])
        if not math.isfinite(loose):
            return site, 1.0
        if loose > before:
            growth[site] = math.log(loose / before)
        before = loose
    if not growth:
        return None, None
    site = max(growth, key=lambda name: growth[name])
    return site, growth[site] / sum(growth.values())
