"""The scan with its errors in one kernel, for GPUs (Pallas, by way of Triton).

One program takes a few channels of one sequence through all tokens, its states in
registers: nothing of the size seq x d_inner x d_state is ever written. What it runs
is the interpreter itself, so that its rules are the same, in one place, on every
machine. On a CPU XLA's own loop is used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._devices import has_gpu
from ..arithmetic import AbstractArithmetic, Bounded, BoundedState


# Stores between the decay and the read-out: rounding to them takes XLA's loop.
STORED_INSIDE = ("dB", "dBx", "state", "state_read", "skip", "read_out", "skip_sum")

# States that one warp holds: four a thread, for which what is the channel's is found
# once. With more a thread runs out of registers. A program is one warp where it can:
# several would hand each other the rows of a token by way of shared memory.
STATES_PER_WARP = 128


class Token(NamedTuple):
    """What one token brings to a scan, or all of them stacked."""

    dt: Any
    """(d_inner)."""
    drive: Any
    """dt u."""
    u: Any
    """None where drive and skip say it all."""
    B: Any
    """(d_state), or what `ScanKernel.rows` made of it."""
    C: Any
    """(d_state), or what `ScanKernel.rows` made of it."""
    skip: Any = None
    """D u, if it is known already."""


def scan(
    at: AbstractArithmetic, token: Callable, in_xla: Callable, operands: tuple
) -> tuple[Any, Any]:
    """(y, state after it), in a kernel where there is a GPU and the scan fits one.

    **Arguments:**

    - `token(at, carrier, inputs, A, D)`: one token, (carrier after it, y).
    - `in_xla(at, *operands)`: the whole, token by token, for everywhere else.
    - `operands`: dt, u, B, C, A, D, state as in `selective_scan`.
    """
    kernel = at.kernel(shape_of(operands[-1])[0]) if has_gpu() else None
    if kernel is None or not fits(at, operands):
        return in_xla(at, *operands)

    def by_loop(numbers, operands):
        inner = kernel.inside(numbers)
        return *in_xla(inner, *operands), inner.observed

    def by_kernel(numbers, operands):
        return in_kernel(at, token, numbers, operands)

    @jax.custom_jvp
    def run(numbers, operands):
        return jax.lax.platform_dependent(
            numbers, operands, cuda=by_kernel, default=by_loop
        )

    @run.defjvp
    def _(primals, tangents):
        # A kernel has no transpose; the loop has one. JAX asks that under vmap the
        # batch lies along the same axis here as above, where it is the first.
        rule = lambda *pairs: jax.jvp(by_loop, *pairs)
        return jax.lax.platform_dependent(primals, tangents, cuda=rule, default=rule)

    y, after, observed = run(kernel.numbers, operands)
    for name, x in observed.items():
        seen = at.observed.get(name)
        at.observed[name] = x if seen is None else jnp.maximum(seen, x)
    return y, after


def fits(at: AbstractArithmetic, operands: tuple) -> bool:
    """Whether one kernel can do it: no rounding inside, states a power of two."""
    states = shape_of(operands[-1])[0]
    return (
        _has_triton()
        and at.kernel(states) is not None
        and not any(at.stores(site) for site in STORED_INSIDE)
        and states & (states - 1) == 0
    )


def _has_triton() -> bool:
    """Whether this JAX has Pallas' Triton backend, which it is going to drop."""
    try:
        import jax.experimental.pallas.triton  # noqa: F401
    except ImportError:
        return False
    return True


