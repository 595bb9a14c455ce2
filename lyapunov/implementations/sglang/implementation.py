"""SGLang as an implementation: its flow emulated.

The facts were read in SGLang 0.5.23; see `implementations._served`. Its operators are
not run here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._launch import SGLANG, Launch, launched
from ..emulated.implementation import EmulatedImplementation


if TYPE_CHECKING:
    from .._execution import Execution


class SglangEmulatedImplementation(EmulatedImplementation):
    """Follow SGLang's flow in fp64, rounded wherever it stores, on any machine.

    **Arguments:**

    - `launch`: how the server was started.
    """

    name = "sglang-emulated"
    ignores_dt_limits = True
    caches_in_calls = True

    def __init__(self, launch: Launch = Launch()):  # noqa: B008
        self.launch = launch

    def launched(self, flags: str) -> SglangEmulatedImplementation:
        """As started with these flags."""
        return SglangEmulatedImplementation(launched(flags, SGLANG, "SGLang"))

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """What is declared of SGLang."""
        from .networks import sglang_network

        return sglang_network(
            config, architecture, precision, mode, state_precision, self.launch
        )
