"""SGLang as an implementation: its own operators on a GPU, or its flow emulated.

The facts were read in SGLang 0.5.23; see `implementations._served`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._implementation import AbstractImplementation, Runner
from .._launch import SGLANG, Launch
from .._stacks import SERVED_STATES, SGLANG_STACK
from ..emulated.implementation import STREAM_REFUSED_WAYS, STREAM_WAYS


if TYPE_CHECKING:
    from .._execution import Execution


NO_MASK = "SGLang packs texts and pads none"


class SglangImplementation(AbstractImplementation):
    """Run plain Mamba-2 networks with SGLang's operators, on an NVIDIA GPU."""

    name = "sglang"
    measures = True
    needs_gpu = True
    installed_by = "'sglang>=0.5.23'"
    libraries: ClassVar[Mapping[str, str]] = {
        "sglang": "sglang",
        "triton": "triton",
        "torch": "torch",
    }
    first_is_step = True
    # `Mamba2Metadata.prepare_mixed` counts whatever is extended as a prefill
    rest_is_step = False
    ignores_dt_limits = True
    caches_in_calls = True
    follows = SGLANG_STACK.name
    launch_flags = SGLANG
    launch = Launch()
    ways = (
        *("whole", "steps", "chunks", "batched", "packed", "initial_state"),
        *("resumed", "preempted"),
    )
    refused_ways: ClassVar[Mapping[str, str]] = {
        "padded_left": NO_MASK,
        "padded_right": NO_MASK,
        "compiled": "its kernels are compiled already",
        "drafts": "SGLang's verification of drafts is not run here",
        "mixed": "SGLang steps and prefills in batches of their own, unless "
        "--enable-mixed-chunk has prefills compute steps, which is not followed",
    }

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """What its flags lead to, but for stochastic rounding."""
        del mode
        return SERVED_STATES[:3]

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """Mixers as in its operators, everything else as in torch."""
        from .._served import served_network
        from .networks import SGLANG_RULES

        asked = config, architecture, precision, mode, state_precision
        return served_network(SGLANG_RULES, *asked, self.launch)

    def runner(self, execution: Execution) -> Runner:
        """Run texts with its operators."""
        from .runner import Sglang

        return Sglang(execution, self.launch)


class SglangEmulatedImplementation(AbstractImplementation):
    """Follow SGLang's flow in fp64, rounded wherever it stores, on any machine."""

    name = "sglang_emulated"
    measures = True
    needs_gpu = False
    installed_by = None
    runs_without_head = True
    entry_bytes = None
    first_is_step = True
    # `Mamba2Metadata.prepare_mixed` counts whatever is extended as a prefill
    rest_is_step = False
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
