"""The arithmetic that flows are written in, and what its JAX interpreters share.

One file in spite of its length: an operation stands here beside what it means.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._row_blocks import emptied, over_blocks


class Weight(eqx.Module):
    """A matrix that multiplies activations, with what the bounds know about it.

    `operator_norm` is a certified upper bound of the largest singular value; inf
    where nobody computed it.
    """

    matrix: Float[Array, "rows columns"]
    operator_norm: Float[Array, ""]

    def __init__(self, matrix, operator_norm=jnp.inf):
        self.matrix = matrix
        self.operator_norm = jnp.asarray(operator_norm, jnp.float64)


class AbstractArithmetic(abc.ABC):
    """What a flow may do. Values are opaque to the flow but for indexing.

    A flow names every place where an implementation stores a tensor with `store`;
    between two stores the arithmetic is the execution's inner one. Arrays that are
    not values of the interpreter (parameters, constants) may appear as second
    operand and count as exact.

    `records` holds what the interpreter kept of the stored tensors, `observed` what
    it was shown with `observe`.
    """

    records: dict[str, Any]
    observed: dict[str, Any]
    channel_block: int | None = None
    """Channels of a recurrence that the interpreter likes to take at a time."""
    in_parallel: bool = False
    """Whether a recurrence may run over all tokens at once, in arrays."""
    chunked: bool = False
    """Whether a recurrence that has a chunked form runs in it."""
    chunks_at_once: bool = False
    """Whether that form hands states on in one product over all chunks, later ones
    times an exact 0; see `reached`."""

    @abc.abstractmethod
    def stores(self, site: str) -> bool:
        """Whether the execution stores a tensor at this site."""

    @abc.abstractmethod
    def store(self, site: str, x: Any) -> Any:
        """What is read back after storing `x` at the site."""

    @abc.abstractmethod
    def may_store(self, site: str, x: Any) -> Any:
        """As `store`, where a program may keep `x` as it is or round it otherwise.

        Compilers fuse a product with the sum behind it; tensor cores may read all bits
        of an operand. Nothing is recorded.
        """

    def observe(self, name: str, x: Any) -> None:  # noqa: B027
        """Show a value to whoever keeps statistics; changes nothing."""

    @abc.abstractmethod
    def add(self, x: Any, y: Any, *, alone: bool = False) -> Any:
        """x + y.

        `alone`: one IEEE operation whose rounded result is what is read on, never
        fused with another, so that it is the same in every execution.
        """

    @abc.abstractmethod
    def multiply(self, x: Any, y: Any, *, alone: bool = False) -> Any:
        """x y, elementwise; `alone` as in `add`."""

    @abc.abstractmethod
    def negate(self, x: Any) -> Any:
        """-x, exact in every format."""

    @abc.abstractmethod
    def exp(self, x: Any) -> Any:
        """exp(x)."""

    @abc.abstractmethod
    def decay(self, dt: Any, A: Any) -> Any:
        """exp(dt A) for dt >= 0 and A <= 0, so in [0, 1]."""

    @abc.abstractmethod
    def softplus(self, x: Any) -> Any:
        """log(1 + exp(x))."""

    @abc.abstractmethod
    def silu(self, x: Any) -> Any:
        """x / (1 + exp(-x))."""

    @abc.abstractmethod
    def gelu(self, x: Any, *, tanh: bool = False) -> Any:
        """x Phi(x); `tanh`: its usual approximation by tanh (Hendrycks 2016)."""

    @abc.abstractmethod
    def relu_squared(self, x: Any) -> Any:
        """max(x, 0)^2."""

    @abc.abstractmethod
    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + exp(-x))."""

    @abc.abstractmethod
    def tanh(self, x: Any) -> Any:
        """tanh(x)."""

    @abc.abstractmethod
    def largest(self, x: Any, count: int) -> Any:
        """1 at the `count` largest entries of the last axis, 0 at the others."""

    @abc.abstractmethod
    def shares(self, x: Any, floor: float = 0.0) -> Any:
        """x over its sum along the last axis and `floor`, for x >= 0."""

    @abc.abstractmethod
    def softmax(self, x: Any, keep: Any) -> Any:
        """exp(x) over its sum along the last axis, where `keep` is 1; 0 elsewhere."""

    @abc.abstractmethod
    def layer_normalise(self, x: Any, epsilon: float) -> Any:
        """(x - mean) / sqrt(variance + epsilon) over the last axis."""

    @abc.abstractmethod
    def rms_normalise(self, x: Any, epsilon: float) -> Any:
        """x / sqrt(mean(x^2) + epsilon) over the last axis."""

    @abc.abstractmethod
    def matmul(self, x: Any, weight: Weight, bias: Any = None) -> Any:
        """x W^T + bias, one sum in any order: (..., columns) -> (..., rows)."""

    @abc.abstractmethod
    def join(self, parts: Sequence[Any], axis: int = 0) -> Any:
        """The parts one after another along an axis; exact."""

    @abc.abstractmethod
    def carry(self, x: Any) -> Any:
        """A value as the interpreter holds it, to start a scan with."""

    @abc.abstractmethod
    def view(self, f: Callable, x: Any) -> Any:
        """f(x) for an f that only moves, repeats or pads entries with 0."""

    @abc.abstractmethod
    def clip(self, x: Any, low: float, high: float) -> Any:
        """min(max(x, low), high); exact."""

    @abc.abstractmethod
    def mask(self, x: Any, keep: Any) -> Any:
        """x where `keep` is 1, and 0 where it is 0; exact."""

    def reached(self, x: Any, through: Any) -> Any:
        """x of a program that made it by a sum with 0 times each entry of `through`.

        Numbers change nothing; an infinity or a NaN makes NaN of x. The last axis of
        `through` is summed over, and its others are broadcast to those of x.
        """
        return x

    @abc.abstractmethod
    def cumsum(self, x: Any, *, serial: bool = False) -> Any:
        """Running sums along the first axis, in brackets as deep as the scan's.

        `serial`: one term after another, each sum stored in fp32.
        """

    @abc.abstractmethod
    def wrap(self, angle: Any) -> Any:
        """An angle less as many whole turns as it holds.

        Angles that are whole turns apart count as one: only `store_angle`, `turns` and
        sums that are wrapped again may follow.
        """

    def store_angle(self, site: str, angle: Any) -> Any:
        """`store` of a wrapped angle."""
        return self.store(site, angle)

    @abc.abstractmethod
    def fading(self, x: Any) -> Any:
        """exp(min(x, 0)) for a sum of log decays."""

    @abc.abstractmethod
    def einsum(self, subscripts: str, x: Any, y: Any, start: Any = None) -> Any:
        """start + a product of two values with one sum over subscripts, any order.

        `start` is what the accumulator begins with.
        """

    @abc.abstractmethod
    def fixed(self, value: Any) -> Any:
        """Numbers of the model, such as multipliers, as executions hold them."""

    @abc.abstractmethod
    def turns(self, angle: Any, roundings: int) -> tuple[Any, Any]:
        """cos and sin of angles, given ones made in so many relative roundings."""

    @abc.abstractmethod
    def causal_conv(self, x: Any, weight: Any, bias: Any) -> Any:
        """Depthwise convolution: (width - 1 + seq, channels) -> (seq, channels).

        `weight` is (channels, width), oldest tap first.
        """

    @abc.abstractmethod
    def advance(self, state: Any, a: Any, b: Any) -> Any:
        """a state + b inside `scan`, with a from `decay` and so in [0, 1]."""

    def step(self, state: Any, dt: Any, drive: Any, B: Any, A: Any) -> Any:
        """One token of a selective scan: exp(dt A) state + drive B.

        `dt`, `drive`: (d_inner). `B`: (d_state), or of `drive_row`. `A`: (d_state or
        1, d_inner). The state is (d_state, d_inner).
        """
        a = self.decay(dt[None, :], A)
        return self.advance(state, a, self.multiply(drive[None, :], B[:, None]))

    def drive_row(self, B: Any) -> Any:
        """B of one token or all, with what `step` needs of it for all channels."""
        return B

    def read_out_row(self, c: Any) -> Any:
        """c of one token or all, with what `contract` needs of it for all channels."""
        return c

    @abc.abstractmethod
    def contract(self, state: Any, c: Any, start: Any = None) -> Any:
        """start + sum over the first axis of c state, summed in any order.

        (d_state, d_inner) with (d_state) gives (d_inner).
        """

    @abc.abstractmethod
    def initial_state(self, state: Any) -> Any:
        """The interpreter's carrier of a recurrence's state."""

    @abc.abstractmethod
    def scan(self, body: Callable, state: Any, inputs: Any) -> tuple[Any, Any]:
        """Run `body(at, state, input) -> (state, output)` along the first axis.

        Nothing of the size seq x state is kept: what `body` does not output is gone
        after its step.
        """

    def in_row_blocks(self, body: Callable, x: Any, rows: int) -> Any:
        """Run `body(at, x, places)` for at most so many leading rows of `x` at a time.

        The joined outputs. A row of the output may depend on that row of `x` alone, and
        what `body` stores has rows as its second axis. `places` numbers the rows. Where
        all rows go at once this is `body` itself; else what it stores is not recorded.
        """
        return body(self, x, jnp.arange(x.shape[0]))

    # ---- for a scan in one kernel, which takes nothing but arrays that it is given

    def scan_numbers(self, terms: int) -> tuple[Array, ...] | None:
        """Scalars that the rules read inside a scan whose states have `terms` entries.

        None where the interpreter cannot run inside a kernel.
        """
        return None

    def within(
        self, numbers: tuple[Array, ...], terms: int, *, compiled: bool = False
    ) -> "AbstractArithmetic":
        """The interpreter inside a scan, with these `scan_numbers(terms)`.

        `compiled`: inside a Triton kernel that is compiled, not interpreted.
        """
        raise NotImplementedError

    def finish(self, state: Any) -> Any:
        """The carrier after a scan as a value."""
        return state


