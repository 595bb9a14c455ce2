"""Ways to compute Lyapunov exponents, as objects.

A method is given a system whose state is flat, goes along the tokens a chunk at a time,
and returns the growth over windows of tokens. All of them accumulate logarithms:
products of thousands of decays leave the range of fp64, their logarithms do not.

Which method is the default is decided by what the recurrence declares (`method_for`):

- diagonal: `ClosedForm`, the means of the log decays;
- one decay a head: `ClosedForm`, once a head;
- block triangular: `ByBlocks`, each diagonal block by its own method;
- nothing: `QR`.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import ArgumentError
from ..recurrences.base import (
    AbstractDiagonalRecurrence,
    AbstractRecurrence,
    AbstractScalarRecurrence,
    AbstractTriangularRecurrence,
)
from ._given import check_step


class System(eqx.Module):
    """A driven system with a flat state."""

    step: Callable
    """(flat state, input) -> flat state."""
    state: Float[Array, " d"]
    """Before the first token."""
    recurrence: Any
    """The recurrence whose step this is; None for a plain function."""
    unravel: Callable = eqx.field(static=True)

    @staticmethod
    def of(step: Callable | AbstractRecurrence, state: Any) -> "System":
        """The system of a step or recurrence from this state on."""
        flat, unravel = ravel_pytree(state)
        recurrence = step if isinstance(step, AbstractRecurrence) else None
        return System(_Flat(step, unravel), flat, recurrence, unravel)


class _Flat(eqx.Module):
    """A step function on flat states."""

    step: Any
    unravel: Callable = eqx.field(static=True)

    def __call__(self, flat, inputs):
        one = self.step.step if isinstance(self.step, AbstractRecurrence) else self.step
        before = self.unravel(flat)
        after = one(before, inputs)
        check_step(before, after)
        return ravel_pytree(after)[0]


class AbstractMethod(eqx.Module):
    """How to compute the k largest exponents of a `System`."""

    @abc.abstractmethod
    def start(self, system: System, k: int, key: PRNGKeyArray) -> Any:
        """What is carried along the tokens, before the first."""

    @abc.abstractmethod
    def advance(
        self, system: System, carry: Any, inputs: Any, n_tokens: int, width: int
    ) -> tuple[Any, Float[Array, "windows found"]]:
        """Go on by n_tokens.

        **Arguments:**

        - `carry`: from `start` or an earlier `advance`.
        - `inputs`: of these tokens, stacked; None for an autonomous system.
        - `width`: tokens a window, a multiple of `grain`.

        **Returns:** the carry, and the log growth of every direction that is
        followed, k or more, over each window; the last may be shorter.
        """

    @abc.abstractmethod
    def notes(self, system: System, k: int) -> tuple[str, ...]:
        """What a reader of the result must know, in words."""

    def count(self, system: System) -> int:
        """How many exponents come by default: as many as the state has entries."""
        return system.state.size

    def most(self, system: System) -> int:
        """How many there are at most."""
        return self.count(system)

    def multiplicity(self, system: System) -> np.ndarray:
        """How many coordinates share each exponent that `advance` follows."""
        return np.ones(self.most(system), int)

    @property
    def grain(self) -> int:
        """Tokens that a window must be a multiple of."""
        return 1


class ClosedForm(AbstractMethod):
    r"""Means of the log decays: exact, for diagonal recurrences.

    $\lambda_i = \frac1T \sum_t \log a_{t,i}$, the product of diagonal Jacobians
    being diagonal. No trajectory is computed. Where all coordinates of a head share a
    decay, there is one exponent a head, with its multiplicity.
    """

    def start(self, system, k, key):
        """Nothing is carried."""
        del k, key
        if not isinstance(system.recurrence, AbstractDiagonalRecurrence):
            raise ArgumentError(
                f"ClosedForm needs a diagonal recurrence and {_name(system)} is none",
                hint="use QR()",
            )

    def advance(self, system, carry, inputs, n_tokens, width):
        """Sums over windows of tokens."""
        recurrence = system.recurrence
        scalar = isinstance(recurrence, AbstractScalarRecurrence)
        one = recurrence.head_log_decay if scalar else recurrence.log_decay
        log_decay = jax.vmap(one)(inputs).reshape(n_tokens, -1)
        return carry, windows_of(log_decay, width)

    def notes(self, system, k):
        """None: exact."""
        return ()

    def count(self, system):
        """All; one a head where decays are shared."""
        if isinstance(system.recurrence, AbstractScalarRecurrence):
            return _heads(system)
        return system.state.size

    def multiplicity(self, system):
        """Coordinates a head, where a head shares a decay."""
        heads = self.count(system)
        return np.full(heads, system.state.size // heads)


class ByBlocks(AbstractMethod):
    """The exponents of the diagonal blocks together, for a block-triangular recurrence.

    The eigenvalues of a block-triangular product are those of its diagonal blocks at
    every length. So are the growth rates that QR from the identity finds where parts
    stand before those that they depend on. In another order, from another start, or
    as singular values, rates agree in the limit, where the couplings are bounded and
    the blocks' exponents exist as limits.

    **Arguments:**

    - `method`: for all blocks. By default, for each what its own structure allows.
    """

    method: AbstractMethod | None = None

    def systems(self, system: System) -> list[tuple[AbstractMethod, System]]:
        """Each block as a system, and its method."""
        recurrence = system.recurrence
        if not isinstance(recurrence, AbstractTriangularRecurrence):
            raise ArgumentError(
                "ByBlocks needs a block-triangular recurrence and "
                f"{_name(system)} is none",
                hint="use QR()",
            )
        parts = recurrence.parts(system.unravel(system.state))
        return [
            (method_for(block) if self.method is None else self.method,
             System.of(block, part))
            for block, part in zip(recurrence.blocks, parts, strict=True)
        ]  # fmt: skip

    def start(self, system, k, key):
        """The whole state, and what each block carries."""
        del k
        systems = self.systems(system)
        keys = jax.random.split(key, len(systems))
        starts = [
            method.start(block, method.count(block), key)
            for (method, block), key in zip(systems, keys, strict=True)
        ]
        return system.state, starts

    def advance(self, system, carry, inputs, n_tokens, width):
        """The trajectory of the whole, then each block along it."""
        state, carries = carry

        def token(state, u):
            given = system.recurrence.block_inputs(system.unravel(state), u)
            return system.step(state, u), given

        state, given = jax.lax.scan(token, state, inputs, n_tokens)
        found = [
            method.advance(block, carry, own, n_tokens, width)
            for (method, block), carry, own in zip(
                self.systems(system), carries, given, strict=True
            )
        ]
        growth = jnp.concatenate([one for _, one in found], axis=1)
        return (state, [carry for carry, _ in found]), growth

    def notes(self, system, k):
        """Those of the blocks."""
        found = [m.notes(block, m.count(block)) for m, block in self.systems(system)]
        return tuple(dict.fromkeys(note for notes in found for note in notes))

    def count(self, system):
        """All of all blocks."""
        return sum(method.count(block) for method, block in self.systems(system))

    def multiplicity(self, system):
        """As in the blocks."""
        each = [method.multiplicity(block) for method, block in self.systems(system)]
        return np.concatenate(each)

    @property
    def grain(self):
        """That of the blocks."""
        return 1 if self.method is None else self.method.grain


class TangentGrowth(AbstractMethod):
    r"""Growth of one tangent vector: $\frac1T \log(|P v| / |v|)$, P the product.

    An estimate of the largest exponent from below on a diagonal recurrence: with all
    entries of v alike, the default, it misses by at most $\ln(d) / (2T)$; where v has
    next to no component along the leading direction, by more.

    **Arguments:**

    - `v`: of the state's size, flat; not 0.
    """

    v: Float[Array, " d"] | None = None

    def start(self, system, k, key):
        """State and unit vector."""
        del key
        if k != 1:
            raise ArgumentError(
                f"TangentGrowth gives 1 exponent, not {k}", hint="use QR()"
            )
        d, dtype = system.state.size, system.state.dtype
        v = jnp.full(d, 1.0, dtype) if self.v is None else jnp.asarray(self.v, dtype)
        if v.shape != (d,):
            raise ArgumentError(
                f"v has shape {v.shape} and the state has {d} entries", hint=f"({d},)"
            )
        return system.state, _normalise(v)[0]

    def advance(self, system, carry, inputs, n_tokens, width):
        """One pass of Jacobian-vector products, normalised at every step."""

        def one(carry, u):
            state, v = carry
            state, v = jax.jvp(lambda x: system.step(x, u), (state,), (v,))
            v, size = _normalise(v)
            return (state, v), jnp.log(size)[None]

        return along(one, carry, inputs, n_tokens, width)

    def notes(self, system, k):
        """What one vector can miss."""
        return ("growth of one vector: it may miss the largest exponent by O(1/T)",)

    def count(self, system):
        """One."""
        return 1

    def most(self, system):
        """Refused in `start`, with what to use instead."""
        return system.state.size

    def multiplicity(self, system):
        """One."""
        return np.ones(1, int)


def method_for(recurrence: Any) -> AbstractMethod:
    """The method that a recurrence's declared structure allows."""
    from ._qr import QR

    if isinstance(recurrence, AbstractDiagonalRecurrence):
        return ClosedForm()
    if isinstance(recurrence, AbstractTriangularRecurrence):
        return ByBlocks()
    return QR()


