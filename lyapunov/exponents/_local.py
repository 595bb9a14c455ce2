"""Growth over windows of a trajectory, down to single tokens, and the frames behind it.

An exponent is a mean over the whole trajectory. Which tokens let perturbations grow and
which make them fade is seen in shorter windows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..recurrences.base import AbstractDiagonalRecurrence, AbstractRecurrence


class FiniteTimeExponents(eqx.Module):
    """Growth rates over windows of tokens, in nats per token.

    Column j belongs to the j-th exponent of the whole trajectory, one a coordinate, so
    that means over windows, weighted by their tokens, are the exponents.
    """

    exponents: Float[Array, "windows k"]
    ends: Int[Array, " windows"]
    """Tokens up to the end of each window."""
    window: int = eqx.field(static=True)
    """Tokens in a window; the last one may be shorter."""
    n_tokens: int = eqx.field(static=True)

    @property
    def tokens(self) -> Int[Array, " windows"]:
        """Tokens in each window."""
        return jnp.diff(self.ends, prepend=0)

    @property
    def mean(self) -> Float[Array, " k"]:
        """The exponents of the whole trajectory."""
        return (self.exponents * self.tokens[:, None]).sum(axis=0) / self.n_tokens


def finite_time_exponents(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    window: int = 1,
    k: int | None = None,
    key: PRNGKeyArray | None = None,
) -> FiniteTimeExponents:
    r"""Growth rates over windows of tokens; by default of 1, the local exponents.

    $\frac1w \sum_{t \in window} \log r_{t,j}$ with $r_{t,j}$ the growth of the j-th
    vector of an orthonormal frame that is carried along the trajectory and
    orthonormalised at every token. For a diagonal recurrence, of the j-th leading
    coordinate. Growth over the whole trajectory does not depend on the norm or on the
    coordinates in the limit; growth over a window does.

    **Arguments:**

    - `step`, `state`, `inputs`, `k`, `key`: as in `lyapunov_spectrum`.
    - `window`: tokens.

    **Returns:** one row a window, nats per token. A step that is singular in fp64
    gives -inf in its own window alone.

    **Raises:** `ValueError` for a state that is not float64, or no tokens.

    ??? cite "Abarbanel, Brown and Kennel (1991), J. Nonlinear Sci. 1, 175-199"
    """
    flat, one, n_tokens, inputs = flattened(step, state, inputs)
    if window < 1:
        raise ValueError(f"window is {window}; give 1 token or more")
    k = flat.size if k is None else k
    check_count(k, flat.size)
    if isinstance(step, AbstractDiagonalRecurrence):
        growth = jax.vmap(step.log_decay)(inputs).reshape(n_tokens, -1)
    else:
        start = first_frame(flat.size, k, key)
        growth = log_growth(one, flat, inputs, n_tokens, start, k == flat.size)
    order = jnp.argsort(growth.sum(axis=0), descending=True)[:k]
    window = min(window, n_tokens)
    ends = jnp.minimum(jnp.arange(window, n_tokens + window, window), n_tokens)
    owner = jnp.arange(n_tokens) // window
    sums = jax.ops.segment_sum(growth[:, order], owner, len(ends))
    tokens = jnp.diff(ends, prepend=0)[:, None]
    return FiniteTimeExponents(sums / tokens, ends, window, n_tokens)


def flattened(step, state, inputs) -> tuple[Array, Callable, int, Any]:
    """The flat state, its step, how many tokens, and the stacked inputs."""
    flat, unravel = ravel_pytree(state)
    if flat.dtype != jnp.float64:
        raise ValueError(
            f"the state is {flat.dtype} and products of Jacobians need float64; "
            "give a float64 state, inside `with jax.enable_x64(True):`"
        )
    if isinstance(inputs, int):
        n_tokens, inputs = inputs, None
    else:
        n_tokens = len(jax.tree.leaves(inputs)[0])
    if n_tokens < 1:
        raise ValueError("there are no tokens, so nothing grows; give one or more")
    return flat, _FlatStep(step, unravel), n_tokens, inputs


class _FlatStep(eqx.Module):
    """A step function on flat states."""

    step: Any
    unravel: Callable = eqx.field(static=True)

    def __call__(self, flat, inputs):
        one = self.step.step if isinstance(self.step, AbstractRecurrence) else self.step
        return ravel_pytree(one(self.unravel(flat), inputs))[0]


def check_count(k: int, size: int) -> None:
    """Refuse more vectors than the state has entries."""
    if not 1 <= k <= size:
        raise ValueError(f"k is {k} and the state has {size} entries")


def first_frame(d: int, k: int, key: PRNGKeyArray | None) -> Float[Array, "d k"]:
    """The identity, exact on diagonal systems; with k < d a random frame."""
    if k == d:
        return jnp.eye(d)
    key = jax.random.key(0) if key is None else key
    return jnp.linalg.qr(jax.random.normal(key, (d, k), jnp.float64))[0]


class Frames(NamedTuple):
    """Orthonormal frames along a trajectory: J_n Q_{n-1} = Q_n R_n."""

    states: Float[Array, "tokens d"]
    """After each token."""
    frames: Float[Array, "tokens d k"]
    """Q_n, after each token."""
    triangles: Float[Array, "tokens k k"]
    """R_n, upper triangular with a diagonal of at least 0."""
    singular: Bool[Array, " tokens"]
    """Steps that send a vector to within rounding of those before it."""


@eqx.filter_jit
def frames_along(step, state, inputs, n_tokens: int, frame) -> Frames:
    """The frames after each token, all kept."""

    def advance(carry, u):
        state, frame = carry
        state, frame, triangle, singular = _one_token(step, state, u, frame)
        return (state, frame), (state, frame, triangle, jnp.any(singular))

    _, found = jax.lax.scan(advance, (state, frame), inputs, n_tokens)
    return Frames(*found)


@eqx.filter_jit
def log_growth(step, state, inputs, n_tokens: int, frame, whole: bool):
    """Logs of the diagonals of R, (tokens, k); -inf where a step is singular.

    Not at the first token from a random start (not `whole`), whose vectors have not
    yet turned.
    """

    def advance(carry, numbered):
        (state, frame), (number, u) = carry, numbered
        state, frame, triangle, singular = _one_token(step, state, u, frame)
        dead = singular & (whole | (number > 0))
        growth = jnp.where(dead, 0.0, jnp.diagonal(triangle))
        return (state, frame), jnp.log(growth)

    numbered = (jnp.arange(n_tokens), inputs)
    return jax.lax.scan(advance, (state, frame), numbered, n_tokens)[1]


def _one_token(step, state, u, frame):
    """State, frame and triangle after a token, and which vectors died in it."""
    state, push = jax.linearize(lambda x: step(x, u), state)
    pushed = jax.vmap(push, 1, 1)(frame)
    # each vector scaled by itself: the squares of tiny ones would vanish
    scale = jnp.max(jnp.abs(pushed), axis=0)
    safe = jnp.where(scale > 0, scale, 1)
    pushed = pushed / safe
    frame, triangle = jnp.linalg.qr(pushed)
    sign = jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)
    frame, triangle = frame * sign, sign[:, None] * triangle
    size = jnp.linalg.norm(pushed, axis=0)
    limit = 8 * frame.shape[0] * jnp.finfo(frame.dtype).eps * size
    singular = jnp.diagonal(triangle) <= limit
    return state, frame, triangle * scale, singular
