"""SGLang as an implementation: its flow emulated.

The facts were read in SGLang 0.5.23; see `implementations._served`. Its operators are
not run here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._implementation import AbstractImplementation, Runner
from .._launch import SGLANG, Launch
from .._stacks import SGLANG_STACK
from ..emulated.implementation import STREAM_REFUSED_WAYS, STREAM_WAYS


if TYPE_CHECKING:
    from .._execution import Execution


class SglangEmulatedImplementation(AbstractImplementation):
    """Follow SGLang's flow in fp64, rounded wherever it stores, on any machine."""

    name = "sglang_emulated"
    measures = True
    needs_gpu = False
    installed_by = None
    runs_without_head = True
    entry_bytes = None
    first_is_step = True
    ways = STREAM_WAYS
    refused_ways = STREAM_REFUSED_WAYS
    ignores_dt_limits = True
    followed_by_dumps = True
    caches_in_calls = True
    follows = SGLANG_STACK.name
    launch_flags = SGLANG
    launch = Launch()

    def state_precisions(self, mode: str) -> tuple[str, ...] | None:
        """All formats: a rounding is emulated whether a flag leads to it or not."""
        del mode

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """What is declared of SGLang."""
        from .._served import served_network
        from .networks import SGLANG_RULES

        asked = config, architecture, precision, mode, state_precision
        return served_network(SGLANG_RULES, *asked, self.launch)

    def runner(self, execution: Execution) -> Runner:
        """Run texts in one call, or in calls that hand states on."""
        from ..emulated.runner import Emulated

        return Emulated(execution)
