"""What a recurrence is to the exponents: a step, its Jacobian, and its structure.

A structure is declared by the class that is derived from, and decides how exponents
are computed: `AbstractDiagonalRecurrence`, `AbstractScalarRecurrence`,
`AbstractKeyRecurrence`, `AbstractTriangularRecurrence`; with `AbstractRecurrence`
nothing is declared and the Jacobian is taken to be dense.
`lyapunov.exponents.check_structure` compares what is declared with the step.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


class AbstractRecurrence(eqx.Module):
    """State updates x_t = F(x_{t-1}, u_t) of one layer.

    The state is an array or a pytree of arrays; its coordinates are numbered as
    `jax.flatten_util.ravel_pytree` lays them out.
    """

    linear: ClassVar[bool] = False
    """Whether the step Jacobian depends on the inputs alone: methods that can do
    without the trajectory then don't compute it."""

    @abc.abstractmethod
    def step(self, state: Any, inputs: Any) -> Any:
        """The state after one token."""

    def step_jacobian(
        self, state: Any, inputs: Any
    ) -> Float[Array, "coordinates coordinates"]:
        """d step / d state, the inputs held fixed; differentiated unless overridden."""
        flat, unravel = ravel_pytree(state)
        return jax.jacfwd(lambda x: ravel_pytree(self.step(unravel(x), inputs))[0])(
            flat
        )


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


class AbstractScalarRecurrence(AbstractDiagonalRecurrence):
    """Diagonal recurrences in which all coordinates of a head share one decay.

    The state's first axis is over heads. An exponent is computed once a head and
    counts for as many coordinates as a head has.
    """

    @abc.abstractmethod
    def head_log_decay(self, inputs: Any) -> Float[Array, " heads"]:
        """Logarithms of the decays, one a head."""


class AbstractKeyRecurrence(AbstractRecurrence):
    """Recurrences whose step Jacobian acts on the keys of each head alone.

    The state is one array, (heads, value_dim, key_dim); a head's Jacobian is one
    matrix M of key_dim x key_dim for all of its rows. Every exponent of the product of
    M counts value_dim times.
    """

    linear: ClassVar[bool] = True

    @abc.abstractmethod
    def on_keys(
        self, vectors: Float[Array, "heads n key_dim"], inputs: Any
    ) -> tuple[Float[Array, "heads n key_dim"], Float[Array, " heads"]]:
        """M of each head times any number of vectors, and the log of a scale by which
        they are to be multiplied, so that no decay leaves the range of fp64."""

    @abc.abstractmethod
    def log_determinant(self, inputs: Any) -> Float[Array, " heads"]:
        """log |det M|: the sum of the exponents' increments, without cancellation."""

    @abc.abstractmethod
    def scales_apart(self, inputs: Any) -> tuple[Float[Array, "heads key_dim"], Any]:
        """Logs of D, and inputs of W, where M = W D and D is diagonal: W shrinks no
        more than one direction by much."""

    @abc.abstractmethod
    def log_norm_bound(self, inputs: Any) -> Float[Array, " heads"]:
        """At least log of the 2-norm of M: no direction grows by more."""

    def step_jacobian(self, state, inputs):
        """M of each head for each of its rows, whatever the state."""
        heads, value_dim, key_dim = state.shape
        eye = jnp.broadcast_to(jnp.eye(key_dim), (heads, key_dim, key_dim))
        transposed, log_scale = self.on_keys(eye, inputs)
        M = jnp.exp(log_scale)[:, None, None] * transposed.swapaxes(1, 2)
        whole = jnp.einsum("hkl,hi,vw->hvkiwl", M, jnp.eye(heads), jnp.eye(value_dim))
        return whole.reshape(state.size, state.size)


class AbstractTriangularRecurrence(AbstractRecurrence):
    """Recurrences whose step Jacobian is block triangular, the inputs held fixed.

    The state has parts, in an order in which none depends on those before it (or
    none on those behind it). Each part, given the others along the trajectory, is a
    recurrence of its own: a diagonal block. A stack of layers fed with given tokens
    is one, its parts the layers' states.
    """

    @property
    @abc.abstractmethod
    def blocks(self) -> tuple[AbstractRecurrence, ...]:
        """The recurrence of each part."""

    @abc.abstractmethod
    def parts(self, state: Any) -> tuple[Any, ...]:
        """The state of each block; together all of the state, in its order."""

    @abc.abstractmethod
    def block_inputs(self, state: Any, inputs: Any) -> tuple[Any, ...]:
        """What each block is given at a token, the other parts included."""


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


class GivenJacobians(AbstractRecurrence):
    """x_t = J_t x_{t-1} with the Jacobians as inputs: those of a model elsewhere."""

    linear: ClassVar[bool] = True

    def step(self, state: Float[Array, " d"], inputs: Float[Array, "d d"]):
        """J x."""
        return inputs @ state

    def step_jacobian(self, state, inputs):
        """J."""
        del state
        return inputs
