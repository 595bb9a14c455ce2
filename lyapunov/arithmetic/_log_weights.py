"""Operations on sums whose weights are held over a running maximum."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._bounded_values import Bounded
from ._operation import AbstractOperation
from .rules import log_weights as rules
from .rules.declared import Declared


@dataclasses.dataclass(frozen=True)
class OfSeveral(AbstractOperation):
    """A function of several entries, each operation of which is rounded."""

    array: Callable[..., Any]
    """(rounded to the inner format, operands in its dtype) -> an array."""
    rule: Callable[..., Bounded]
    symbols: Callable[..., Any]
    """(sympy, arrays of expressions) -> an array of expressions."""

    def on_arrays(self, carry, settle, *operands):
        """An operation at a time, in the inner format."""
        return self.array(settle, *(carry(x) for x in operands))

    def with_errors(self, declared: Declared, *operands: Any) -> Bounded:
        """By its rule."""
        return self.rule(declared, *operands)

    def in_symbols(self, *operands):
        """By SymPy's functions."""
        import sympy

        return np.asarray(self.symbols(sympy, *operands), dtype=object)


def _weights(settle, top, log_decay, key):
    moved = settle(top + log_decay)
    after = jnp.maximum(moved, key)
    kept, new = (settle(jnp.exp(settle(x - after))) for x in (moved, key))
    return jnp.stack(jnp.broadcast_arrays(kept, new, after))


def _weights_in_symbols(sympy, top, log_decay, key):
    moved = top + log_decay
    after = np.vectorize(sympy.Max, otypes=[object])(moved, key)
    exp = np.vectorize(sympy.exp, otypes=[object])
    return np.stack([exp(moved - after), exp(key - after), after])


LOG_WEIGHTS = OfSeveral(_weights, rules.log_weights, _weights_in_symbols)
"""Of a maximum so far, a log decay and a log weight: e^(m + w - M), e^(k - M) and M,
the larger of m + w and k, along a new first axis."""

UNDER_SCALE = OfSeveral(
    lambda settle, x, top: x, rules.under_scale, lambda sympy, x, top: x
)
"""x, a sum that is held over a maximum."""


def _normalised_in_symbols(sympy, numerator, x, top, epsilon):
    each = lambda function: np.vectorize(function, otypes=[object])
    least = each(sympy.Max)(each(sympy.Abs)(x), each(sympy.exp)(-top))
    return numerator / (least + epsilon)


NORMALISED = OfSeveral(
    lambda settle, numerator, x, top, epsilon: settle(
        numerator / settle(jnp.maximum(jnp.abs(x), settle(jnp.exp(-top))) + epsilon)
    ),
    rules.normalised,
    _normalised_in_symbols,
)
"""A numerator over max(|x|, e^-m) + epsilon, both held over a maximum m."""

QUOTIENT = OfSeveral(
    lambda settle, x, y: settle(x / y), rules.quotient, lambda sympy, x, y: x / y
)
"""x / y for y > 0."""
