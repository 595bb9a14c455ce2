"""vLLM as an implementation: its own operators on a GPU, or its flow emulated.

The facts were read in vLLM 0.33.0; see `implementations._served`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._implementation import AbstractImplementation, Runner
from .._launch import VLLM, Launch
from .._stacks import SERVED_STATES, VLLM_STACK
from .._ways import SCHEDULED
from ..emulated.implementation import SERVED_REFUSED_WAYS, SERVED_WAYS


if TYPE_CHECKING:
    from .._execution import Execution


NO_MASK = "vLLM packs texts and pads none"


class VllmImplementation(AbstractImplementation):
    """Run plain networks of Mamba or a delta rule with vLLM's operators, on a GPU."""

    name = "vllm"
    measures = True
    needs_gpu = True
    installed_by = "'vllm>=0.33'"
    libraries: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm",
        "triton": "triton",
        "torch": "torch",
    }
    first_is_step = True
    followed_by_dumps = True
    ignores_dt_limits = True
    caches_in_calls = True
    follows = VLLM_STACK.name
    launch_flags = VLLM
    launch = Launch()
    ways = (
        *("whole", "steps", "chunks", "batched", "packed", "initial_state"),
        "drafts",
        *SCHEDULED,
    )
    refused_ways: ClassVar[Mapping[str, str]] = {
        "padded_left": NO_MASK,
        "padded_right": NO_MASK,
        "compiled": "its norms are compiled already, its mixers never are",
    }

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """What its flags lead to; a call over several tokens rounds to nearest.

        FlashInfer's step has int16, too, which no flag of vLLM's leads to.
        """
        if mode != "decode":
            return SERVED_STATES[:3]
        more = ("int16-scaled",) if self.launch.flashinfer else ()
        return (*SERVED_STATES, *more)

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
        from .networks import VLLM_RULES

        asked = config, architecture, precision, mode, state_precision
        return served_network(VLLM_RULES, *asked, self.launch)

    def runner(self, execution: Execution) -> Runner:
        """Run texts with its operators."""
        from .runner import Vllm

        return Vllm(execution, self.launch)


class VllmEmulatedImplementation(AbstractImplementation):
    """Follow vLLM's flow in fp64, rounded wherever it stores, on any machine."""

    name = "vllm_emulated"
    measures = True
    needs_gpu = False
    installed_by = None
    runs_without_head = True
    entry_bytes = None
    first_is_step = True
    ways = SERVED_WAYS
    refused_ways = SERVED_REFUSED_WAYS
    ignores_dt_limits = True
    caches_in_calls = True
    follows = VLLM_STACK.name
    launch_flags = VLLM
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
        """What is declared of vLLM."""
        from .._served import served_network
        from .networks import VLLM_RULES

        asked = config, architecture, precision, mode, state_precision
        return served_network(VLLM_RULES, *asked, self.launch)

    def runner(self, execution: Execution) -> Runner:
        """Run texts in one call, or in calls that hand states on."""
        from ..emulated.runner import Emulated

        return Emulated(execution)
