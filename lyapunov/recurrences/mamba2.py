"""The recurrence of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 3.1).

h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T for each head, with one scalar decay a head:
the step Jacobian is exp(dt_t A) times the identity of d_state x head_dim coordinates.
Channels are heads x head_dim, head-major; heads are divided evenly among groups, and
the heads of a group share B and C.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Exact
from .base import AbstractScalarRecurrence
from .mamba1 import check_negative, scan_channels, update


def head_scan(at: AbstractArithmetic, dt, x, B, C, A, D, state):
    """Token by token: (y, state after it), y = C h + D x.

    The scan of Mamba-1, group by group, with a decay that all states of a channel
    share; it is computed once a channel.

    **Arguments:**

    - `dt`, `x`: (seq, d_inner), dt repeated for the channels of a head.
    - `B`, `C`: (seq, groups, d_state).
    - `A`, `D`: (d_inner), A negative.
    - `state`: (d_state, d_inner), before the first token.
    """
    groups = B.shape[1]
    width = D.shape[0] // groups
    outputs, states = [], []
    for group in range(groups):
        own = slice(group * width, (group + 1) * width)
        y, after = scan_channels(
            at,
            dt[..., own],
            x[..., own],
            B[:, group],
            C[:, group],
            A[None, own],
            D[own],
            state[..., own],
        )
        outputs.append(y)
        states.append(after)
    return at.join(outputs, axis=-1), at.join(states, axis=-1)


class Mamba2Inputs(NamedTuple):
    """What one token brings to the recurrence, or a sequence of them stacked."""

    dt: Float[Array, " heads"]
    """After softplus and the limits."""
    x: Float[Array, "heads head_dim"]
    B: Float[Array, "groups d_state"]


class Mamba2Recurrence(AbstractScalarRecurrence):
    """The SSM state of a Mamba-2 layer, its inputs given.

    **Arguments:**

    - `A`: negative, one a head.
    """

    A: Float[Array, " heads"]

    def __check_init__(self):
        check_negative(self.A)

    def step(self, state: Float[Array, "heads head_dim d_state"], inputs: Mamba2Inputs):
        """exp(dt A) state + dt x B^T."""
        heads = self.A.shape[0]
        B = jnp.repeat(inputs.B, heads // inputs.B.shape[0], axis=0)
        at = Exact()
        drive = at.multiply(inputs.dt[:, None], inputs.x)
        return update(
            at,
            state,
            inputs.dt[:, None, None],
            drive[:, :, None],
            B[:, None, :],
            self.A[:, None, None],
        )

    def log_decay(self, inputs: Mamba2Inputs) -> Float[Array, "heads head_dim d_state"]:
        """dt A, the same for all coordinates of a head."""
        shape = (*inputs.x.shape, inputs.B.shape[-1])
        return jnp.broadcast_to(self.head_log_decay(inputs)[:, None, None], shape)

    def head_log_decay(self, inputs: Mamba2Inputs) -> Float[Array, " heads"]:
        """dt A."""
        return inputs.dt * self.A
