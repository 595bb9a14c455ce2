"""What a Mamba-3 sublayer computes (mamba_ssm 2.3.2, `modules/mamba3.py`).

No convolution; B and C are normalised, biased and turned by an angle that the tokens
add up, the state takes in two tokens at a time (`recurrences.mamba3`), and with a rank
above 1 (MIMO) every head reads and writes as many outer products. The middle is
computed token by token, as `mamba3_siso_step_ref` and `mamba3_MIMO_step_ref` of
mamba_ssm's tests do. The kernels take angles modulo 2 pi, which is the same function.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..recurrences.trapezoid import turn, update
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
    z, x = (at.view(lambda a: a.reshape(seq, heads, -1), part) for part in (z, x))

    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)
    rate = at.clip(at.softplus(rate), p.least_rate, math.inf)
    log_decay = at.negate(at.multiply(rate, dt))
    at.observe("log_decay", log_decay)
    gamma = at.multiply(at.sigmoid(trapezoid), dt)
    before = at.multiply(at.sigmoid(at.negate(trapezoid)), dt)

    # tanh(a) = 2 sigmoid(2 a) - 1, as the decode kernel makes it
    tanh = at.add(at.multiply(at.sigmoid(at.multiply(angle, 2.0)), 2.0), -1.0)
    steps = at.multiply(
        at.view(lambda a: a[:, None], at.multiply(tanh, at.fixed(math.pi))),
        at.view(lambda a: a[..., None], dt),
    )
    angle = at.add(at.cumsum(steps), start.angle)
    cos, sin = (at.view(lambda a: a[:, None], one) for one in at.turns(angle, 0))
    pairwise = p.mimo_x is None

    def turned(x, norm, bias, norm_site, site):
        apart = at.view(lambda a: a.reshape(seq, rank, p.groups, d_state), x)
        normed = normalise(at, apart, norm, norm_site)
        repeat = lambda a: jnp.repeat(a, heads // p.groups, axis=-2)
        biased = at.add(at.view(repeat, normed), bias)
        return at.store(site, turn(at, biased, cos, sin, pairwise=pairwise))

    k = turned(B, p.B_norm, p.B_bias, "B_norm", "k_turned")
    q = turned(C, p.C_norm, p.C_bias, "C_norm", "q_turned")

    def by_rank(x, weights):
        x = at.view(lambda a: a[:, None], x)
        return x if weights is None else at.multiply(x, weights)

    all_k = at.join([at.view(lambda a: a[None], at.carry(start.keys)), k])
    all_x = at.join([at.view(lambda a: a[None], at.carry(start.values)), x])
    all_v = by_rank(all_x, p.mimo_x)
    v = all_v[1:]

    def token(at, state, inputs):
        log_decay, before, last_k, last_v, gamma, k, v, q = inputs
        after = update(at, state, log_decay, (before, last_k, last_v), (gamma, k, v))
        at.observe("state", after)
        carried = at.store("state", after)
        read = at.store("state_read", after)
        return carried, at.einsum("rhn,hpn->rhp", q, read)

    state, y = at.scan(
        token,
        at.carry(start.state),
        (log_decay, before, all_k[:seq], all_v[:seq], gamma, k, v, q),
    )
    y = at.add(y, at.multiply(v, p.D[:, None]))
    at.observe("scan_output", y)
    y = at.store("scan_output", y)

    if p.gate_norm is not None:
        hat = at.store("gate_norm_hat", at.rms_normalise(y, p.gate_norm_epsilon))
        y = at.multiply(hat, p.gate_norm, alone=at.stores("gate_norm_hat"))
    y = at.multiply(y, at.silu(by_rank(z, p.mimo_z)))
    if p.mimo_o is not None:
        y = at.einsum("lrhp,rhp->lhp", y, p.mimo_o)
    y = at.store("gated", at.view(lambda a: a.reshape(seq, -1), y))
    out = at.matmul(y, p.out_proj)
    return out, Mamba3State(angle=angle[-1], state=state, keys=k[-1], values=x[-1])
