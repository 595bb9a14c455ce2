"""The arithmetic that flows are written in: each operation beside what it means."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _delta as delta, _functions as functions
from ._delta import DeltaChunk, DeltaToken
from ._form import WHOLE, Form
from ._operation import AbstractOperation


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


CHOSEN = "chosen"
"""What interpreters show of a choice among the entries of a row."""


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
    form: Form = WHOLE
    """In which of its forms a recurrence runs."""

    @abc.abstractmethod
    def stores(self, site: str) -> bool:
        """Whether the execution stores a tensor at this site."""

    @abc.abstractmethod
    def store(self, site: str, x: Any, *, angle: bool = False) -> Any:
        """What is read back after storing `x` at the site.

        `angle`: `x` comes from `wrap`, and executions may hold it whole turns away.
        """

    @abc.abstractmethod
    def may_store(self, site: str, x: Any, *, rescaled: bool = False) -> Any:
        """As `store`, where a program may keep `x` as it is or round it otherwise.

        Compilers fuse a product with the sum behind it; tensor cores may read all bits
        of an operand. Nothing is recorded.

        `rescaled`: a program may hold `x` times a factor, and rounds at other places.
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
    def apply(self, operation: AbstractOperation, *operands: Any) -> Any:
        """What an operation makes of the operands; one of a user's is an `Operation`.

        **Raises:** `UsageError` where this interpreter has no way to read it.
        """

    def exp(self, x: Any) -> Any:
        """exp(x)."""
        return self.apply(functions.EXP, x)

    def softplus(self, x: Any) -> Any:
        """log(1 + exp(x))."""
        return self.apply(functions.SOFTPLUS, x)

    def silu(self, x: Any) -> Any:
        """x / (1 + exp(-x))."""
        return self.apply(functions.SILU, x)

    def gelu(self, x: Any, *, tanh: bool = False) -> Any:
        """x Phi(x); `tanh`: its usual approximation by tanh (Hendrycks 2016)."""
        return self.apply(functions.GELU_BY_TANH if tanh else functions.GELU, x)

    def relu_squared(self, x: Any) -> Any:
        """max(x, 0)^2."""
        return self.apply(functions.RELU_SQUARED, x)

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + exp(-x))."""
        return self.apply(functions.SIGMOID, x)

    def tanh(self, x: Any) -> Any:
        """tanh(x)."""
        return self.apply(functions.TANH, x)

    def square_root(self, x: Any) -> Any:
        """sqrt(x) for x >= 0 in every execution, rounded once."""
        return self.apply(functions.SQUARE_ROOT, x)

    @abc.abstractmethod
    def decay(self, dt: Any, A: Any) -> Any:
        """exp(dt A) for dt >= 0 and A <= 0, so in [0, 1]."""

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
    def unit_normalise(self, x: Any, epsilon: float) -> Any:
        """x / sqrt(sum x^2 + epsilon) over the last axis."""

    @abc.abstractmethod
    def solve_unit_lower(self, system: Any, x: Any) -> Any:
        """(1 + system)^-1 x by substitution, `system` strictly lower triangular.

        (..., rows, rows) with (..., rows, columns).
        """

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

        Angles that are whole turns apart count as one: only `store` as an `angle`,
        `turns` and sums that are wrapped again may follow.
        """

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

    def updated(self, kept: Any, drive: Any) -> Any:
        """kept + drive inside `scan`, a recurrent state after a token: (..., states of
        a channel), of what is left of the one before."""
        return self.add(kept, drive)

    def step(self, state: Any, dt: Any, drive: Any, B: Any, A: Any) -> Any:
        """One token of a selective scan: exp(dt A) state + drive B.

        `dt`, `drive`: (d_inner). `B`: (d_state), or one of `ScanKernel.rows`. `A`:
        (d_state or 1, d_inner). The state is (d_state, d_inner).
        """
        a = self.decay(dt[None, :], A)
        return self.advance(state, a, self.multiply(drive[None, :], B[:, None]))

    @abc.abstractmethod
    def contract(self, state: Any, c: Any, start: Any = None) -> Any:
        """start + sum over the first axis of c state, summed in any order.

        (d_state, d_inner) with (d_state) gives (d_inner).
        """

    @abc.abstractmethod
    def initial_state(self, state: Any) -> Any:
        """The interpreter's carrier of a recurrence's state."""

    @abc.abstractmethod
    def columns(self, state: Any) -> Any:
        """The carrier of a state of columns (heads, value_dim, key_dim) in a scan."""

    def store_columns(self, site: str, state: Any) -> Any:
        """What is read back after storing a state of columns, which scales are of."""
        if not self.stores(site):
            return state
        stored = self.store(site, self.view(delta.keys_first, state))
        return self.view(delta.keys_last, stored)

    def store_under(self, site: str, x: Any, top: Any) -> Any:
        """What is read back after storing x, which is held over a maximum: the scale of
        what an execution stores is its own (`rules.log_weights`)."""
        return self.store(site, x)

    def store_scale(self, site: str, top: Any, state: Any) -> tuple[Any, Any]:
        """What is read back after storing such a maximum, (n), and the state that was
        held over it, (n, ...)."""
        return self.store(site, top), state

    def delta_step(self, state: Any, token: DeltaToken) -> Any:
        """One token of the delta rule inside `scan`: see `DeltaToken`."""
        return delta.step(self, state, token)

    def delta_read(self, state: Any, query: Any) -> Any:
        """What queries (heads, key_dim) read of a state of columns (heads, value_dim,
        key_dim): (heads, value_dim)."""
        return self.einsum("hvk,hk->hv", state, query)

    def delta_chunk(
        self, state: Any, chunk: DeltaChunk, *, inverted: bool = False
    ) -> tuple[Any, Any]:
        """A chunk of tokens of the delta rule: the state behind it, and what is read.

        (heads, value_dim, key_dim), and (tokens, heads, value_dim). `inverted`: u and w
        are products by an inverse, and not solved for.
        """
        return delta.chunk(self, state, chunk)

    @abc.abstractmethod
    def scan(self, body: Callable, state: Any, inputs: Any) -> tuple[Any, Any]:
        """Run `body(at, state, input) -> (state, output)` along the first axis.

        Nothing of the size seq x state is kept: what `body` does not output is gone
        after its step.
        """

    def in_row_blocks(
        self, body: Callable, state: Any, x: Any, rows: int, *, pairs: bool = False
    ) -> tuple[Any, Any]:
        """Run `body(at, state, x) -> (state, output)` for so many rows at a time.

        The state after the last row, and the joined outputs. A row of the output may
        depend on that row of `x` alone, and on earlier ones by way of the state. Where
        all rows go at once this is `body` itself.

        `pairs`: what `body` stores has an entry for each pair of rows, and its rows as
        the second axis; in blocks it is too large to be recorded.
        """
        return body(self, state, x)

    def kernel(self, terms: int) -> "ScanKernel | None":
        """What a scan of states with `terms` entries takes along into one kernel.

        None where the interpreter cannot run inside one.
        """
        return None


class ScanKernel(NamedTuple):
    """An interpreter in one kernel, which takes nothing but arrays that it is given."""

    numbers: tuple[Array, ...]
    """Scalars that the rules read."""
    inside: Callable[..., AbstractArithmetic]
    """`(numbers, compiled=False)`: the interpreter inside, with these numbers.
    `compiled`: in a Triton kernel that is compiled, not interpreted."""
    rows: Callable[[Any, Any], tuple[Any, Any]] = lambda B, C: (B, C)
    """B and C of all tokens, with what `step` and `contract` need for all channels."""
    finish: Callable[[Any, Any], Any] = lambda at, state: state
    """`(interpreter inside, carrier)`: the carrier after the scan as a value."""
