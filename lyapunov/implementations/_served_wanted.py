"""What a stack is asked for, resolved: formats of a network as a server is started."""

import dataclasses
from typing import NamedTuple

from .._errors import UsageError
from ..formats import Format
from ..sublayers import NetworkConfig
from ._execution import parse_precision
from ._launch import Launch
from ._served_delta import demand_delta
from ._served_formats import (
    demand_divisible,
    demand_steps,
    state_format,
    window_format,
)
from ._stacks import DELTA, KINDS, Stack


NEVER_COMPILED = ("kimi_linear",)
"""Models that vLLM runs in CUDA graphs that break instead of compiling them
(`DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES` in `config/vllm.py`)."""


class Rules(NamedTuple):
    """What one stack does otherwise than the other."""

    name: str
    """As users write the implementation."""
    stack: Stack
    on_a_grid: bool
    """Whether chunks end at multiples of their length in the text itself, and with
    calls; else in the stream of all texts of a call, from where that begins."""
    last_again: bool
    """Whether the state that a call leaves is made anew from the cached one in front of
    its last chunk."""
    compiles: bool
    """Whether norms are torch operations, which are compiled unless a flag says not;
    else one kernel adds and normalises."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is declared, resolved."""

    mode: str
    form: Format
    """Of weights and activations."""
    state: Format
    window: Format
    launch: Launch
    rules: Rules
    architecture: str

    @property
    def eager(self) -> bool:
        uncompiled = self.launch.eager or self.architecture in NEVER_COMPILED
        return self.rules.compiles and uncompiled


def wanted_of(
    rules: Rules,
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str,
    state_precision: str | None,
    launch: Launch,
) -> Wanted:
    """Resolve formats, once it is sure that the stack runs this so.

    **Raises:** `UsageError` for what it does not serve, or fails at, or was not read.
    """
    form, variant = parse_precision(precision, rules.name)
    if variant:
        raise UsageError(
            f"{rules.stack.name} casts every weight but A_log, and runs no autocast",
            hint=f"--precision {form.name}",
        )
    if launch.dtype not in (None, form.name):
        raise UsageError(
            f"--dtype says {launch.dtype}, the precision is {form.name}",
            hint=f"--precision {launch.dtype}, or leave --dtype out",
        )
    recurrent = {s.kind for s in config.sublayers if s.recurrent}
    if not recurrent or not recurrent <= KINDS:
        given = ", ".join(sorted(recurrent - KINDS)) or "a network without a recurrence"
        raise UsageError(
            f"of {rules.stack.name} mixers of {', '.join(sorted(KINDS))} are followed, "
            f"not {given}",
            hint="--measure emulated",
        )
    if recurrent & DELTA:
        demand_delta(rules.stack, config, architecture, form, mode, launch)
    demand_steps(recurrent, launch, rules.stack.name)
    demand_divisible(config, launch.ranks, rules.stack.name)
    return Wanted(
        mode,
        form,
        state_format(
            rules.stack, config, architecture, form, mode, state_precision, launch
        ),
        window_format(rules.stack, recurrent, form, launch),
        launch,
        rules,
        architecture,
    )