def tiling(channels: int, states: int) -> tuple[int, int]:
    """(channels of one program, warps that share it)."""
    block = max(1, STATES_PER_WARP // states)
    while channels % block:
        block //= 2
    warps = max(1, block * states // STATES_PER_WARP)
    return block, warps


def in_kernel(
    at: AbstractArithmetic,
    token: Callable,
    numbers: tuple,
    operands: tuple,
    *,
    tile: tuple[int, int] | None = None,
    interpret: bool = False,
) -> tuple[Any, Any, dict]:
    """(y, state after it, what was observed at each token).

    **Arguments:**

    - `numbers`: of the interpreter's `ScanKernel`.
    - `tile`: (channels of one program, warps), if not `tiling`'s.
    - `interpret`: run by Pallas' interpreter, on any machine.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    dt, u, B, C, A, D, state = operands
    seq, channels = shape_of(dt)
    states = shape_of(state)[0]
    block, warps = tile or tiling(channels, states)
    kernel = at.kernel(states)
    assert kernel is not None
    before, carrier = jax.tree.flatten(at.initial_state(state))
    given = Token(dt, None, u, *kernel.rows(B, C))
    if isinstance(dt, Bounded):
        # with errors a product takes longer than to read it
        skip = at.multiply(u, D)
        given = given._replace(drive=at.multiply(dt, u), u=None, skip=skip)

    along = lambda rows: pl.BlockSpec((rows, block), lambda i: (0, i))
    spread = lambda x: (
        pl.BlockSpec((x.shape[0], block, 2), lambda i: (0, i, 0))
        if x.ndim == 3
        else single
    )
    single = pl.BlockSpec((block,), lambda i: (i,))
    # (seq, d_state), or one number a token
    shared = lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)
    # one vector, of which a kernel reads scalars; an array of none is no argument
    packed = jnp.stack([jnp.asarray(x, jnp.float64) for x in (*numbers, 0.0)])

    by_token = _parts(given)
    specs = jax.tree.map(lambda _: along(seq), by_token)
    specs = specs._replace(
        B=jax.tree.map(shared, by_token.B), C=jax.tree.map(shared, by_token.C)
    )
    arguments = (packed, _apart(before), by_token, _apart(_parts(A)), _parts(D))
    in_specs = (
        shared(packed),
        jax.tree.map(spread, arguments[1]),
        specs,
        jax.tree.map(spread, arguments[3]),
        single,
    )

    def one(scalars, before, row, A, D):
        """A token on arrays alone: state, outputs and observations."""
        inside = kernel.inside(tuple(scalars), compiled=not interpret)
        row, A = _whole(row), _whole(A)
        state = jax.tree.unflatten(carrier, before)
        if row.drive is None:
            row = row._replace(drive=inside.multiply(row.dt, row.u))
        after, y = token(inside, state, row, A, D)
        return jax.tree.leaves(after), _parts(y), inside.observed

    first = lambda by_token: jax.tree.map(lambda x: x[0], by_token)
    _, y_like, seen_like = jax.eval_shape(
        lambda packed, before, by_token, A, D: one(
            packed[: len(numbers)], before, first(by_token), A, D
        ),
        packed,
        before,
        by_token,
        _parts(A),
        _parts(D),
    )

    def selective_scan_kernel(packed, before, by_token, A, D, y, after, seen):
        scalars = [packed[i] for i in range(len(numbers))]
        whole = lambda ref: ref[:, :, 0] if len(ref.shape) == 3 else ref[...]
        A, D = (jax.tree.map(whole, x) for x in (A, D))

        # Memory answers later than a token takes, so that rows are read one ahead. What
        # all channels read is found near by; but with errors, that is not near enough.
        every = isinstance(dt, Bounded)
        early = by_token if every else by_token._replace(B=None, C=None)

        def read(refs, t):
            return jax.tree.map(
                lambda ref: ref[t, :] if len(ref.shape) == 2 else ref[t], refs
            )

        def at_token(t, carried):
            state, row = carried
            ahead = read(early, jnp.minimum(t + 1, seq - 1))
            if not every:
                row = row._replace(B=read(by_token.B, t), C=read(by_token.C, t))
            state, outputs, observed = one(scalars, state, row, A, D)
            jax.tree.map(lambda ref, x: _put(ref, t, x), y, outputs)
            for name, x in observed.items():
                seen[name][t, 0] = x
            return state, ahead

        state = [whole(ref) for ref in before]
        state, _ = jax.lax.fori_loop(0, seq, at_token, (state, read(early, 0)))
        for ref, x in zip(after, state, strict=True):
            if x.ndim == 2:
                ref[:, :, 0] = x
            else:
                ref[...] = x

    like = lambda x, *shape: jax.ShapeDtypeStruct(shape, x.dtype)
    programs = channels // block
    y, after, seen = pl.pallas_call(
        selective_scan_kernel,
        grid=(programs,),
        in_specs=in_specs,
        out_specs=(
            jax.tree.map(lambda _: along(seq), y_like),
            jax.tree.map(spread, arguments[1]),
            {name: pl.BlockSpec((seq, 1), lambda i: (0, i)) for name in seen_like},
        ),
        out_shape=(
            jax.tree.map(lambda x: like(x, seq, channels), y_like),
            [like(x, *x.shape) for x in arguments[1]],
            {name: like(x, seq, programs) for name, x in seen_like.items()},
        ),
        compiler_params=triton.CompilerParams(num_warps=warps),
        interpret=interpret,
    )(*arguments)
    after = [x[:, :, 0] if x.ndim == 3 else x for x in after]
    after = kernel.finish(kernel.inside(numbers), jax.tree.unflatten(carrier, after))
    seen = {name: jnp.max(x, axis=1) for name, x in seen.items()}
    return _whole(y), after, seen


def _apart(tree: Any) -> Any:
    """Matrices with every number twice in a row, so that a thread reads one at a time.

    Where a thread could read two channels at once Triton would give it both, and with
    them twice the work that is done once a channel.
    """
    twice = lambda x: jnp.stack([x, x], axis=-1) if x.ndim == 2 else x
    return jax.tree.map(twice, tree)


def _put(ref, t, x) -> None:
    ref[t, :] = x


def shape_of(x) -> tuple[int, ...]:
    """Shape of an array or of a value."""
    return jnp.shape(x.value if isinstance(x, Bounded | BoundedState) else x)


class _Pair(NamedTuple):
    """What matters of a value in a scan: no norm."""

    value: Any
    error: Any


def _parts(tree: Any) -> Any:
    """The same in arrays alone."""
    apart = lambda x: (
        _Pair(x.value, x.error) if isinstance(x, Bounded) else jnp.asarray(x)
    )
    return jax.tree.map(apart, tree, is_leaf=lambda x: isinstance(x, Bounded))


def _whole(tree: Any) -> Any:
    """The values of their parts."""
    together = lambda x: Bounded(*x) if isinstance(x, _Pair) else x
    return jax.tree.map(together, tree, is_leaf=lambda x: isinstance(x, _Pair))
