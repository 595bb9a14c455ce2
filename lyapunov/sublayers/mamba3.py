"""What a Mamba-3 sublayer computes (mamba_ssm 2.3.2, `modules/mamba3.py`).

No convolution; B and C are normalised, biased and turned by an angle that the tokens
add up, the state takes in two tokens at a time (`recurrences.mamba3`), and with a rank
above 1 (MIMO) every head reads and writes as many outer products. The middle goes token
by token or chunk by chunk (`mamba3_scan`).
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from .mamba3_scan import Token, by_rank, chunked_scan, token_scan
from .norm import Norm, normalise


class Mamba3Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Channels of x, z and y are head-major, (heads x head_dim) = d_inner.
    """

    norm: Norm
    in_proj: Weight
    """Rows z, x (d_inner each), B, C (rank groups d_state each), dt, A, lambda (heads
    each), angles; of width d_model."""
    dt_bias: Float[Array, " heads"]
    B_bias: Float[Array, "rank heads d_state"]
    C_bias: Float[Array, "rank heads d_state"]
    B_norm: Norm
    C_norm: Norm
    D: Float[Array, " heads"]
    mimo_x: Float[Array, "rank heads head_dim"] | None
    """What x, z and y are multiplied with for each rank; None for SISO."""
    mimo_z: Float[Array, "rank heads head_dim"] | None
    mimo_o: Float[Array, "rank heads head_dim"] | None
    gate_norm: Float[Array, "heads head_dim"] | None
    """Of each head before the gate; None: the gate alone."""
    out_proj: Weight
    """(d_model, d_inner)."""
    gate_norm_epsilon: float = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    angles: int = eqx.field(static=True)
    """Pairs of channels of B and C that turn."""
    least_rate: float = eqx.field(static=True)
    """The smallest -A."""
    chunk: int = eqx.field(static=True, default=64)
    """Tokens of a chunk, where it runs in chunks."""

    def initial_state(self) -> "Mamba3State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba3State(eqx.Module):
    """What a decode step carries."""

    angle: Any
    """(heads, angles)."""
    state: Any
    """(heads, head_dim, d_state)."""
    keys: Any
    """(rank, heads, d_state): B of the last token, biased and turned."""
    values: Any
    """(heads, head_dim): x of the last token."""


def initial_state(p: Mamba3Parameters) -> Mamba3State:
    """Zeros, as at the start of a text."""
    rank, heads, d_state = p.B_bias.shape
    head_dim = p.out_proj.matrix.shape[1] // heads
    return Mamba3State(
        angle=jnp.zeros((heads, p.angles)),
        state=jnp.zeros((heads, head_dim, d_state)),
        keys=jnp.zeros((rank, heads, d_state)),
        values=jnp.zeros((heads, head_dim)),
    )


def mamba3(at: AbstractArithmetic, residual, p: Mamba3Parameters, start: Mamba3State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: what is carried before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    x = normalise(at, at.store("norm_input", residual), p.norm)
    out, after = mamba3_mixer(at, x, p, start)
    return at.store("out", out), after


def mamba3_mixer(at: AbstractArithmetic, x, p: Mamba3Parameters, start: Mamba3State):
    """The mixer on a normalised input (seq, d_model)."""
    rank, heads, d_state = p.B_bias.shape
    d_inner, seq = p.out_proj.matrix.shape[1], x.shape[0]
    wide = rank * p.groups * d_state
    projected = at.store("xz", at.matmul(x, p.in_proj))
    parts, first = [], 0
    for width in (d_inner, d_inner, wide, wide, heads, heads, heads, p.angles):
        parts.append(projected[..., first : first + width])
        first += width
    z, x, B, C, dt, rate, trapezoid, angle = parts
    z = at.store("z_cast", at.view(lambda a: a.reshape(seq, heads, -1), z))
    x = at.store("x_cast", at.view(lambda a: a.reshape(seq, heads, -1), x))

    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)
    rate = at.clip(at.softplus(rate), p.least_rate, math.inf)
    log_decay = at.negate(at.multiply(rate, dt))
    at.observe("log_decay", log_decay)

    def normed(x, norm, name):
        apart = at.view(lambda a: a.reshape(seq, rank, p.groups, d_state), x)
        apart = at.store(f"{name}_cast", normalise(at, apart, norm, f"{name}_norm"))
        return at.view(lambda a: jnp.repeat(a, heads // p.groups, axis=-2), apart)

    token = Token(
        dt=dt,
        log_decay=log_decay,
        trapezoid=at.store("trapezoid_cast", trapezoid),
        angle=at.store("angle_cast", angle),
        B=at.store("B_biased", at.add(normed(B, p.B_norm, "B"), p.B_bias)),
        C=at.store("C_biased", at.add(normed(C, p.C_norm, "C"), p.C_bias)),
        x=x,
    )
    scan = chunked_scan if at.chunked else token_scan
    y, after = scan(at, token, p, start)
    at.observe("scan_output", y)
    y = at.store("scan_output", y)

    fused = at.chunked and p.mimo_o is not None and p.gate_norm is None
    if p.gate_norm is not None:
        hat = at.store("gate_norm_hat", at.rms_normalise(y, p.gate_norm_epsilon))
        y = at.multiply(hat, p.gate_norm, alone=at.stores("gate_norm_hat"))
    gate = at.store("silu_z", at.silu(by_rank(at, z, p.mimo_z)))
    if fused:
        gate = at.may_store("gate_product", at.multiply(gate, p.mimo_o))
    y = at.store("gated_rank", at.multiply(y, gate))
    if fused:
        y = sum_of_ranks(at, y)
    elif p.mimo_o is not None:
        y = at.einsum("lrhp,rhp->lhp", y, p.mimo_o)
    y = at.store("gated", at.view(lambda a: a.reshape(seq, -1), y))
    out = at.matmul(at.store("gated_cast", y), p.out_proj)
    return out, after


def sum_of_ranks(at: AbstractArithmetic, y):
    """The ranks one after another, in a register of the model's format."""
    total = y[:, 0]
    for r in range(1, y.shape[1]):
        total = at.add(at.may_store("rank_sum", total), y[:, r])
    return total
