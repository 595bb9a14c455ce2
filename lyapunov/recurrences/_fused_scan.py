"""The scan with its errors in one kernel, for GPUs (Pallas, by way of Triton).

One program takes a few channels of one sequence through all tokens, its states in
registers: nothing of the size seq x d_inner x d_state is ever written. What it runs
is the interpreter itself, so that its rules are the same, in one place, on every
machine. On a CPU XLA's own loop is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic, Bounded


# Stores between the decay and the read-out: rounding to them takes XLA's loop.
STORED_INSIDE = ("dB", "dBx", "state", "state_read", "skip", "read_out", "skip_sum")

# States that one warp holds: two a thread. More would wait for registers, fewer
# channels at a time would read memory in pieces below 32 bytes.
STATES_PER_WARP = 64
MOST_WARPS = 8


def scan(
    at: AbstractArithmetic, token: Callable, in_xla: Callable, operands: tuple
) -> tuple[Any, Any]:
    """(y, state after it), in a kernel where there is a GPU and the scan fits one.

    **Arguments:**

    - `token(at, carrier, inputs, A, D)`: one token, (carrier after it, y).
    - `in_xla(at, *operands)`: the whole, token by token, for everywhere else.
    - `operands`: dt, u, B, C, A, D, state as in `selective_scan`.
    """
    if not has_gpu() or not fits(at, operands):
        return in_xla(at, *operands)
    states = shape_of(operands[-1])[0]
    numbers = at.scan_numbers(states)

    def by_loop(numbers, operands):
        inner = at.within(numbers, states)
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

    y, after, observed = run(numbers, operands)
    for name, x in observed.items():
        seen = at.observed.get(name)
        at.observed[name] = x if seen is None else jnp.maximum(seen, x)
    return y, after


def has_gpu() -> bool:
    """Whether JAX computes on an NVIDIA GPU unless told otherwise."""
    return jax.default_backend() in ("gpu", "cuda")


def fits(at: AbstractArithmetic, operands: tuple) -> bool:
    """Whether one kernel can do it: no rounding inside, states a power of two."""
    states = shape_of(operands[-1])[0]
    return (
        at.scan_numbers(states) is not None
        and not any(at.stores(site) for site in STORED_INSIDE)
        and states & (states - 1) == 0
    )


def shape_of(x) -> tuple[int, ...]:
    """Shape of an array or of a value."""
    return jnp.shape(x.value if isinstance(x, Bounded) else x)


def _parts(x) -> tuple:
    """The arrays of a value that matter in a scan."""
    return (x.value, x.error) if isinstance(x, Bounded) else (jnp.asarray(x),)


def _whole(parts: tuple):
    return Bounded(*parts) if len(parts) > 1 else parts[0]


def tiling(channels: int, states: int) -> tuple[int, int]:
    """(channels of one program, warps that share it)."""
    block = max(1, STATES_PER_WARP // states)
    while channels % block:
        block //= 2
    warps = max(1, min(MOST_WARPS, block * states // STATES_PER_WARP))
    return block, warps


def in_kernel(
    at: AbstractArithmetic,
    token: Callable,
    numbers,
    operands: tuple,
    *,
    tile: tuple[int, int] | None = None,
    interpret: bool = False,
):
    """(y, state after it, what was observed at each token).

    **Arguments:**

    - `numbers`: of `at.scan_numbers`.
    - `tile`: (channels of one program, warps), if not `tiling`'s.
    - `interpret`: run by Pallas' interpreter, on any machine.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    dt, u, B, C, A, D, state = operands
    seq, channels = shape_of(u)
    states = shape_of(state)[0]
    block, warps = tile or tiling(channels, states)
    carrier = at.initial_state(state)
    flat_carrier, carrier_tree = jax.tree.flatten(carrier)
    # one vector, of which a kernel reads scalars; an array of none is no argument
    packed = jnp.stack([jnp.asarray(x, jnp.float64) for x in (*numbers, 0.0)])

    along = lambda rows: pl.BlockSpec((rows, block), lambda i: (0, i))
    shared = lambda rows, width: pl.BlockSpec((rows, width), lambda i: (0, 0))
    single = pl.BlockSpec((block,), lambda i: (i,))
    groups = [
        (_parts(dt), along(seq)),
        (_parts(u), along(seq)),
        (_parts(B), shared(seq, states)),
        (_parts(C), shared(seq, states)),
        (_parts(A), along(shape_of(A)[0])),
        (_parts(D), single),
    ]
    of_carrier = [along(x.shape[0]) if x.ndim == 2 else single for x in flat_carrier]
    arguments = [
        packed,
        *flat_carrier,
        *[part for parts, _ in groups for part in parts],
    ]
    in_specs = [
        pl.BlockSpec(packed.shape, lambda i: (0,)),
        *of_carrier,
        *[spec for parts, spec in groups for _ in parts],
    ]

    def one(scalars, carrier, dt, u, B, C, A, D):
        inside = at.within(tuple(scalars), states)
        drive = inside.multiply(dt, u)
        after, y = token(inside, carrier, (dt, drive, u, B, C), A, D)
        return jax.tree.leaves(after), _parts(y), inside.observed

    row = lambda parts: _whole(tuple(x[0] for x in parts))
    sample = jax.eval_shape(
        lambda scalars, carrier, dt, u, B, C, A, D: one(
            scalars,
            jax.tree.unflatten(carrier_tree, carrier),
            *map(row, (dt, u, B, C)),
            _whole(A),
            _whole(D),
        ),
        tuple(packed[: len(numbers)]),
        flat_carrier,
        *[parts for parts, _ in groups],
    )
    names = sorted(sample[2])
    n_outputs = len(sample[1])

    def kernel(*refs):
        scalars_ref, *rest = refs
        scalars = [scalars_ref[i] for i in range(len(numbers))]
        carrier_refs, rest = rest[: len(flat_carrier)], rest[len(flat_carrier) :]
        given = []
        for parts, _ in groups:
            given.append(rest[: len(parts)])
            rest = rest[len(parts) :]
        output_refs, rest = rest[:n_outputs], rest[n_outputs:]
        after_refs, seen_refs = rest[: len(flat_carrier)], rest[len(flat_carrier) :]
        *by_token, A_refs, D_refs = given
        A, D = (_whole(tuple(r[...] for r in refs)) for refs in (A_refs, D_refs))

        def at_token(t, carrier):
            inputs = [_whole(tuple(ref[t, :] for ref in refs)) for refs in by_token]
            carrier = jax.tree.unflatten(carrier_tree, carrier)
            after, outputs, observed = one(scalars, carrier, *inputs, A, D)
            for ref, x in zip(output_refs, outputs, strict=True):
                ref[t, :] = x
            for ref, name in zip(seen_refs, names, strict=True):
                ref[t, 0] = observed[name]
            return after

        before = [ref[...] for ref in carrier_refs]
        after = jax.lax.fori_loop(0, seq, at_token, before)
        for ref, x in zip(after_refs, after, strict=True):
            ref[...] = x

    double = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float64)
    programs = channels // block
    found = pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=in_specs,
        out_specs=[
            *[along(seq) for _ in sample[1]],
            *of_carrier,
            *[pl.BlockSpec((seq, 1), lambda i: (0, i)) for _ in names],
        ],
        out_shape=[
            *[jax.ShapeDtypeStruct((seq, channels), x.dtype) for x in sample[1]],
            *[double(*x.shape) for x in flat_carrier],
            *[double(seq, programs) for _ in names],
        ],
        compiler_params=triton.CompilerParams(num_warps=warps),
        interpret=interpret,
        name="selective_scan",
    )(*arguments)
    outputs, found = tuple(found[:n_outputs]), found[n_outputs:]
    after, seen = found[: len(flat_carrier)], found[len(flat_carrier) :]
    observed = {name: jnp.max(x, axis=1) for name, x in zip(names, seen, strict=True)}
    after = jax.tree.unflatten(carrier_tree, after)
    return _whole(outputs), at.within(numbers, states).finish(after), observed
