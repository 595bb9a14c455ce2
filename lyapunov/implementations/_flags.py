"""The flags of serving stacks and libraries that do what a report advises.

What a stack does by itself, and which flags it has, `_stacks` knows; what to give to an
implementation itself, its own `flags` say.
"""

from collections.abc import Sequence

from lyapunov.formats._precision import Precision
from lyapunov.results._check import PrecisionReport

from .._errors import UsageError
from ._implementation import AbstractImplementation, Flag
from ._registry import IMPLEMENTATIONS
from ._stacks import DTYPES, STACKS, Asked, served_somewhere, state_flags


def serving_flags(
    precisions: Sequence[PrecisionReport],
    state: str | None,
    weights: str | None,
    asked: Asked | None = None,
) -> list[dict[str, str]]:
    """What to give to vLLM, SGLang and every implementation that takes something.

    **Arguments:**

    - `precisions`: what was measured; for the reasons.
    - `state`: the format to keep the state in, or None where nothing was found out.
    - `weights`: the format to run in, or None.
    - `asked`: the checkpoint as stacks look at it, or None.

    **Returns:** a list of `stack`, `flag`, `why`. A format for which a stack has no
    flag is left out rather than made up; where its default is the format, the flag is
    `none needed`.
    """
    flags: list[Flag] = []
    libraries = [one for one in IMPLEMENTATIONS.values() if _runs(one, asked)]
    form = None if weights is None else Precision.named(weights).format
    form = form if form in DTYPES else None
    if state is not None:
        held = Precision.named(state)
        why = _why_state(precisions, str(held))
        flags += state_flags(held, why, asked, form)
        if served_somewhere(held):
            for one in libraries:
                flags += one.flags(state, None)
    if form is not None:
        flags += [
            Flag(stack.name, f"--dtype {DTYPES[form]}", _why_weights(form))
            for stack in STACKS
        ]
        flags += [f for one in libraries for f in one.flags(None, form)]
    return [flag._asdict() for flag in flags]


def _runs(implementation: AbstractImplementation, asked: Asked | None) -> bool:
    """Whether it promises anything of the checkpoint's network."""
    if asked is None or asked.network is None:
        return True
    try:
        implementation.execution(asked.network, "fp32", architecture=asked.architecture)
    except UsageError:
        return False
    return True


def of_library(
    stack: str, of_state: tuple[str, str] | None, weights: str | None
) -> list[Flag]:
    """What a library with `from_pretrained` takes.

    **Arguments:**

    - `of_state`: what to give it for the state, and why; or None. `weights`: the format
      to load the model in, or None.
    """
    flags = [] if of_state is None else [Flag(stack, *of_state)]
    if weights is not None:
        loads = f"from_pretrained(..., dtype=torch.{DTYPES[weights]})"
        flags.append(Flag(stack, loads, _why_weights(weights)))
    return flags


def _why_weights(form: str) -> str:
    return f"weights and activations in {form}"


def _why_state(precisions: Sequence[PrecisionReport], state: str) -> str:
    others = sorted({p.state_precision for p in precisions} - {state, "fp64"})
    if others:
        return f"the state in {state}, not in {' or '.join(others)}"
    return f"the state in {state}, as it was checked"
