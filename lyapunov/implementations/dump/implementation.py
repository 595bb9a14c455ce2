"""A dump as an implementation: runs that someone else made, told by a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..._errors import UsageError
from .._implementation import AbstractImplementation
from .._ways import SCHEDULED


if TYPE_CHECKING:
    from .._execution import Execution


class DumpImplementation(AbstractImplementation):
    """Hold runs that were recorded elsewhere to the flow that they say they follow.

    A dump has its own tokens, precision and ways; nothing is run here.
    """

    name = "dump"
    measures = False
    needs_gpu = False
    installed_by = None
    suffixes = (".npz", ".safetensors")
    ways = (
        *("whole", "steps", "chunks", "padded_left", "padded_right", "batched"),
        *("packed", "initial_state", "drafts", "compiled"),
        *SCHEDULED,
    )
    refused_ways: ClassVar[Mapping[str, str]] = {}

    def state_precisions(self, mode: str) -> tuple[str, ...] | None:
        """Whatever the dump says."""
        del mode

    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> NoReturn:
        """Refuse: a dump says itself whose flow it follows.

        **Raises:** `UsageError`.
        """
        del config, precision, architecture, mode, state_precision
        self._refuse()

    def runner(self, execution: Execution) -> NoReturn:
        """Refuse: a dump was run elsewhere.

        **Raises:** `UsageError`.
        """
        del execution
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            "a dump runs nothing: it says what was run, and whose flow that follows",
            hint=f"--audit FILE{' or FILE'.join(self.suffixes)}",
        )
