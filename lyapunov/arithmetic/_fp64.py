"""64-bit JAX where it is needed, whatever the caller's setting is.

Outside of `jax_enable_x64` JAX truncates fp64 to fp32 with no more than a warning, so
that a forgotten setting would be a wrong number. What computes in fp64 enters it here.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax


Function = TypeVar("Function", bound=Callable[..., Any])


def in_fp64(function: Function) -> Function:
    """The function, run with 64-bit JAX in this thread; the setting is given back."""

    @functools.wraps(function)
    def run(*arguments, **named):
        with jax.enable_x64(True):
            return function(*arguments, **named)

    return run  # type: ignore[return-value]
