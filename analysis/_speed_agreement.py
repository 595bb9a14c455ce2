"""The scan's kernel held to XLA's loop, and sums of magnitudes to fp64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Exact
from lyapunov.arithmetic.rules.sums import sum_of_magnitudes
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.recurrences import fused_scan
from lyapunov.recurrences.mamba1 import in_blocks, selective_scan, token

from ._speed_inputs import Shape, scan_operands


def interpreter(shape: Shape, execution, bounded: bool):
    if not bounded:
        return Exact(observes=False)
    return execution.bounded(
        shape.seq, execution.site_numbers(), execution.constants.model(), centred=True
    )


def over_batch(run: Callable) -> Callable:
    return jax.vmap(run, in_axes=(0, 0, 0, 0, None, None, None))


def _magnitudes(shape: Shape, dt, u, B, C, A):
    """Sums of magnitudes behind y and the state."""
    zeros = jnp.zeros((shape.d_state, shape.d_inner))
    run = lambda dt, u, B, C: selective_scan(
        Exact(), dt, abs(u), abs(B), abs(C), A, jnp.ones(shape.d_inner), zeros
    )
    return jax.jit(jax.vmap(run))(dt, u, B, C)


def agreement(shape: Shape, interpret: bool) -> dict:
    """The compiled kernel against XLA's loop: largest relative distance.

    Relative to the sum of magnitudes behind a value; to the error itself for errors.
    """
    found = {}
    shape = shape._replace(seq=min(shape.seq, 256))
    execution = mamba_ssm_prefill("bf16")
    for bounded in (False, True):
        operands = scan_operands(shape, bounded, 2)

        @jax.jit
        @over_batch
        def fused(*operands, bounded=bounded):
            at = interpreter(shape, execution, bounded)
            kernel = at.kernel(shape.d_state)
            assert kernel is not None
            return fused_scan.in_kernel(
                at, token, kernel.numbers, operands, interpret=interpret
            )[:2]

        @jax.jit
        @over_batch
        def looped(*operands, bounded=bounded):
            at = interpreter(shape, execution, bounded)
            return in_blocks(at, *operands)

        (y, state), (y2, state2) = fused(*operands), looped(*operands)
        of = (lambda x: x.value) if bounded else (lambda x: x)
        dt, u, B, C, A, _, _ = [getattr(x, "value", x) for x in operands]
        sizes = _magnitudes(shape, dt, u, B, C, A)
        name = "bounded" if bounded else "exact"
        for what, one, other, size in (
            ("y", y, y2, sizes[0]),
            ("state", state, state2, sizes[1]),
        ):
            far = jnp.max(jnp.abs(of(one) - of(other)) / size)
            found[f"{name} {what}, values"] = float(far)
            if bounded:
                far = jnp.max(jnp.abs(one.error / other.error - 1.0))
                found[f"{name} {what}, errors"] = float(far)
    return found


def magnitude_sums(shape: Shape) -> dict:
    """Smallest and largest of |W| x as the bounds find it over what it is in fp64."""
    rng = np.random.default_rng(3)
    found = {}
    for terms in (shape.d_model, shape.d_inner):
        x = jnp.asarray(rng.exponential(size=(1024, terms)))
        worst = jnp.full_like(x, 2 - 2.0**-23)
        matrix = jnp.asarray(rng.normal(size=(512, terms)))
        worst_matrix = jnp.full_like(matrix, 1 + 2.0**-10 - 2.0**-23)
        for name, a, w in (("plain", x, matrix), ("worst", worst, worst_matrix)):
            exact = jnp.matmul(a, jnp.abs(w).T, precision="highest")
            ratio = jax.jit(sum_of_magnitudes)(a, w) / exact
            found[f"{name}, {terms}"] = [float(ratio.min()), float(ratio.max())]
    return found
