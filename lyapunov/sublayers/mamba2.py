"""What a Mamba-2 sublayer computes (mamba_ssm, transformers and its descendants).

The middle is a recurrence over tokens (decode, exact arithmetic) or its chunked form
(`ssd`): one function in exact arithmetic, two in rounded.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..recurrences.mamba2 import head_scan
from .norm import Norm, normalise, scaled
from .ssd import chunked_scan


class Mamba2Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Channels of x, z and y are head-major, (heads x head_dim) = d_inner; B and C are
    group-major, (groups x d_state).
    """

    norm: Float[Array, " d_model"]
    in_proj: Weight
    """(2 d_inner + 2 groups d_state + heads, d_model), rows z, x, B, C, dt."""
    in_proj_bias: Float[Array, " rows"] | None
    conv_weight: Float[Array, "d_inner+2*groups*d_state d_conv"]
    conv_bias: Float[Array, " d_inner+2*groups*d_state"]
    dt_bias: Float[Array, " heads"]
    A_log: Float[Array, " heads"]
    D: Float[Array, " d_inner"]
    """One a head, repeated, or one a channel."""
    gate_norm: Float[Array, " d_inner"] | None
    """Weight of the gated norm; None: the gate alone."""
    out_proj: Weight
    """(d_model, d_inner)."""
    out_proj_bias: Float[Array, " d_model"] | None
    norm_epsilon: float = eqx.field(static=True)
    gate_norm_epsilon: float = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    """Groups of channels that the gated norm normalises apart."""
    norm_before_gate: bool = eqx.field(static=True)
    dt_limit: tuple[float, float] = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    norm_bias: Float[Array, " d_model"] | None = None
    norm_centred: bool = eqx.field(static=True, default=False)
    """Whether the norm in front is a LayerNorm."""
    in_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the mixer's input (Falcon-H1)."""
    row_multipliers: tuple[float, ...] | None = eqx.field(static=True, default=None)
    """Of z, x, B, C and dt as in_proj puts them out (Falcon-H1)."""
    out_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the output, before it joins the residual."""

    def initial_state(self) -> "Mamba2State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba2State(eqx.Module):
    """What a decode step carries: the last d_conv - 1 inputs of the conv, and h."""

    window: Any
    """(d_conv - 1, d_inner + 2 groups d_state)."""
    state: Any
    """(d_state, d_inner)."""


def sizes(p: Mamba2Parameters) -> tuple[int, int, int]:
    """d_inner, d_state, heads."""
    d_inner = p.out_proj.matrix.shape[1]
    d_state = (p.conv_weight.shape[0] - d_inner) // (2 * p.groups)
    return d_inner, d_state, p.A_log.shape[0]


def initial_state(p: Mamba2Parameters) -> Mamba2State:
    """Zeros, as at the start of a text."""
    d_inner, d_state, _ = sizes(p)
    return Mamba2State(
        window=jnp.zeros((p.conv_weight.shape[1] - 1, p.conv_weight.shape[0])),
        state=jnp.zeros((d_state, d_inner)),
    )


def mamba2(at: AbstractArithmetic, residual, p: Mamba2Parameters, start: Mamba2State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    x = at.store("norm_input", residual)
    x = normalise(at, x, Norm(p.norm, p.norm_bias, p.norm_epsilon, p.norm_centred))
    out, after = mamba2_mixer(at, x, p, start)
    out = at.store("out", out)
    return scaled(at, out, p.out_multiplier, "out_scaled"), after


def mamba2_mixer(at: AbstractArithmetic, x, p: Mamba2Parameters, start: Mamba2State):
    """The mixer on a normalised input (seq, d_model)."""
    d_inner, d_state, heads = sizes(p)
    seq, wide = x.shape[0], p.groups * d_state

    x = scaled(at, x, p.in_multiplier, "in_scaled")
    zxbcdt = at.store("xz", at.matmul(x, p.in_proj, p.in_proj_bias))
    if p.row_multipliers is not None:
        rows = jnp.repeat(
            jnp.asarray(p.row_multipliers),
            jnp.asarray([d_inner, d_inner, wide, wide, heads]),
            total_repeat_length=zxbcdt.shape[-1],
        )
        rows = at.store("row_multipliers", at.fixed(rows))
        zxbcdt = at.store("xz_scaled", at.multiply(zxbcdt, rows))
    z, dt = zxbcdt[..., :d_inner], zxbcdt[..., -heads:]
    padded = at.join([start.window, zxbcdt[..., d_inner:-heads]])
    u = at.causal_conv(padded, p.conv_weight, p.conv_bias)
    u = at.store("conv", at.silu(at.store("conv_sum", u)))
    x = u[..., :d_inner]
    B = at.view(_grouped(p.groups), u[..., d_inner : d_inner + wide])
    C = at.view(_grouped(p.groups), u[..., d_inner + wide :])

    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    dt = at.store("dt_clipped", at.clip(dt, *p.dt_limit))
    at.observe("dt", dt)
    A = at.negate(at.exp(p.A_log))

    if at.chunked:
        y, state = chunked_scan(at, dt, x, B, C, A, p.D, start.state, p.chunk)
    else:
        owner = jnp.arange(d_inner) // (d_inner // heads)
        y, state = head_scan(
            at, dt[..., owner], x, B, C, A[..., owner], p.D, start.state
        )
    at.observe("scan_output", y)
    y = at.store("scan_output", y)

    if p.gate_norm is None:
        y = at.multiply(y, at.store("silu_z", at.silu(z)))
    elif p.norm_before_gate:
        y = at.multiply(_norm_by_group(at, y, p), at.silu(z))
    else:
        y = _norm_by_group(at, at.multiply(y, at.silu(z)), p)
    y = at.store("gated", y)
    out = at.matmul(y, p.out_proj, p.out_proj_bias)
    return out, Mamba2State(window=padded[seq:], state=state)


def _grouped(groups: int):
    return lambda a: a.reshape(*a.shape[:-1], groups, -1)


def _norm_by_group(at: AbstractArithmetic, y, p: Mamba2Parameters):
    apart = at.view(_grouped(p.norm_groups), y)
    hat = at.rms_normalise(apart, p.gate_norm_epsilon)
    hat = at.store("gate_norm_hat", at.view(lambda a: a.reshape(y.shape), hat))
    return at.multiply(hat, p.gate_norm, alone=at.stores("gate_norm_hat"))