class AbstractJaxArithmetic(AbstractArithmetic):
    """Interpreters whose values are arrays: they differ in what rounding they do."""

    _in_kernel: bool = False

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

    def exp(self, x):
        """exp(x)."""
        return self._settle(jnp.exp(self._carry(x)))

    def decay(self, dt, A):
        """exp(dt A)."""
        exponent = self._settle(self._carry(dt) * self._carry(A))
        return self._settle(jnp.exp(exponent))

    def softplus(self, x):
        """log(1 + exp(x))."""
        return self._settle(jax.nn.softplus(self._carry(x)))

    def silu(self, x):
        """x / (1 + exp(-x))."""
        return self._settle(jax.nn.silu(self._carry(x)))

    def gelu(self, x, *, tanh=False):
        """x Phi(x)."""
        wide = jax.nn.gelu(jnp.asarray(x, jnp.float64), approximate=tanh)
        return self._settle(self._carry(wide))

    def relu_squared(self, x):
        """max(x, 0)^2."""
        return self._settle(jnp.square(jnp.maximum(self._carry(x), 0.0)))

    def sigmoid(self, x):
        """1 / (1 + exp(-x))."""
        return self._settle(jax.nn.sigmoid(self._carry(x)))

    def largest(self, x, count):
        """Of equal entries the first."""
        _, places = jax.lax.top_k(x, count)
        return self._carry(jnp.sum(jax.nn.one_hot(places, x.shape[-1]), axis=-2))

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

    def may_store(self, site, x):
        """`x` itself."""
        return x

    def tanh(self, x):
        """tanh(x)."""
        return self._settle(jnp.tanh(self._carry(x)))

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
        wide = jnp.asarray(x, jnp.float64)
        mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
        scale = self._settle(jax.lax.rsqrt(self._carry(mean + epsilon)))
        return self._settle(self._carry(x) * scale)

    def initial_state(self, state):
        """The state in fp64."""
        return jnp.asarray(state, jnp.float64)

    def contract(self, state, c, start=None):
        """The state as the inner format holds it, times c, summed."""
        held = self._settle(self._carry(state))
        if self._in_kernel:
            total = along_states(self._carry(c)[:, None] * held)
        else:
            total = jnp.matmul(self._carry(c), held, precision="highest")
        return self._settle(total if start is None else total + start)

    def in_row_blocks(self, body, x, rows):
        """One block after another, without a record of any."""
        if rows >= x.shape[0]:
            return super().in_row_blocks(body, x, rows)
        make = lambda key: (self._inside_block(key), dict)
        return over_blocks(make, body, x, rows, self._token_keys)[0]

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
