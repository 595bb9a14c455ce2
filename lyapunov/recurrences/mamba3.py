r"""The recurrence of Mamba-3 (mamba_ssm 2.3.2, `modules/mamba3.py`).

For each head, with k_t and v_t of rank R (1: SISO, more: MIMO):

$$H_t = \alpha_t H_{t-1} + \beta_t v_{t-1} k_{t-1}^T + \gamma_t v_t k_t^T,$$
$$\alpha = e^{\Delta A}, \quad \beta = (1 - \lambda) \Delta \alpha, \quad
\gamma = \lambda \Delta,$$

the trapezoidal rule between two tokens. Keys turn: k_t is R(theta_t) times the key that
the token brings, in pairs of channels, with theta_t = theta_{t-1} + pi tanh(angle_t)
Delta_t. What is carried is H, the last k and v, and theta.

Exponents. H is held in the frame that does not turn with the keys, so its step Jacobian
is alpha times the identity: its exponents are the means of Delta A, one a head. In the
frame of the keys it is alpha times a rotation, eigenvalues alpha e^{i dtheta}, of the
same modulus. The angle is an integrator of its inputs: its own Jacobian is 1 and its
exponent 0, whatever the weights; it forgets nothing, and enters the output only through
cos and sin. The last k and v are replaced at every token: exponent -inf. The whole step
Jacobian is block triangular, so that these are its exponents.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import Exact
from .base import (
    AbstractScalarRecurrence,
    AbstractTriangularRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
)
from .trapezoid import turn, update


class Mamba3Inputs(NamedTuple):
    """What one token brings to the recurrence, or a sequence of them stacked."""

    dt: Float[Array, " heads"]
    """After softplus."""
    A: Float[Array, " heads"]
    """Negative; it depends on the token."""
    trapezoid: Float[Array, " heads"]
    """lambda, in (0, 1): 1 leaves the token before out."""
    turn: Float[Array, "heads angles"]
    """By how much the angle grows, dt included."""
    k: Float[Array, "rank heads d_state"]
    """Before it is turned."""
    v: Float[Array, "rank heads head_dim"]


class Mamba3Carried(NamedTuple):
    """All that a Mamba-3 layer carries from one token to the next.

    In this order the step Jacobian is upper triangular, so that QR from the identity
    gives the exponents exactly.
    """

    state: Float[Array, "heads head_dim d_state"]
    k: Float[Array, "rank heads d_state"]
    """The last keys, turned."""
    v: Float[Array, "rank heads head_dim"]
    angle: Float[Array, "heads angles"]


class Mamba3Recurrence(AbstractScalarRecurrence):
    """The SSM state H of a Mamba-3 layer, its drive given.

    Inputs are `DecayAndDrive`: log_decay (heads), drive (heads, head_dim, d_state).
    """

    def step(self, state, inputs):
        """alpha H + drive."""
        return jnp.exp(inputs.log_decay)[:, None, None] * state + inputs.drive

    def log_decay(self, inputs):
        """Delta A, the same for all coordinates of a head."""
        return jnp.broadcast_to(inputs.log_decay[:, None, None], inputs.drive.shape)

    def head_log_decay(self, inputs):
        """Delta A."""
        return inputs.log_decay


class Mamba3JointRecurrence(AbstractTriangularRecurrence):
    """State, last keys and values, and angle together.

    **Arguments:**

    - `pairwise`: which channels turn together, as in `turn`.
    """

    pairwise: bool = True

    def step(self, state: Mamba3Carried, inputs: Mamba3Inputs) -> Mamba3Carried:
        """One token."""
        at = Exact()
        angle = state.angle + inputs.turn
        cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]
        k = turn(at, inputs.k, cos, sin, pairwise=self.pairwise)
        before = (1 - inputs.trapezoid) * inputs.dt, state.k, state.v
        now = inputs.trapezoid * inputs.dt, k, inputs.v
        after = update(at, state.state, inputs.dt * inputs.A, before, now)
        return Mamba3Carried(after, k, inputs.v, angle)

    @property
    def blocks(self):
        """The SSM state; keys and values, replaced at every token; the angle."""
        replaced = DiagonalRecurrence()
        return Mamba3Recurrence(), replaced, replaced, DiagonalRecurrence()

    def parts(self, state: Mamba3Carried):
        """As they are carried."""
        return tuple(state)

    def block_inputs(self, state: Mamba3Carried, inputs: Mamba3Inputs):
        """Decays: alpha, 0, 0 and 1."""
        after = self.step(state, inputs)
        log_decay = inputs.dt * inputs.A
        kept = jnp.exp(log_decay)[:, None, None] * state.state
        gone = [DecayAndDrive(jnp.full_like(x, -jnp.inf), x) for x in after[1:3]]
        turned = DecayAndDrive(jnp.zeros_like(inputs.turn), inputs.turn)
        return DecayAndDrive(log_decay, after.state - kept), *gone, turned

    def step_jacobian(self, state: Mamba3Carried, inputs: Mamba3Inputs):
        """[[alpha, beta v, beta k, gamma v (Jk)], [0, 0, 0, Jk], [0], [0, 0, 0, 1]].

        J is the derivative of the rotation, a quarter turn further.
        """
        heads, head_dim, d_state = state.state.shape
        angles = state.angle.shape[-1]
        alpha = jnp.exp(inputs.dt * inputs.A)
        beta = (1 - inputs.trapezoid) * inputs.dt * alpha
        gamma = inputs.trapezoid * inputs.dt
        of_head, of_row, of_state = (jnp.eye(n) for n in (heads, head_dim, d_state))

        # d k / d theta: in the pair that turns, (-sin, cos) for (cos, sin)
        angle = state.angle + inputs.turn
        cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]
        whole = turn(Exact(), inputs.k, -sin, cos, pairwise=self.pairwise)
        place = jnp.arange(d_state)
        pair = place // 2 if self.pairwise else place % (d_state // 2)
        which = (pair[:, None] == jnp.arange(angles)).astype(whole.dtype)
        k_angle = jnp.einsum("rhn,na,hg->rhnga", whole, which, of_head)

        by_k = jnp.einsum("h,rhp,hg,nm->hpnrgm", beta, state.v, of_head, of_state)
        by_v = jnp.einsum("h,rhn,hg,pq->hpnrgq", beta, state.k, of_head, of_row)
        by_angle = jnp.einsum("h,rhp,rhnga->hpnga", gamma, inputs.v, k_angle)
        sizes = [part.size for part in state]
        rows = [
            [
                jnp.diag(jnp.repeat(alpha, head_dim * d_state)),
                by_k.reshape(sizes[0], -1),
                by_v.reshape(sizes[0], -1),
                by_angle.reshape(sizes[0], -1),
            ],
            [*(jnp.zeros((sizes[1], n)) for n in sizes[:3]),
             k_angle.reshape(sizes[1], -1)],
            [jnp.zeros((sizes[2], n)) for n in sizes],
            [*(jnp.zeros((sizes[3], n)) for n in sizes[:3]), jnp.eye(sizes[3])],
        ]  # fmt: skip
        return jnp.block(rows)
