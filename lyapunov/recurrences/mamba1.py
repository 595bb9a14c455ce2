"""The recurrence of Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, equations 1a, 2a, 4).

h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, for each of d_inner channels with d_state
states each; A is diagonal, so the step Jacobian is diagonal.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Exact, Weight
from . import _fused_scan
from ._fused_scan import Token
from .base import (
    AbstractDiagonalRecurrence,
    AbstractTriangularRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
)


def update(at: AbstractArithmetic, state, dt, drive, B, A):
    """One token, in shapes that broadcast: exp(dt A) state + drive B, not stored."""
    a = at.decay(dt, A)
    return at.advance(state, a, at.multiply(drive, B))


def step(at: AbstractArithmetic, state, dt, u, B, A):
    """One token: the state after it, in registers.

    **Arguments:**

    - `state`: (d_inner, d_state), a carrier made by `at.initial_state`.
    - `dt`, `u`: (d_inner); dt after softplus.
    - `B`: (d_state). `A`: (d_inner, d_state), negative.
    """
    drive = at.multiply(dt, u)
    return update(at, state, dt[:, None], drive[:, None], B[None, :], A)


def selective_scan(at: AbstractArithmetic, dt, u, B, C, A, D, state):
    """The whole sequence: (y, state after it), y = C h + D u.

    Inside, the state is held as (d_state, d_inner), so that memory runs along
    channels, and channels go in blocks that fit a cache (they don't interact).

    **Arguments:**

    - `dt`, `u`: (seq, d_inner). `B`, `C`: (seq, d_state). `A`: (d_state, d_inner).
    - `D`: (d_inner). `state`: (d_state, d_inner), before the first token.
    """
    return _fused_scan.scan(at, token, in_blocks, (dt, u, B, C, A, D, state))


def in_blocks(at, dt, u, B, C, A, D, state):
    """Block of channels by block of channels."""
    channels = D.shape[0]
    block = min(channels, at.channel_block or channels)
    parts = [
        _scan_block(
            at,
            dt[:, first : first + block],
            u[:, first : first + block],
            B,
            C,
            A[:, first : first + block],
            D[first : first + block],
            state[:, first : first + block],
        )
        for first in range(0, channels, block)
    ]
    outputs, states = zip(*parts, strict=True)
    return at.join(outputs, axis=-1), at.join(states, axis=-1)


def scan_channels(at, dt, u, B, C, A, D, state):
    """`selective_scan` without the blocks; A may have one row for all states."""
    return _fused_scan.scan(at, token, _scan_block, (dt, u, B, C, A, D, state))


def _scan_block(at, dt, u, B, C, A, D, state):
    inputs = (dt, at.multiply(dt, u), u, B, C)
    if at.form.period > 1 and at.stores("state"):
        return _by_period(at, inputs, A, D, state)
    body = lambda at, state, inputs: token(at, state, Token(*inputs), A, D)
    state, y = at.scan(body, at.initial_state(state), inputs)
    return y, state


def _by_period(at, inputs, A, D, state):
    """Tokens in windows of which the last one alone stores the state, as serving code
    does with drafts; dt = 0 fills up the last window and changes nothing."""
    period, seq = at.form.period, inputs[0].shape[0]
    windows = -(-seq // period)

    def cut(a):
        behind = ((0, windows * period - seq), *((0, 0),) * (a.ndim - 1))
        return jnp.pad(a, behind).reshape(windows, period, *a.shape[1:])

    def body(at, state, inputs):
        outputs = []
        for i in range(period):
            given = Token(*(x[i] for x in inputs))
            state, y = token(at, state, given, A, D, stored=i == period - 1)
            outputs.append(at.view(lambda a: a[None], y))
        return state, at.join(outputs)

    pieces = tuple(at.view(cut, x) for x in inputs)
    state, y = at.scan(body, at.initial_state(state), pieces)
    return at.view(lambda a: a.reshape(-1, *a.shape[2:])[:seq], y), state


def token(at, state, inputs: Token, A, D, *, stored: bool = True):
    """One token inside a scan: (state after it, y).

    **Arguments:**

    - `state`: a carrier made by `at.initial_state`.
    - `stored`: whether the state goes into its cache.
    """
    dt, drive, u, B, C, skip = inputs
    if at.stores("dB"):
        # transformers' Mamba-2: two tensors, B first
        dB = at.multiply(dt[None, :], B[:, None], alone=True)
        dBx = at.multiply(at.store("dB", dB), u[None, :], alone=True)
        decay = at.decay(dt[None, :], A)
        after = at.advance(state, decay, at.store("dBx", dBx))
    else:
        after = at.step(state, dt, drive, B, A)
    at.observe("state", after)
    # a cache gets the state in its format; what is read out now is not from there
    carried = at.store("state", after) if stored else after
    read = at.store("state_read", after)
    if skip is None:
        skip = at.store("skip", at.multiply(u, D, alone=at.stores("skip")))
    if not at.stores("read_out"):
        return carried, at.contract(read, C, start=skip)
    # transformers: the contraction is a tensor of its own, D u is added later
    y = at.store("read_out", at.contract(read, C))
    y = at.add(y, skip, alone=at.stores("skip_sum"))
    return carried, at.store("skip_sum", y)


class Mamba1Inputs(NamedTuple):
    """What one token brings to the recurrence, or a sequence of them stacked."""

    dt: Float[Array, " d_inner"]
    """After softplus."""
    u: Float[Array, " d_inner"]
    B: Float[Array, " d_state"]


class Mamba1Recurrence(AbstractDiagonalRecurrence):
    """The SSM state of a Mamba-1 layer, its inputs given.

    **Arguments:**

    - `A`: negative, as exp(dt A) must decay.
    """

    A: Float[Array, "d_inner d_state"]

    def __check_init__(self):
        check_negative(self.A)

    def step(self, state: Float[Array, "d_inner d_state"], inputs: Mamba1Inputs):
        """exp(dt A) state + dt u B."""
        return step(Exact(), state, inputs.dt, inputs.u, inputs.B, self.A)

    def log_decay(self, inputs: Mamba1Inputs) -> Float[Array, "d_inner d_state"]:
        """dt A."""
        return inputs.dt[:, None] * self.A


class StateAndWindow(NamedTuple):
    """All that a Mamba-1 layer carries from one token to the next.

    The state comes first: tangent vectors in it stay in it, so the step Jacobian is
    upper triangular and QR from the identity gives the exponents exactly.
    """

    state: Float[Array, "d_inner d_state"]
    window: Float[Array, "window d_inner"]
    """Inputs of the convolution, the oldest first."""


class Mamba1JointRecurrence(AbstractTriangularRecurrence):
    """SSM state and window of the convolution together, driven by in_proj's output.

    dt, u and B now depend on the window, which shifts by one token a step. The step
    Jacobian is block-triangular: the window does not see the state. Its own block is
    nilpotent, so its exponents are -inf, and those of the state are what they are
    for `Mamba1Recurrence`.

    **Arguments:**

    - `x_proj`: rows dt, B, C, of which C is not used. `dt_proj`: (d_inner, dt_rank).
    - `conv_weight`: oldest tap first.
    """

    conv_weight: Float[Array, "d_inner d_conv"]
    conv_bias: Float[Array, " d_inner"]
    x_proj: Weight
    dt_proj: Weight
    dt_bias: Float[Array, " d_inner"]
    A: Float[Array, "d_inner d_state"]

    def __check_init__(self):
        check_negative(self.A)

    def inputs(
        self, window: Float[Array, "window d_inner"], x: Float[Array, " d_inner"]
    ) -> Mamba1Inputs:
        """What the SSM is given at this token."""
        at = Exact()
        rank, d_state = self.dt_proj.matrix.shape[1], self.A.shape[1]
        padded = at.join([window, x[None]])
        u = at.silu(at.causal_conv(padded, self.conv_weight, self.conv_bias))
        low = at.matmul(u, self.x_proj)
        dt = at.add(at.matmul(low[:, :rank], self.dt_proj), self.dt_bias)
        return Mamba1Inputs(at.softplus(dt)[0], u[0], low[0, rank : rank + d_state])

    def step(self, state: StateAndWindow, inputs: Float[Array, " d_inner"]):
        """One token, whose in_proj output (the half before the conv) is `inputs`."""
        dt, u, B = self.inputs(state.window, inputs)
        return StateAndWindow(
            state=step(Exact(), state.state, dt, u, B, self.A),
            window=jnp.concatenate([state.window[1:], inputs[None]]),
        )

    @property
    def blocks(self):
        """The SSM state, and each token of the window, replaced by the next."""
        taps = self.conv_weight.shape[1] - 1
        return Mamba1Recurrence(self.A), *[DiagonalRecurrence()] * taps

    def parts(self, state: StateAndWindow):
        """The SSM state and the window's tokens."""
        return state.state, *state.window

    def block_inputs(self, state: StateAndWindow, inputs: Float[Array, " d_inner"]):
        """dt, u and B of the SSM; for the window, decays of 0."""
        after = [*state.window[1:], inputs][: len(state.window)]
        gone = [DecayAndDrive(jnp.full_like(x, -jnp.inf), x) for x in after]
        return self.inputs(state.window, inputs), *gone

    def step_jacobian(self, state: StateAndWindow, inputs: Float[Array, " d_inner"]):
        """[[diag(exp(dt A)), d h'/d window], [0, shift]]."""
        taps, d_inner = state.window.shape
        rank, d_state = self.dt_proj.matrix.shape[1], self.A.shape[1]
        dt, u, B = self.inputs(state.window, inputs)
        a = jnp.exp(dt[:, None] * self.A)

        # d h'[i, n] / d u[j] by way of dt, of u itself and of B
        low_dt, low_B = self.x_proj.matrix[:rank], self.x_proj.matrix[rank:][:d_state]
        slope = 1 - jnp.exp(-dt)  # of softplus, in terms of its value
        d_dt = slope[:, None] * (self.dt_proj.matrix @ low_dt)
        by_u = (self.A * a * state.state + u[:, None] * B)[:, :, None] * d_dt[:, None]
        by_u += (dt[:, None] * B)[:, :, None] * jnp.eye(d_inner)[:, None]
        by_u += (dt * u)[:, None, None] * low_B

        # d u[j] / d window[w, j]
        padded = jnp.concatenate([state.window, inputs[None]])
        c = jnp.sum(padded * self.conv_weight.T, axis=0) + self.conv_bias
        gate = jax.nn.sigmoid(c)
        d_u = gate * (1 + c * (1 - gate)) * self.conv_weight.T[:taps]

        corner = by_u[:, :, None, :] * d_u[None, None]
        corner = corner.reshape(d_inner * d_state, taps * d_inner)
        zeros = jnp.zeros((taps * d_inner, d_inner * d_state))
        shift = jnp.eye(taps * d_inner, k=d_inner)
        return jnp.block([[jnp.diag(a.ravel()), corner], [zeros, shift]])


def check_negative(A: Any) -> None:
    """Refuse decay rates that do not decay, where they are known already."""
    if eqx.is_array(A) and not isinstance(A, Tracer) and not (A < 0).all():
        raise ValueError(
            f"A must be negative everywhere and its largest entry is {A.max()}; "
            "give -exp(A_log)"
        )
