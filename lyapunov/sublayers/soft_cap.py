"""A cap of logits and gates that is smooth: c tanh(x / c)."""

from ..arithmetic import AbstractArithmetic


def soft_capped(at: AbstractArithmetic, x, cap: float, name: str, last: str):
    """Cap a value, an operation at a time; stored as `name`_divided, _tanh and `last`.

    torch divides by a number on CPUs and multiplies by its inverse on GPUs: a product
    with an inverse that is off by one rounding is off by as much as either.
    """
    x = at.store(f"{name}_divided", at.multiply(x, at.fixed(1.0 / cap)))
    x = at.store(f"{name}_tanh", at.tanh(x))
    return at.store(last, at.multiply(x, at.fixed(cap)))
