"""What a recurrence is to the exponents: a step, its Jacobian, and its structure."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractRecurrence(eqx.Module):
    """State updates x_t = F(x_{t-1}, u_t) of one layer.

    The state is an array or a pytree of arrays; its coordinates are numbered as
    `jax.flatten_util.ravel_pytree` lays them out.
    """

    @abc.abstractmethod
    def step(self, state: Any, inputs: Any) -> Any:
        """The state after one token."""

    @abc.abstractmethod
    def step_jacobian(
        self, state: Any, inputs: Any
    ) -> Float[Array, "coordinates coordinates"]:
        """d step / d state in closed form, the inputs held fixed."""


class AbstractDiagonalRecurrence(AbstractRecurrence):
    """Recurrences whose step Jacobian is diagonal and does not depend on the state.

    The product of the Jacobians is then diagonal too, and the Lyapunov exponents are
    the means of the log decays.
    """

    @abc.abstractmethod
    def log_decay(self, inputs: Any) -> Float[Array, "..."]:
        """Logarithms of the Jacobian's diagonal, of the state's shape."""

    def step_jacobian(self, state, inputs):
        """diag(exp(log_decay)), whatever the state."""
        del state
        return jnp.diag(jnp.exp(self.log_decay(inputs)).ravel())


class DecayAndDrive(NamedTuple):
    """One token of a diagonal linear recurrence, or a sequence of them stacked."""

    log_decay: Float[Array, "..."]
    drive: Float[Array, "..."]


class DiagonalRecurrence(AbstractDiagonalRecurrence):
    """h_t = exp(log a_t) h_{t-1} + b_t with decays and drives given as inputs."""

    def step(self, state, inputs: DecayAndDrive):
        """exp(log a) state + b."""
        return jnp.exp(inputs.log_decay) * state + inputs.drive

    def log_decay(self, inputs: DecayAndDrive):
        """As given; -inf where the decay is 0."""
        return inputs.log_decay
