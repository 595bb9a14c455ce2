"""SymPy: the same flow, read as formulas."""

import numpy as np

from ._interface import AbstractArithmetic


class Symbolic(AbstractArithmetic):
    """Values are NumPy object arrays of SymPy expressions; nothing is rounded.

    SymPy is imported by whoever makes the symbols. A matrix may be given as a plain
    object array where a flow has a `Weight`.
    """

    def __init__(self):
        self.records = {}
        self.observed = {}

    def stores(self, site):
        """Never."""
        return False

    def store(self, site, x):
        """`x` itself."""
        return x

    def add(self, x, y, *, alone=False):
        """x + y."""
        return _array(x) + _array(y)

    def multiply(self, x, y, *, alone=False):
        """x y."""
        return _array(x) * _array(y)

    def negate(self, x):
        """-x."""
        return -_array(x)

    def exp(self, x):
        """exp(x)."""
        import sympy

        return _each(sympy.exp, x)

    def decay(self, dt, A):
        """exp(dt A)."""
        return self.exp(self.multiply(dt, A))

    def softplus(self, x):
        """log(1 + exp(x))."""
        import sympy

        return _each(lambda one: sympy.log(1 + sympy.exp(one)), x)

    def silu(self, x):
        """x / (1 + exp(-x))."""
        import sympy

        return _each(lambda one: one / (1 + sympy.exp(-one)), x)

    def rms_normalise(self, x, epsilon):
        """x / sqrt(mean(x^2) + epsilon)."""
        import sympy

        x = _array(x)
        mean = (x * x).sum(axis=-1, keepdims=True) / sympy.Integer(x.shape[-1])
        return x / _each(sympy.sqrt, mean + epsilon)

    def matmul(self, x, weight, bias=None):
        """x W^T + bias."""
        product = _array(x) @ _array(getattr(weight, "matrix", weight)).T
        return product if bias is None else product + _array(bias)

    def join(self, parts, axis=0):
        """The parts one after another."""
        return np.concatenate([_array(part) for part in parts], axis=axis)

    def causal_conv(self, x, weight, bias):
        """The sum over taps, and the bias."""
        x, weight = _array(x), _array(weight)
        seq, width = x.shape[0] - weight.shape[1] + 1, weight.shape[1]
        taps = [x[tap : tap + seq] * weight[:, tap] for tap in range(width)]
        return sum(taps[1:], taps[0]) + _array(bias)

    def advance(self, state, a, b):
        """a state + b."""
        return a * state + b

    def contract(self, state, c, start=None):
        """start + the sum over the first axis of c state."""
        total = _array(c) @ _array(state)
        return total if start is None else total + start

    def initial_state(self, state):
        """The state itself."""
        return _array(state)

    def scan(self, body, state, inputs):
        """The body once for each token, written out."""
        outputs = []
        for token in zip(*inputs, strict=True):
            state, output = body(self, state, token)
            outputs.append(output)
        return state, np.stack(outputs)


def _array(x) -> np.ndarray:
    return np.asarray(x, dtype=object)


def _each(function, x) -> np.ndarray:
    return np.vectorize(function, otypes=[object])(_array(x))
