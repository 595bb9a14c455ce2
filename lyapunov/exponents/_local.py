"""Growth over windows of a trajectory, down to single tokens.

An exponent is a mean over the whole trajectory. Which tokens let perturbations grow and
which make them fade is seen in shorter windows.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._arguments import whole
from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import AbstractRecurrence
from ._automatic import Automatic
from ._given import inputs_given, key_given, options_given, state_given, step_given
from ._method import AbstractMethod, System


class FiniteTimeExponents(eqx.Module):
    """Hold growth rates over windows of tokens, in nats per token.

    Column j belongs to the j-th exponent of the whole trajectory, so that means over
    windows, weighted by their tokens, are the exponents.
    """

    exponents: Float[Array, "windows k"]
    ends: Int[Array, " windows"]
    """Tokens up to the end of each window."""
    multiplicity: Int[Array, " k"]
    """How many coordinates share each column."""
    window: int = eqx.field(static=True)
    """Tokens in a window; the last one may be shorter."""
    n_tokens: int = eqx.field(static=True)
    method: str = eqx.field(static=True)

    @property
    def tokens(self) -> Int[Array, " windows"]:
        """Count the tokens in each window."""
        return jnp.diff(self.ends, prepend=0)

    @property
    def mean(self) -> Float[Array, " k"]:
        """Average over windows: the exponents of the whole trajectory."""
        return (self.exponents * self.tokens[:, None]).sum(axis=0) / self.n_tokens


@in_fp64
def finite_time_exponents(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    window: int = 1,
    k: int | None = None,
    method: AbstractMethod | None = None,
    key: PRNGKeyArray | None = None,
) -> FiniteTimeExponents:
    r"""Measure growth rates over windows of tokens; of 1 token, the local exponents.

    $\frac1w \sum_{t \in window} \log r_{t,j}$ with $r_{t,j}$ the growth of the j-th
    vector of an orthonormal frame that is carried along the trajectory and
    orthonormalised at every token; for a diagonal recurrence, of the j-th leading
    coordinate. Growth over the whole trajectory does not depend on the norm or on the
    coordinates in the limit; growth over a window does.

    **Arguments:**

    - `step`, `state`, `inputs`, `k`, `method`, `key`: as in `lyapunov_spectrum`.
    - `window`: tokens.

    **Returns:** one row a window, nats per token. A decay of 0 gives -inf in its own
    window. By `QR`, a vector that a singular step has sent to 0 says nothing later on.

    **Raises:** `ArgumentError` as in `lyapunov_spectrum`.

    ??? cite "Abarbanel, Brown and Kennel (1991), J. Nonlinear Sci. 1, 175-199"
    """
    options_given(method, None, 0, k, (AbstractMethod, ()))
    whole(window, "window", 1)
    system, n_tokens, inputs = system_along(step, state, inputs)
    method = Automatic() if method is None else method
    grain = method.grain(system)
    if window % grain:
        raise ArgumentError(
            f"window is {window}",
            hint=(
                f"give a positive multiple of {grain}, the "
                f"tokens between two measurements of {method.name(system)}"
            ),
        )
    window = min(window, -(-n_tokens // grain) * grain)
    k = method.number(system, k)
    key = key_given(key)
    growth = _growth(method, system, inputs, k, key, n_tokens, window)
    order = jnp.argsort(growth.sum(axis=0), descending=True)[:k]
    multiplicity = jnp.asarray(method.multiplicity(system))
    if multiplicity.size == growth.shape[1]:
        multiplicity = multiplicity[order]
    ends = jnp.minimum(jnp.arange(1, len(growth) + 1) * window, n_tokens)
    tokens = jnp.diff(ends, prepend=0)[:, None]
    return FiniteTimeExponents(
        exponents=growth[:, order] / tokens,
        ends=ends,
        multiplicity=multiplicity[:k],
        window=window,
        n_tokens=n_tokens,
        method=method.name(system),
    )


@eqx.filter_jit
def _growth(method, system, inputs, k: int, key, n_tokens: int, window: int):
    carry = method.start(system, k, key)
    return method.advance(system, carry, inputs, n_tokens, window)[1]


def system_along(step, state, inputs) -> tuple[System, int, Any]:
    """Make the system of a step, count the tokens and stack the inputs."""
    step, state = step_given(step), state_given(state)
    n_tokens, inputs = inputs_given(inputs)
    if n_tokens < 1:
        raise ArgumentError(
            "there are no tokens, so nothing grows", hint="give one or more"
        )
    return System.of(step, state), n_tokens, inputs
