"""Lyapunov spectra of any step function, by the method that its structure allows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from ..recurrences.base import AbstractDiagonalRecurrence, AbstractRecurrence
from ._methods import QR, AbstractMethod, ClosedForm, System
from ._result import SpectrumResult


def lyapunov_spectrum(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    k: int | None = None,
    method: AbstractMethod | None = None,
    key: PRNGKeyArray | None = None,
) -> SpectrumResult:
    r"""Growth rates of the product of step Jacobians along a trajectory.

    $\lambda_j = \lim \frac1T \log r_j$ with $r_j$ the growth of the j-th direction
    under $\prod_t \partial x_t / \partial x_{t-1}$, the inputs held fixed.

    **Arguments:**

    - `step`: `(state, input) -> state`, or a recurrence.
    - `state`: at the start; a float64 array or a pytree of them.
    - `inputs`: stacked along the first axis, one entry a token. For an autonomous
      system the number of steps as an integer; `step` is then given None.
    - `k`: how many of the largest exponents; all by default.
    - `method`: `ClosedForm()` by default for a diagonal recurrence, else `QR()`.
    - `key`: for methods with a random start; `jax.random.key(0)` by default.

    **Returns:** the exponents in nats per token, the largest first, with their
    history. Batches are `jax.vmap`'s business.

    **Raises:** `ValueError` for a state that is not float64, for no tokens, or a
    method that the structure does not allow.
    """
    flat, unravel = ravel_pytree(state)
    if flat.dtype != jnp.float64:
        raise ValueError(
            f"the state is {flat.dtype} and products of Jacobians need float64; "
            "give a float64 state, inside `with jax.enable_x64(True):`"
        )
    recurrence = step if isinstance(step, AbstractRecurrence) else None
    if method is None:
        diagonal = isinstance(step, AbstractDiagonalRecurrence)
        method = ClosedForm() if diagonal else QR()
    if isinstance(method, ClosedForm) and not isinstance(
        step, AbstractDiagonalRecurrence
    ):
        raise ValueError(
            f"ClosedForm needs a diagonal recurrence and {step!r} is none; use QR()"
        )
    if isinstance(inputs, int):
        n_tokens, inputs = inputs, None
    else:
        n_tokens = len(jax.tree.leaves(inputs)[0])
    if n_tokens < 1:
        raise ValueError("there are no tokens, so nothing grows; give one or more")
    system = System(_Flat(step, unravel), flat, inputs, recurrence, n_tokens)
    k = method.count(system) if k is None else k
    if not 1 <= k <= flat.size:
        raise ValueError(f"k is {k} and the state has {flat.size} entries")
    key = jax.random.key(0) if key is None else key
    exponents, history, tokens = _growth(method, system, k, key)
    return SpectrumResult(
        exponents=exponents,
        history=history,
        history_tokens=tokens,
        n_tokens=n_tokens,
        method=str(method),
        notes=method.notes(system, k),
    )


class _Flat(eqx.Module):
    """A step function on flat states."""

    step: Any
    unravel: Callable = eqx.field(static=True)

    def __call__(self, flat, inputs):
        one = self.step.step if isinstance(self.step, AbstractRecurrence) else self.step
        return ravel_pytree(one(self.unravel(flat), inputs))[0]


@eqx.filter_jit
def _growth(method, system, k, key):
    return method.growth(system, k, key)