def along(one: Callable, carry: Any, inputs: Any, n_tokens: int, width: int):
    """Scan `one(carry, input) -> carry, log growth`, summed over windows of tokens.

    Windows are an outer scan: neither the growth of every token is held nor an array
    updated at each.
    """
    full, rest = divmod(n_tokens, width)
    first = jax.tree.map(lambda x: x[0], inputs)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, carry, first)[1]
    )

    def add(summed, u):
        carry, total = summed
        carry, growth = one(carry, u)
        return (carry, total + growth), None

    def window(carry, inputs, length):
        return jax.lax.scan(add, (carry, zero), inputs, length)[0]

    sums = []
    if full:
        head = jax.tree.map(
            lambda x: x[: full * width].reshape(full, width, *x.shape[1:]), inputs
        )
        carry, growth = jax.lax.scan(
            lambda c, u: window(c, u, width), carry, head, full
        )
        sums.append(growth)
    if rest:
        tail = jax.tree.map(lambda x: x[full * width :], inputs)
        carry, growth = window(carry, tail, rest)
        sums.append(growth[None])
    return carry, jnp.concatenate(sums)


def windows_of(
    growth: Float[Array, "tokens d"], width: int
) -> Float[Array, "windows d"]:
    """Sums over windows of `width` tokens, the last one shorter."""
    full = len(growth) // width
    sums = growth[: full * width].reshape(full, width, -1).sum(axis=1)
    if full * width < len(growth):
        sums = jnp.concatenate([sums, growth[full * width :].sum(axis=0)[None]])
    return sums


def _heads(system: System) -> int:
    """The state's first axis; the state of a head-wise recurrence is one array."""
    return jax.tree.leaves(system.unravel(system.state))[0].shape[0]


def _name(system: System) -> str:
    step = system.step.step if isinstance(system.step, _Flat) else system.step
    return repr(step)


def _normalise(v):
    """v / |v| and |v| without overflow or underflow on the way; 0 stays 0."""
    scale = jnp.max(jnp.abs(v))
    safe = jnp.where(scale > 0, scale, 1)
    v = v / safe
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1), size * scale
