"""Rules of sums and products entry by entry, and of what only moves entries."""

import jax
import jax.numpy as jnp

from ...formats import FP32
from .._bounded_values import SAFETY, Bounded, BoundedState, lift, where_known
from .declared import (
    Declared,
    largest_entry,
    operand,
    settled,
    unless_overflow,
)
from .storage import middle


def _alone(declared: Declared, value, error, norm, flushed) -> Bounded:
    """One IEEE operation in fp32: rounding is monotone, as in `storage`.

    `flushed` is what reading subnormal operands as 0, or flushing the result, may
    change.
    """
    if not declared.centred:
        flushed = jnp.broadcast_to(flushed, error.shape)
        if norm is not None:
            norm = norm + jnp.linalg.norm(flushed, axis=-1)
        return settled(declared, value, error + flushed, norm)
    exact = Bounded(value, error + flushed)
    centre, interval, flips = middle(exact, FP32.numbers())
    # `unit` 0 stands for exact arithmetic
    rounds = declared.model.unit > 0
    if norm is not None:
        flips = jnp.where(rounds, flips + flushed, 0.0)
        norm = (norm + jnp.linalg.norm(flips, axis=-1)) * SAFETY
    value = jnp.where(rounds, centre, value)
    return Bounded(value, jnp.where(rounds, interval, error), norm)


def add(declared: Declared, x, y, *, alone: bool = False) -> Bounded:
    """x + y: errors add up, elementwise and in L2; then one rounding."""
    x, y = lift(x), lift(y)
    value, error = x.value + y.value, x.error + y.error
    norm = x.norm + y.norm if x.value.shape == y.value.shape else None
    if not alone:
        # reading a subnormal operand as 0
        flushed = jnp.full(error.shape, 2.0 * declared.model.underflow)
        if norm is not None:
            norm = norm + jnp.linalg.norm(flushed, axis=-1)
        return settled(declared, value, error + flushed, norm)
    # what fp64 itself lost of the sum (Knuth's TwoSum)
    other = value - x.value
    lost = jnp.abs((x.value - (value - other)) + (y.value - other))
    flushed = 3.0 * _may_flush(declared, x, y, Bounded(value, error))
    if norm is not None:
        norm = norm + jnp.linalg.norm(lost, axis=-1)
    return _alone(declared, value, error + lost, norm, flushed)


def multiply(declared: Declared, x, y, *, alone: bool = False) -> Bounded:
    """x y: |x'y' - xy| <= (|x| + e_x) e_y + e_x |y|; then one rounding.

    In L2: max |x| n_y + (max |y| + max e_y) n_x, if shapes allow. Alone, the product
    of two numbers of at most 24 bits is exact in fp64.
    """
    if not alone:
        x, y = operand(declared, x), operand(declared, y)
    x, y = lift(x), lift(y)
    error = x.magnitude * y.error + x.error * jnp.abs(y.value)
    norm = None
    if x.value.ndim >= y.value.ndim and x.shape[-1:] == y.shape[-1:]:
        norm = (
            largest_entry(jnp.abs(x.value)) * y.norm
            + largest_entry(y.magnitude) * x.norm
        )
    value = x.value * y.value
    if not alone:
        return settled(declared, value, error, norm)
    scale = 1.0 + x.magnitude + y.magnitude
    flushed = _may_flush(declared, x, y, Bounded(value, error)) * scale
    return _alone(declared, value, error, norm, flushed)


def _may_flush(declared: Declared, *values: Bounded):
    """2^-126 where an operand or the result may be subnormal, 0 elsewhere."""
    threshold = 2.0 * declared.model.underflow
    small = jnp.asarray(False)
    for x in values:
        least = jnp.abs(x.value) - x.error
        small = small | ((least < threshold) & (x.magnitude > 0.0))
    return jnp.where(small, declared.model.underflow, 0.0)


def negate(declared: Declared, x) -> Bounded:
    """-x, with the same errors."""
    x = lift(x)
    return Bounded(-x.value, x.error, x.norm)


def carry(declared: Declared, x) -> Bounded:
    """A value with its error; a constant has none."""
    x = lift(x)
    return Bounded(x.value, x.error)


def view(declared: Declared, f, x) -> Bounded:
    """Entries and their errors move together."""
    x = lift(x)
    return Bounded(f(x.value), f(x.error))


def join(declared: Declared, parts, axis: int = 0) -> Bounded | BoundedState:
    """The parts one after another, with their errors; carriers by channels."""
    if isinstance(parts[0], BoundedState):
        return jax.tree.map(lambda *a: jnp.concatenate(a, axis=-1), *parts)
    if len(parts) == 1:
        return lift(parts[0])
    lifted = [lift(part) for part in parts]
    norm = None if axis else jnp.concatenate([part.norm for part in lifted])
    return Bounded(
        jnp.concatenate([part.value for part in lifted], axis=axis),
        jnp.concatenate([part.error for part in lifted], axis=axis),
        norm,
    )


def clip(declared: Declared, x, low: float, high: float) -> Bounded:
    """Clipping brings two numbers closer together, never further apart.

    What may be NaN stays so: an error that is not finite stays as it is.
    """
    x = lift(x)
    return Bounded(jnp.clip(x.value, low, high), x.error, x.norm)


def mask(declared: Declared, x, keep) -> Bounded:
    """Kept entries keep their errors; the others are 0 in every execution.

    But for what may be no number: executions that multiply by the mask, or by
    exponentials of -inf, make NaN of it.
    """
    x = lift(x)
    return Bounded(x.value * keep, where_known(x.known, x.error * keep))


def reached(declared: Declared, x, through) -> Bounded:
    """No bound where 0 times an infinity or a NaN may have been added."""
    x = lift(x)
    known = jnp.all(lift(through).known, axis=-1)
    return Bounded(x.value, where_known(known, x.error))


def fixed(declared: Declared, value) -> Bounded:
    """Off by one rounding, unless fp32 holds it."""
    value = jnp.asarray(value, jnp.float64)
    held = value == jnp.asarray(jnp.asarray(value, jnp.float32), jnp.float64)
    unit = jnp.where(held, 0.0, declared.model.unit)
    size = jnp.abs(value)
    # what fp32 holds did not overflow
    error = jnp.where(held, 0.0, unless_overflow(declared, size, unit * size))
    return Bounded(value, where_known(jnp.isfinite(value), error))
