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

    def store(self, site, x, *, angle=False):
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

    def apply(self, operation, *operands):
        """The operation's formula; refused where it has none."""
        return operation.in_symbols(*(_array(x) for x in operands))

    def decay(self, dt, A):
        """exp(dt A)."""
        return self.exp(self.multiply(dt, A))

    def may_store(self, site, x, *, rescaled=False):
        """`x` itself."""
        return x

    def wrap(self, angle):
        """The angle itself: whole turns change nothing."""
        return angle

    def largest(self, x, count):
        """1 and 0, where SymPy can tell which entries are the largest."""
        x = _array(x)
        places = np.argsort(-x, axis=-1, kind="stable")[..., :count]
        keep = np.zeros(x.shape, dtype=object)
        np.put_along_axis(keep, places, 1, axis=-1)
        return keep

    def shares(self, x, floor=0.0):
        """x over its sum and the floor."""
        x = _array(x)
        total = x.sum(axis=-1, keepdims=True)
        return x / (total + floor if floor else total)

    def softmax(self, x, keep):
        """exp(x) over its sum."""
        weight = self.mask(self.exp(x), keep)
        return weight / weight.sum(axis=-1, keepdims=True)

    def layer_normalise(self, x, epsilon):
        """(x - mean) / sqrt(variance + epsilon)."""
        import sympy

        x = _array(x)
        size = sympy.Integer(x.shape[-1])
        apart = x - x.sum(axis=-1, keepdims=True) / size
        return _over_root(apart, size, epsilon)

    def rms_normalise(self, x, epsilon):
        """x / sqrt(mean(x^2) + epsilon)."""
        return _over_root(x, np.shape(x)[-1], epsilon)

    def unit_normalise(self, x, epsilon):
        """x / sqrt(sum x^2 + epsilon)."""
        return _over_root(x, 1, epsilon)

    def solve_unit_lower(self, system, x):
        """By substitution, row after row."""
        system, rows = _array(system), []
        for i, row in enumerate(np.moveaxis(_array(x), -2, 0)):
            for j in range(i):
                row = row - system[..., i, j, None] * rows[j]
            rows.append(row)
        return np.stack(rows, axis=-2)

    def columns(self, state):
        """The state itself."""
        return _array(state)

    def matmul(self, x, weight, bias=None):
        """x W^T + bias."""
        product = _array(x) @ _array(getattr(weight, "matrix", weight)).T
        return product if bias is None else product + _array(bias)

    def join(self, parts, axis=0):
        """The parts one after another."""
        return np.concatenate([_array(part) for part in parts], axis=axis)

    def carry(self, x):
        """The value itself."""
        return _array(x)

    def view(self, f, x):
        """f(x)."""
        return f(_array(x))

    def clip(self, x, low, high):
        """min(max(x, low), high)."""
        import sympy

        return _each(lambda one: sympy.Min(sympy.Max(one, low), high), x)

    def mask(self, x, keep):
        """x keep."""
        return _array(x) * np.asarray(keep, dtype=int)

    def cumsum(self, x, *, serial=False):
        """Running sums along the first axis."""
        return np.cumsum(_array(x), axis=0)

    def fixed(self, value):
        """The numbers themselves."""
        return value

    def turns(self, angle, roundings):
        """cos and sin."""
        import sympy

        return _each(sympy.cos, angle), _each(sympy.sin, angle)

    def fading(self, x):
        """exp(x): SymPy is not asked whether the sums fall."""
        return self.exp(x)

    def einsum(self, subscripts, x, y, start=None):
        """The sum written out."""
        product = np.einsum(subscripts, _array(x), _array(y), optimize=False)
        return product if start is None else product + _array(start)

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


def _over_root(x, count, epsilon) -> np.ndarray:
    """x / sqrt(sum x^2 / count + epsilon)."""
    import sympy

    x = _array(x)
    squares = (x * x).sum(axis=-1, keepdims=True) / sympy.Integer(count)
    return x / _each(sympy.sqrt, squares + epsilon)


def _each(function, x) -> np.ndarray:
    return np.vectorize(function, otypes=[object])(_array(x))
