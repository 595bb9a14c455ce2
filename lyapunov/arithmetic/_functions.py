"""The functions of one entry that flows use: how arrays, errors and symbols read them.

Emulators compute them in the inner format itself, as kernels do, where that is fp32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._bounded_values import Bounded
from ._operation import AbstractOperation
from .rules import functions
from .rules.declared import Declared


@dataclasses.dataclass(frozen=True)
class Function(AbstractOperation):
    """A function of one entry: in arrays, its rule, and by SymPy's names."""

    array: Callable[[Any], Any]
    rule: Callable[[Declared, Any], Bounded]
    symbol: Callable[[Any, Any], Any]
    """(sympy, one expression) -> an expression."""
    in_fp64: bool = False
    """Whether emulators compute it in fp64, and round the result once."""

    def on_arrays(self, carry, settle, *operands):
        """In the inner format itself, or in fp64 and rounded once."""
        (x,) = operands
        if self.in_fp64:
            return settle(carry(self.array(jnp.asarray(x, jnp.float64))))
        return settle(self.array(carry(x)))

    def with_errors(self, declared, *operands):
        """By its rule."""
        return self.rule(declared, *operands)

    def in_symbols(self, *operands):
        """Entry by entry."""
        import sympy

        each = np.vectorize(lambda x: self.symbol(sympy, x), otypes=[object])
        return each(*(np.asarray(x, dtype=object) for x in operands))


EXP = Function(jnp.exp, functions.exp, lambda sympy, x: sympy.exp(x))
SOFTPLUS = Function(
    jax.nn.softplus, functions.softplus, lambda sympy, x: sympy.log(1 + sympy.exp(x))
)
SILU = Function(jax.nn.silu, functions.silu, lambda sympy, x: x / (1 + sympy.exp(-x)))
SIGMOID = Function(
    jax.nn.sigmoid, functions.sigmoid, lambda sympy, x: 1 / (1 + sympy.exp(-x))
)
TANH = Function(jnp.tanh, functions.tanh, lambda sympy, x: sympy.tanh(x))
RELU_SQUARED = Function(
    lambda x: jnp.square(jnp.maximum(x, 0.0)),
    functions.relu_squared,
    lambda sympy, x: sympy.Max(x, 0) ** 2,
)
SQUARE_ROOT = Function(
    # whose slope at 0 is taken to be 0, where there is none
    lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0 * x),
    functions.square_root,
    lambda sympy, x: sympy.sqrt(x),
    in_fp64=True,
)
GELU = Function(
    lambda x: jax.nn.gelu(x, approximate=False),
    lambda declared, x: functions.gelu(declared, x),
    lambda sympy, x: x * (1 + sympy.erf(x / sympy.sqrt(2))) / 2,
    in_fp64=True,
)


def _gelu_by_tanh(sympy, x):
    inner = x + sympy.Rational(44715, 10**6) * x**3
    return x * (1 + sympy.tanh(sympy.sqrt(2 / sympy.pi) * inner)) / 2


GELU_BY_TANH = Function(
    lambda x: jax.nn.gelu(x, approximate=True),
    lambda declared, x: functions.gelu(declared, x, tanh=True),
    _gelu_by_tanh,
    in_fp64=True,
)
