"""What rules are told of an execution, and what one operation costs in it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._devices import has_gpu
from ...formats import FormatNumbers, StateNumbers
from .._bounded_values import Bounded, RoundingModel, lift


# What stays below this, roundings left out, does not overflow in fp32, whose largest
# number is almost twice that.
NO_OVERFLOW = 2.0**127


@runtime_checkable
class Declared(Protocol):
    """What an execution declares, and how it is followed; a bounding interpreter.

    A rule of a user's own operation reads `model` and, where it sums, a depth.
    """

    model: RoundingModel
    """The inner arithmetic: units of a rounding, of a sum, of functions."""
    accumulation_depth: Callable[[int], int]
    """Terms of a matrix product -> most additions that a term goes through."""
    reduction_depth: Callable[[int], int]
    """The same for a sum along a row."""
    scan_depth: int
    """Most additions that a term of a scan goes through."""
    sites: Mapping[str, FormatNumbers | StateNumbers]
    anchors: Mapping[str, Float[Array, "..."]]
    centred: bool
    in_scan: bool
    growths: dict[int, Float[Array, ""]] | None
    """What is given once to a kernel, which would find it again at every token."""
    compiled: bool
    """Whether rules run inside a Triton kernel that is compiled."""

    def decay(self, dt: Any, A: Any) -> Bounded:
        """exp(dt A); what knows more of its parameters has a rule of its own."""
        ...


def settled(declared: Declared, value, error, norm=None) -> Bounded:
    """One rounding to the inner format: |fl(v) - v| <= u |v|, or what underflows."""
    unit, underflow = declared.model.unit, declared.model.underflow
    magnitude = jnp.abs(value) + error
    rounding = unless_overflow(declared, magnitude, unit * magnitude + underflow)
    if norm is not None:
        norm = norm + jnp.linalg.norm(rounding, axis=-1)
    return Bounded(value, error + rounding, norm)


def unless_overflow(declared: Declared, magnitude, rounding):
    """inf where fp32 may overflow on the way: nothing is bounded then."""
    # `unit` 0 stands for exact arithmetic
    beyond = (magnitude > NO_OVERFLOW) & (declared.model.unit > 0)
    return jnp.where(beyond, jnp.inf, rounding)


def evaluated(declared: Declared, value, error, relative) -> Bounded:
    """A function evaluated with a relative error on top of the propagated one."""
    magnitude = jnp.abs(value) + error
    rounding = relative * magnitude + declared.model.underflow
    return Bounded(value, error + unless_overflow(declared, magnitude, rounding))


def near_zero(declared: Declared, terms: int, growth):
    """What a matrix product loses of operands near 0, beside relative losses.

    They may count as 0, products and sums as well; and what tensor cores cut off is
    relative to the exponents of operands, none of which is smaller than the smallest
    normal number's, n: g (|a| + n) (|b| + n) of each term for g |a| |b|.

    **Arguments:**

    - `growth`: g, what a sum of so many terms is off by at most, relative to sizes.

    **Returns:** times the sizes of the other operands, and whatever these are.
    """
    model = declared.model
    cut = growth * model.operand_normal
    of_sum = terms * (2.0 * model.underflow + cut * model.operand_normal)
    return model.underflow + cut, of_sum


def operand(declared: Declared, x, underflow=None) -> Bounded:
    """An operand as the arithmetic reads it: subnormal ones may count as 0."""
    x = lift(x)
    underflow = declared.model.underflow if underflow is None else underflow
    return Bounded(
        x.value,
        x.error + underflow,
        x.norm + x.shape[-1] ** 0.5 * underflow if x.shape else None,
    )


def apart(declared: Declared, x: Bounded) -> Bounded:
    """`written_out`, where norms have to be found with every value."""
    return x if declared.anchors or declared.in_scan else written_out(x)


def written_out(arrays):
    """Arrays, on a GPU kept in memory between what makes them and what reads them.

    XLA would join a chain of operations to the sums over channels behind it, and to
    other chains that read the same, in kernels that need more registers than there are.
    """
    return jax.lax.optimization_barrier(arrays) if has_gpu() else arrays


def dot(subscripts: str, *operands):
    """An exact einsum."""
    return jnp.einsum(subscripts, *operands, precision="highest")


def largest_entry(x):
    """The largest along the last axis."""
    return jnp.max(x, axis=-1)
