"""Runs of a network on the same inputs, as it is and with its blocks replaced."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import UsageError
from ..mixers import Call, FoundMixer
from ..mixers._replaced import Give, ReplacedBlocks
from ._output_of import OutputOf, values_of
from ._undisturbed import undisturbed


ULPS = 16.0
"""By so many units of roundoff, relative L2, two runs of one network may differ: sums
in another order on a GPU, and nothing that is drawn."""


class NetworkRuns:
    """Run a network again and again, each time from where it was.

    **Arguments:**

    - `found`: its blocks.
    - `inputs`, `named`: what it is given, copied for every run.
    """

    def __init__(
        self,
        module: Any,
        found: Sequence[FoundMixer],
        sequence_first: Sequence[str],
        inputs: tuple,
        named: Mapping[str, Any],
        output: OutputOf,
    ):
        self.found = found
        self.reference: Any = None
        """The output's tensor in the first run, after `begin`."""
        self._module, self._sequence_first = module, sequence_first
        self._inputs, self._named = _fresh(inputs), _fresh(dict(named))
        self._output = output
        self._calls: Counter[str] = Counter()

    def plain(self) -> Any:
        """Run it as it is, and give everything it gives. Nothing is put back: stand in
        `undisturbed`."""
        return self._module(*_fresh(self._inputs), **_fresh(self._named))

    def begin(self, result: Any, calls: Sequence[Call]) -> None:
        """Take what the first run gave as the reference, and run it once more, right
        behind it, to see whether it gives the same.

        **Raises:** `UsageError` where it does not, or gives what is not finite.
        """
        self.reference = self._output.tensor(result).clone()
        self._calls = Counter(call.name for call in calls)
        first = values_of(self.reference)
        if not np.isfinite(first).all():
            raise UsageError(
                f"{self._output.name} holds values that are not finite",
                hint="inputs of a scale that the network was trained on",
            )
        again = values_of(self._same_shape(self._output.tensor(self.plain())))
        torch = sys.modules["torch"]
        most = ULPS * torch.finfo(self.reference.dtype).eps * np.linalg.norm(first)
        if not np.linalg.norm(again - first) <= most:
            raise UsageError(
                f"two runs on the same inputs give {self._output.name} differently: "
                "something is drawn, as in dropout",
                hint="model.eval()",
            )

    def run(self, give: Give) -> Any:
        """The output's tensor with blocks that give something else.

        **Raises:** `UsageError` where the blocks are called another number of times.
        """

        def known(name: str, number: int, read: np.ndarray, wrote: np.ndarray):
            if number >= self._calls[name]:
                raise self._other_calls(name)
            return give(name, number, read, wrote)

        replaced = ReplacedBlocks(self.found, known, self._sequence_first)
        with undisturbed(self._module), replaced:
            result = self.plain()
        for name, count in self._calls.items():
            if name in replaced.names and replaced.calls[name] != count:
                raise self._other_calls(name)
        return self._same_shape(self._output.tensor(result)).clone()

    def _same_shape(self, tensor: Any) -> Any:
        if tensor.shape != self.reference.shape:
            raise UsageError(
                f"{self._output.name} is of shape {tuple(self.reference.shape)} in one "
                f"run and {tuple(tensor.shape)} in another",
                hint="an output whose shape does not hang on its values, and "
                "model.eval()",
            )
        return tensor

    def _other_calls(self, name: str) -> UsageError:
        return UsageError(
            f"{name or 'the module itself'} is not called as often in every run",
            hint="a forward that does the same whatever its blocks give, and "
            "model.eval()",
        )


def _fresh(given: Any) -> Any:
    """Inputs with tensors of their own: a network may write into what it is given."""
    torch = sys.modules["torch"]
    if isinstance(given, torch.Tensor):
        return given.detach().clone()
    if type(given) in (tuple, list):
        return type(given)(_fresh(one) for one in given)
    if type(given) is dict:
        return {name: _fresh(one) for name, one in given.items()}
    return given
