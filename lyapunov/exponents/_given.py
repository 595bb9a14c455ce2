"""What is given to a computation of exponents: step, state and inputs, in fp64."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._arguments import shown, whole
from .._errors import ArgumentError
from ..recurrences.base import AbstractRecurrence


OF_TORCH = (
    "give it as NumPy's, tensor.numpy(), and a step in jax.numpy; Jacobians that torch "
    "made go to lyapunov_spectrum_of"
)


def step_given(step: Any) -> Callable | AbstractRecurrence:
    """Take a step in JAX, `(state, input) -> state`, or a recurrence.

    **Raises:** `ArgumentError` for a torch module, and for what cannot be called.
    """
    if isinstance(step, AbstractRecurrence):
        return step
    if _of_torch(step):
        raise ArgumentError(f"the step is torch's {type(step).__name__}", hint=OF_TORCH)
    if not callable(step) or isinstance(step, type):
        raise ArgumentError(
            f"the step is {shown(step)}",
            hint="a function (state, input) -> state, or a lyapunov.recurrences object",
        )
    return step


def state_given(state: Any) -> Any:
    """Take the state's arrays to float64, exactly from every real type.

    **Raises:** `ArgumentError` for one without numbers, for complex ones and torch's.
    """
    leaves = jax.tree.leaves(state)
    if sum(np.size(leaf) for leaf in leaves if not _of_torch(leaf)) == 0:
        if any(_of_torch(leaf) for leaf in leaves):
            raise ArgumentError("the state is a torch tensor", hint=OF_TORCH)
        raise ArgumentError(
            f"the state is {shown(state)}, which holds no number",
            hint="an array, as jnp.zeros(2), or a pytree of arrays",
        )
    return jax.tree.map(lambda leaf: _real(leaf, "the state"), state)


def inputs_given(inputs: Any) -> tuple[int, Any]:
    """Count the tokens and take the stacked inputs, floats to float64.

    **Returns:** None for inputs where a number of steps was given.

    **Raises:** `ArgumentError` for inputs without a first axis, or of several lengths.
    """
    if isinstance(inputs, numbers.Integral) and not isinstance(inputs, bool):
        return int(inputs), None
    leaves = jax.tree.leaves(inputs)
    if any(_of_torch(leaf) for leaf in leaves):
        raise ArgumentError("the inputs are torch tensors", hint=OF_TORCH)
    if not leaves or any(np.ndim(leaf) == 0 for leaf in leaves):
        raise ArgumentError(
            f"the inputs are {shown(inputs)}",
            hint="arrays whose first axis is the tokens, or for a step without inputs "
            "the number of steps",
        )
    counts = sorted({np.shape(leaf)[0] for leaf in leaves})
    if len(counts) > 1:
        raise ArgumentError(
            f"the inputs have {counts[0]} and {counts[-1]} tokens",
            hint="arrays of one length along their first axis; rows as one array",
        )
    return counts[0], jax.tree.map(_wide, inputs)


def check_step(before: Any, after: Any) -> None:
    """Refuse a step whose state does not stay what it was.

    **Arguments:**

    - `before`, `after`: the state that the step took and the one that it gave, traced.

    **Raises:** `ArgumentError` where shapes, structure or type change.
    """
    told = [
        jax.tree.map(lambda x: (jnp.shape(x), str(jnp.result_type(x))), found)
        for found in (before, after)
    ]
    if told[0] != told[1]:
        raise ArgumentError(
            f"the step makes {shown(told[1])} of the state {shown(told[0])}",
            hint="a step returns the state in the shape and type in which it took it; "
            "it is given float64",
        )


def numbers_given(value: Any, name: str) -> np.ndarray:
    """Read an array of real numbers from anything that NumPy reads as one.

    **Raises:** `ArgumentError` for what it does not, as a tensor on a GPU.
    """
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"{name} is {shown(value)}",
            hint="an array of one shape in main memory; of a tensor "
            "tensor.detach().cpu()",
        ) from None
    if not _is_real(found):
        raise ArgumentError(f"{name} holds {found.dtype}", hint="real numbers")
    return found


def floats_in_fp64(inputs: Any) -> Any:
    """Take floats of one token's inputs to float64, and leave integers and keys."""
    return jax.tree.map(_wide, inputs)


def options_given(method: Any, until: Any, transient: Any, k: Any, kinds) -> None:
    """Refuse options of the wrong type.

    **Arguments:**

    - `kinds`: classes of methods and of stopping rules.

    **Raises:** `ArgumentError`.
    """
    for name, value, kind in (
        ("method", method, kinds[0]),
        ("until", until, kinds[1]),
    ):
        if value is not None and not isinstance(value, kind):
            raise ArgumentError(
                f"{name} is {shown(value)}",
                hint="an object, such as method=QR() or until=Converged(1e-4)",
            )
    whole(transient, "transient", 0)
    if k is not None:
        whole(k, "k", 1)


def key_given(key: Any) -> Any:
    """Take a key of `jax.random`; `jax.random.key(0)` where none was given.

    **Raises:** `ArgumentError` for a number and anything else.
    """
    if key is None:
        return jax.random.key(0)
    if not isinstance(key, jax.Array | Tracer):
        raise ArgumentError(f"key is {shown(key)}", hint="key=jax.random.key(0)")
    return key


def _real(leaf: Any, what: str) -> Any:
    if _of_torch(leaf):
        raise ArgumentError(f"{what} is a torch tensor", hint=OF_TORCH)
    if not _is_real(leaf):
        raise ArgumentError(
            f"{what} holds {shown(leaf)}", hint="real numbers, as jnp.zeros(2)"
        )
    return jnp.asarray(leaf, jnp.float64)


def _wide(leaf: Any) -> Any:
    """Floats in float64; integers, keys and the like as they are."""
    array = leaf if isinstance(leaf, jax.Array | Tracer) else np.asarray(leaf)
    if isinstance(array, np.ndarray) and array.dtype.kind in "OSUMm":
        raise ArgumentError(f"the inputs hold {shown(leaf)}", hint="arrays of numbers")
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(array, jnp.float64) if floating else jnp.asarray(array)


def _is_real(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.asarray(value).dtype
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def _of_torch(value: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "torch" for kind in type(value).__mro__)
