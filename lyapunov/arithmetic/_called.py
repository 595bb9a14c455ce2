"""Rules as functions within a program, which a compiler for CPUs keeps apart.

XLA computes elementwise chains anew in each of their readers, and most of what a rule
returns has several: a bounded Mamba-1 sublayer was 28 thousand instructions in 720
loops, and is six thousand in 215. What is called is computed once.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.experimental.xla_metadata import set_xla_metadata

from .._devices import has_gpu


def called(rule: Callable, declared: Any, *operands: Any, **named: Any) -> Any:
    """`rule(declared, *operands, **named)` as a function of its own; no number changes.

    On GPUs chains are kept apart where that pays, by `written_out`.
    """
    if not declared.as_functions or has_gpu():
        return rule(declared, *operands, **named)
    arrays, rest = eqx.partition((operands, named), eqx.is_array)

    @functools.wraps(rule)
    def whole(arrays):
        operands, named = eqx.combine(arrays, rest)
        with set_xla_metadata(inlineable="true"):  # what it calls is part of it
            return rule(declared, *operands, **named)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(whole)(arrays)
