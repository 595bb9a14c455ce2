"""What interpreters share whose values are arrays of JAX."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._delta import solve_unit_lower
from ._interface import CHOSEN, AbstractArithmetic
from ._row_blocks import at_once, emptied, over_blocks


class AbstractJaxArithmetic(AbstractArithmetic):
    """Interpreters whose values are arrays: they differ in what rounding they do."""

    _in_kernel: bool = False
    _stored: Sequence[tuple[Any, Any]] = ()
    """Tensors stored so far and what is known of each, of those who ask for repeats."""

    @abc.abstractmethod
    def _settle(self, x: Array) -> Array:
        """Round the result of one operation to the inner format."""

    @abc.abstractmethod
    def _carry(self, x: Any) -> Array:
        """An array in the dtype that this interpreter computes in."""

    @abc.abstractmethod
    def _inside_scan(self, key: Array | None) -> "AbstractJaxArithmetic":
        """The interpreter for the body of a scan; `key` is of `_token_keys`."""

    def _token_keys(self, tokens: int) -> Array | None:
        """One random key for each token of a scan, where the interpreter draws."""
        return None

    def add(self, x, y, *, alone=False):
        """x + y."""
        return self._settle(self._carry(x) + self._carry(y))

    def multiply(self, x, y, *, alone=False):
        """x y."""
        return self._settle(self._carry(x) * self._carry(y))

    def negate(self, x):
        """-x."""
        return -self._carry(x)

    def apply(self, operation, *operands):
        """As the operation says of arrays."""
        return operation.on_arrays(self._carry, self._settle, *operands)

    def decay(self, dt, A):
        """exp(dt A)."""
        exponent = self._settle(self._carry(dt) * self._carry(A))
        return self._settle(jnp.exp(exponent))

    def largest(self, x, count):
        """Of equal entries the first."""
        _, places = jax.lax.top_k(x, count)
        chosen = self._carry(jnp.sum(jax.nn.one_hot(places, x.shape[-1]), axis=-2))
        self.observe(CHOSEN, chosen)
        return chosen

    def shares(self, x, floor: float = 0.0):
        """The sum in fp64, rounded once."""
        total = jnp.sum(jnp.asarray(x, jnp.float64), axis=-1, keepdims=True) + floor
        return self._settle(self._carry(x) / self._settle(self._carry(total)))

    def softmax(self, x, keep):
        """Shifted by the largest entry; the sum in fp64."""
        wide = jnp.where(keep > 0, jnp.asarray(x, jnp.float64), -jnp.inf)
        return self._settle(self._carry(jax.nn.softmax(wide, axis=-1)))

    def layer_normalise(self, x, epsilon):
        """Mean and variance in fp64, each rounded once."""
        wide = jnp.asarray(x, jnp.float64)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True)
        scale = self._settle(jax.lax.rsqrt(self._carry(variance + epsilon)))
        apart = self._settle(self._carry(x) - self._settle(self._carry(mean)))
        return self._settle(apart * scale)

    def matmul(self, x, weight, bias=None):
        """The sum in fp64 and rounded once: within any accumulator's bound."""
        product = jnp.matmul(
            jnp.asarray(x, jnp.float64), weight.matrix.T, precision="highest"
        )
        if bias is not None:
            product = product + bias
        return self._settle(self._carry(product))

    def join(self, parts, axis=0):
        """The parts one after another."""
        if len(parts) == 1:
            return parts[0]
        return jnp.concatenate([self._carry(part) for part in parts], axis=axis)

    def carry(self, x):
        """In the dtype that this interpreter computes in."""
        return self._carry(x)

    def view(self, f, x):
        """f(x)."""
        return f(x)

    def clip(self, x, low, high):
        """min(max(x, low), high)."""
        return jnp.clip(x, low, high)

    def mask(self, x, keep):
        """x keep."""
        return self._carry(x) * self._carry(keep)

    def may_store(self, site, x, *, rescaled=False):
        """`x` itself."""
        return x

    def wrap(self, angle):
        """x - 2 pi floor(x / (2 pi))."""
        turn = self._settle(self._carry(2 * math.pi))
        whole = jnp.floor(self._settle(self._carry(angle) / turn))
        return self._settle(angle - self._settle(turn * whole))

    def cumsum(self, x, *, serial=False):
        """The sums in fp64, each rounded once."""
        return self._settle(self._carry(jnp.cumsum(jnp.asarray(x, jnp.float64), 0)))

    def fading(self, x):
        """exp(min(x, 0))."""
        return self._settle(jnp.exp(jnp.minimum(self._carry(x), 0.0)))

    def einsum(self, subscripts, x, y, start=None):
        """The sum in fp64 and rounded once: within any accumulator's bound."""
        wide = [jnp.asarray(v, jnp.float64) for v in (x, y)]
        product = jnp.einsum(subscripts, *wide, precision="highest")
        if start is not None:
            product = product + start
        return self._settle(self._carry(product))

    def fixed(self, value):
        """In the dtype that this interpreter computes in."""
        return self._settle(self._carry(value))

    def turns(self, angle, roundings):
        """From exact angles, each rounded once."""
        return tuple(self._settle(self._carry(f(angle))) for f in (jnp.cos, jnp.sin))

    def causal_conv(self, x, weight, bias):
        """Bias first, then oldest tap first, each a fused multiply-add."""
        seq = x.shape[0] - weight.shape[1] + 1
        out = jnp.broadcast_to(self._carry(bias), (seq, x.shape[1]))
        for tap in range(weight.shape[1]):
            out = self._settle(out + x[tap : tap + seq] * self._carry(weight[:, tap]))
        return out

    def rms_normalise(self, x, epsilon):
        """The mean in fp64, rounded once: within the depth of any reduction."""
        return self._over_root(x, jnp.mean, epsilon)

    def unit_normalise(self, x, epsilon):
        """The sum in fp64, rounded once: within the depth of any reduction."""
        return self._over_root(x, jnp.sum, epsilon)

    def _over_root(self, x, total, epsilon):
        wide = jnp.asarray(x, jnp.float64)
        squares = total(wide * wide, axis=-1, keepdims=True)
        scale = self._settle(jax.lax.rsqrt(self._carry(squares + epsilon)))
        return self._settle(self._carry(x) * scale)

    def solve_unit_lower(self, system, x):
        """In fp64 and rounded once: within the bound of any substitution."""
        wide = [jnp.asarray(a, jnp.float64) for a in (system, x)]
        return self._settle(self._carry(solve_unit_lower(*wide)))

    def initial_state(self, state):
        """The state in fp64."""
        return jnp.asarray(state, jnp.float64)

    columns = initial_state

    def contract(self, state, c, start=None):
        """The state as the inner format holds it, times c, summed."""
        held = self._settle(self._carry(state))
        if self._in_kernel:
            total = along_states(self._carry(c)[:, None] * held)
        else:
            total = jnp.matmul(self._carry(c), held, precision="highest")
        return self._settle(total if start is None else total + start)

    def in_row_blocks(self, body, state, x, rows, *, pairs=False):
        """One block after another; what a block recorded and saw is joined."""
        if at_once(x, rows):
            return body(self, state, x)

        outside, inside = self._known_of(x), []

        def make(key, places):
            at = self._inside_block(key)
            return at, lambda: ({}, {}) if pairs else (at.records, at.observed)

        def block(at, state, x):
            # a block's rows are other arrays than the tensor that they are of
            at._stored = [*at._stored, *_each(x, outside)]
            state, output = body(at, state, x)
            inside[:] = at._known_of(output)
            return state, output

        # a value may be wider in front of the first block than behind it
        enter = lambda state, like: jax.tree.map(
            lambda a, of: jnp.asarray(a, of.dtype), state, like
        )
        state, output, (records, observed) = over_blocks(
            make, block, state, x, rows, given=self._token_keys, enter=enter
        )
        self.records.update(records)
        self.observed.update(observed)
        self._stored = [*self._stored, *_each(output, inside)]
        return state, output

    def _known_of(self, x: Any) -> list[list[Any]]:
        """What is known of the leaves of `x` as tensors that are stored."""
        return [
            [known for tensor, known in self._stored if tensor is leaf]
            for leaf in jax.tree.leaves(x)
        ]

    def _inside_block(self, key: Array | None) -> "AbstractJaxArithmetic":
        """The interpreter for a block of rows; `key` is of `_token_keys`."""
        return emptied(self)

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body, one token at a time."""

        def one(state, given):
            x, key = given
            inside = self._inside_scan(key)
            state, output = body(inside, state, x)
            return state, (output, inside.observed)

        keys = self._token_keys(jax.tree.leaves(inputs)[0].shape[0])
        state, (outputs, observed) = jax.lax.scan(one, state, (inputs, keys))
        for name, per_token in observed.items():
            # blocks of channels: each token keeps its largest
            seen = self.observed.get(name)
            self.observed[name] = (
                per_token if seen is None else jnp.maximum(seen, per_token)
            )
        return state, outputs


def along_states(products: Array) -> Array:
    """Sum over the states, for kernels, which have no product of vector and matrix."""
    return jnp.sum(products, axis=0)


def _each(x: Any, known: list[list[Any]]) -> list[tuple[Any, Any]]:
    return [
        (leaf, one)
        for leaf, several in zip(jax.tree.leaves(x), known, strict=True)
        for one in several
    ]
