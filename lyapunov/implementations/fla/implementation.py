"""flash-linear-attention as an implementation: its kernels within transformers.

The facts were read in the sources of fla-core 0.6.0 and transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._implementation import AbstractImplementation, Flag, Runner
from .._ways import SCHEDULED


if TYPE_CHECKING:
    from .._execution import Execution


class FlaImplementation(AbstractImplementation):
    """Run a network with transformers' classes and fla's kernels, on a GPU."""

    name = "fla"
    measures = True
    needs_gpu = True
    installed_by = "fla-core 'lyapunov-check[torch]'"
    libraries: ClassVar[Mapping[str, str]] = {
        "fla": "fla-core",
        "transformers": "transformers",
        "torch": "torch",
    }
    ways = ("whole", "steps", "batched")
    refused_ways: ClassVar[Mapping[str, str]] = {
        "drafts": "transformers steps by calls of one token",
        "chunks": "of calls that hand states on, fla's are not followed",
        "padded_left": "transformers gives fla's kernels no mask",
        "padded_right": "transformers gives fla's kernels no mask",
        "packed": "transformers' networks are given no sequence numbers here, which "
        "would part packed texts",
        "initial_state": "the runner steps from the first token",
        **dict.fromkeys(SCHEDULED, "transformers schedules no requests here"),
        "compiled": "torch.compile changes nothing in fla's kernels; what it makes of "
        "the rest is not followed",
    }

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """transformers' cache holds states in fp32."""
        del mode
        return ("fp32",)

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """Delta rules in its kernels, everything else in torch operations."""
        from .networks import fla_network

        return fla_network(config, architecture, precision, mode, state_precision)

    def runner(self, execution: Execution) -> Runner:
        """Run texts with transformers' modules on a GPU, which call its kernels."""
        from ..transformers.runner import Transformers
        from .watched import watched_chunks

        return Transformers(execution, device="cuda", inside=watched_chunks)

    def flags(self, state: str | None, weights: str | None) -> list[Flag]:
        """Its states are fp32, whatever the model's format is."""
        from .._flags import of_library

        kept = "none needed", "its kernels keep and hand on the state in fp32"
        return of_library(self.name, kept if state == "fp32" else None, weights)
