"""What a Mamba-1 sublayer computes, in the order of mamba_ssm and transformers.

The two implementations differ in which of the named sites they store and in what
format; that is the execution's business, not the flow's.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..recurrences.mamba1 import selective_scan


class Mamba1Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Float[Array, " d_model"]
    in_proj: Weight
    """(2 d_inner, d_model), rows x then z."""
    in_proj_bias: Float[Array, " 2*d_inner"] | None
    conv_weight: Float[Array, "d_inner d_conv"]
    conv_bias: Float[Array, " d_inner"]
    x_proj: Weight
    """(dt_rank + 2 d_state, d_inner), rows dt, B, C."""
    dt_proj: Weight
    """(d_inner, dt_rank)."""
    dt_bias: Float[Array, " d_inner"]
    A_log: Float[Array, "d_inner d_state"]
    D: Float[Array, " d_inner"]
    out_proj: Weight
    """(d_model, d_inner)."""
    out_proj_bias: Float[Array, " d_model"] | None
    norm_epsilon: float = eqx.field(static=True)

    def initial_state(self) -> "Mamba1State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba1State(eqx.Module):
    """What a decode step carries: the last d_conv - 1 inputs of the conv, and h."""

    window: Any
    """(d_conv - 1, d_inner)."""
    state: Any
    """(d_state, d_inner)."""


def initial_state(p: Mamba1Parameters) -> Mamba1State:
    """Zeros, as at the start of a text."""
    d_inner, d_state = p.A_log.shape
    return Mamba1State(
        window=jnp.zeros((p.conv_weight.shape[1] - 1, d_inner)),
        state=jnp.zeros((d_state, d_inner)),
    )


def mamba1(at: AbstractArithmetic, residual, p: Mamba1Parameters, start: Mamba1State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    d_inner, d_state = p.A_log.shape
    rank = p.dt_proj.matrix.shape[1]

    x = at.store("norm_input", residual)
    hat = at.store("norm_hat", at.rms_normalise(x, p.norm_epsilon))
    x = at.store("norm", at.multiply(hat, p.norm, alone=at.stores("norm_hat")))

    if p.in_proj_bias is not None and at.stores("xz_product"):
        product = at.store("xz_product", at.matmul(x, p.in_proj))
        xz = at.add(product, p.in_proj_bias, alone=True)
    else:
        xz = at.matmul(x, p.in_proj, p.in_proj_bias)
    xz = at.store("xz", xz)
    u, z = xz[..., :d_inner], xz[..., d_inner:]

    padded = at.join([start.window, u])
    u = at.causal_conv(padded, p.conv_weight, p.conv_bias)
    u = at.store("conv", at.silu(at.store("conv_sum", u)))

    low = at.store("x_proj", at.matmul(u, p.x_proj))
    B = low[..., rank : rank + d_state]
    C = low[..., rank + d_state :]
    dt = at.store("dt", at.matmul(low[..., :rank], p.dt_proj))
    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)

    A = at.negate(at.exp(p.A_log.T))
    y, state = selective_scan(at, dt, u, B, C, A, p.D, start.state)
    at.observe("scan_output", y)

    gate = at.store("silu_z", at.silu(z))
    y = at.store("gated", at.multiply(y, gate))
    out = at.matmul(y, p.out_proj, p.out_proj_bias)
    after = Mamba1State(window=padded[residual.shape[0] :], state=state)
    return at.store("out", out), after
