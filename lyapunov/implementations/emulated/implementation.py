"""The emulator: a flow of those that are declared, rounded, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .._implementation import AbstractImplementation, Runner


if TYPE_CHECKING:
    from .._execution import Execution


WAYS: Final = ("whole", "steps", "chunks", "initial_state")
REFUSED_WAYS: Final[Mapping[str, str]] = {
    "padded_left": "the emulator has no masks",
    "padded_right": "the emulator has no masks",
    "batched": "the emulator's sequences do not meet",
    "drafts": "of this flow no call makes several steps",
    "packed": "the emulator packs no texts",
    "compiled": "the emulator is no torch program",
    "resumed": "the emulator's texts share no states; chunks:64,rest is of the same "
    "arithmetic",
    "preempted": "the emulator throws no text out; initial_state:100 is of the same "
    "arithmetic",
    "mixed": "the emulator's texts do not meet; initial_state:100 is of the same "
    "arithmetic",
}
"""Of the emulator, where it follows a library's flow."""
SERVED_WAYS: Final = (*WAYS, "drafts")
SERVED_REFUSED_WAYS: Final[Mapping[str, str]] = {
    way: why for way, why in REFUSED_WAYS.items() if way != "drafts"
}
"""Where it follows a server's."""
STREAM_WAYS: Final = (*SERVED_WAYS, "packed")
STREAM_REFUSED_WAYS: Final[Mapping[str, str]] = {
    way: why for way, why in SERVED_REFUSED_WAYS.items() if way != "packed"
}
"""Where that one cuts chunks in the stream of all packed texts."""


class EmulatedImplementation(AbstractImplementation):
    """Run a network in fp64, rounded wherever mamba_ssm's flow stores, or fla's."""

    name = "emulated"
    measures = True
    needs_gpu = False
    installed_by = None
    runs_without_head = True
    entry_bytes = None
    first_is_step = True
    ways = WAYS
    refused_ways = REFUSED_WAYS

    def state_precisions(self, mode: str) -> tuple[str, ...] | None:
        """All formats: a rounding is emulated whether hardware has it or not."""
        del mode

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """What is declared of mamba_ssm, whose flow this follows, of fla or torch."""
        from ..fla.networks import DELTA, fla_network
        from ..mamba_ssm.networks import mamba_ssm_network, refuse_state
        from ..transformers.networks import OF_TORCH_ALONE, emulated_network

        kinds = {one.kind for one in config.sublayers}
        if kinds & {*OF_TORCH_ALONE}:
            if not any(one.recurrent for one in config.sublayers):
                refuse_state(state_precision)
            return emulated_network(
                config, architecture, precision, mode, state_precision
            )
        if kinds & {*DELTA}:
            return fla_network(config, architecture, precision, mode, state_precision)
        return mamba_ssm_network(config, architecture, precision, mode, state_precision)

    def runner(self, execution: Execution) -> Runner:
        """Run texts in one call, or in calls that hand states on."""
        from .runner import Emulated

        return Emulated(execution)
