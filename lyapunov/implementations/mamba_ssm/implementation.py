"""mamba_ssm as an implementation: what its kernels promise, need and get wrong.

The facts were read in the sources of mamba_ssm 2.3.2.post1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .._implementation import (
    AbstractImplementation,
    Flag,
    PassedOver,
    Reach,
    Runner,
)
from .._ways import SCHEDULED


if TYPE_CHECKING:
    from .._execution import Execution, InnerConstants


NO_MASK = "mamba_ssm takes no attention mask"


class MambaSsmImplementation(AbstractImplementation):
    """Run a network with mamba_ssm's classes and CUDA kernels."""

    name = "mamba_ssm"
    measures = True
    needs_gpu = True
    installed_by = "--no-build-isolation 'mamba-ssm>=2.3.2' 'causal-conv1d>=1.6'"
    libraries: ClassVar[Mapping[str, str]] = {
        "mamba_ssm": "mamba-ssm",
        "torch": "torch",
    }
    first_is_step = True
    followed_by_dumps = True
    ways = ("whole", "steps", "batched")
    refused_ways: ClassVar[Mapping[str, str]] = {
        "drafts": "mamba_ssm's steps are calls of one token",
        "chunks": "mamba_ssm's Mamba-1 scan takes no initial state; after the first "
        "call it goes token by token",
        "padded_left": NO_MASK,
        "padded_right": NO_MASK,
        "packed": "mamba_ssm's Mamba-1 takes no sequence numbers that would part "
        "packed texts",
        "initial_state": "the runner steps from the first token",
        **dict.fromkeys(SCHEDULED, "mamba_ssm schedules no requests"),
        "compiled": "torch.compile changes nothing in mamba_ssm's kernels; what it "
        "makes of the rest is not followed",
    }
    ignores_dt_limits = True
    passed_over: ClassVar[Mapping[str, PassedOver]] = {
        "mamba1": PassedOver(("in_proj", "dt_proj", "conv1d"), ("x_proj", "out_proj")),
        "mamba2": PassedOver(("conv1d",), ("out_proj",)),
    }

    def state_precisions(self, mode: str) -> tuple[str, ...]:
        """A scan keeps the state in registers, steps in a cache of any dtype."""
        return ("fp32",) if mode == "prefill" else ("fp32", "bf16", "fp16")

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """Mixers on its kernels, everything else in torch operations."""
        from .networks import mamba_ssm_network

        return mamba_ssm_network(config, architecture, precision, mode, state_precision)

    def runner(self, execution: Execution) -> Runner:
        """Run texts with its kernels, on an NVIDIA GPU."""
        from .runner import MambaSsm

        return MambaSsm(execution)

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Its own layout has no `model_type`."""
        return not config.get("model_type")

    def flags(self, state: str | None, weights: str | None) -> list[Flag]:
        """One dtype serves the state and the convolution's window."""
        from .._flags import of_library

        both = (
            "none for the state alone",
            "allocate_inference_cache(dtype=) sets the convolution's window "
            "too; by default both have the weights' format",
        )
        return of_library(self.name, None if state is None else both, weights)

    def reach(self, sizes: Any, batch: int) -> Iterator[Reach]:
        """How long sequences the 32-bit offsets of its prefill kernels address."""
        from ._reach import reaches

        for length, kernel in reaches(sizes, batch):
            yield Reach(length, kernel, self.name)

    def documented_constants(self) -> Mapping[str, InnerConstants]:
        """Of the scan, of a step, and of Mamba-3's scan."""
        from .mamba1 import KERNEL, STEP
        from .mamba3 import SCAN

        return {"KERNEL": KERNEL, "STEP": STEP, "SCAN": SCAN}
