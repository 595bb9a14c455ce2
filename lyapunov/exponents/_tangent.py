"""Growth of one tangent vector."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ArgumentError
from ._method import AbstractMethod
from ._windows import along


TangentCarry: TypeAlias = tuple[Float[Array, " d"], Float[Array, " d"]]
"""The state and the unit vector that is pushed along it."""


class TangentGrowth(AbstractMethod[TangentCarry]):
    r"""Follow the growth of one tangent vector.

    $\frac1T \log(|P v| / |v|)$, P the product of the Jacobians, is an estimate of the
    largest exponent, from below on a diagonal recurrence: with all entries of v alike,
    the default, it misses by at most $\ln(d) / (2T)$; where v has next to no component
    along the leading direction, by more.

    **Arguments:**

    - `v`: of the state's size, flat; not 0.
    """

    v: Float[Array, " d"] | None = None

    def start(self, system, k, key):
        """Make the state and the unit vector."""
        del k, key
        d, dtype = system.state.size, system.state.dtype
        v = jnp.full(d, 1.0, dtype) if self.v is None else jnp.asarray(self.v, dtype)
        if v.shape != (d,):
            raise ArgumentError(
                f"v has shape {v.shape} and the state has {d} entries", hint=f"({d},)"
            )
        return system.state, _normalise(v)[0]

    def advance(self, system, carry, inputs, n_tokens, width):
        """Push the vector along by Jacobian-vector products, normalised at each."""

        def one(carry, u):
            state, v = carry
            state, v = jax.jvp(lambda x: system.step(x, u), (state,), (v,))
            v, size = _normalise(v)
            return (state, v), jnp.log(size)[None]

        return along(one, carry, inputs, n_tokens, width)

    def notes(self, system, k):
        """Say what one vector can miss."""
        return ("growth of one vector: it may miss the largest exponent by O(1/T)",)

    def multiplicity(self, system):
        """Count one exponent, of one coordinate."""
        return np.ones(1, int)


def _normalise(v):
    """v / |v| and |v| without overflow or underflow on the way; 0 stays 0."""
    scale = jnp.max(jnp.abs(v))
    safe = jnp.where(scale > 0, scale, 1)
    v = v / safe
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1), size * scale
