"""A network's own forward with other values in the place of what its blocks give."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ._capture import input_of, rows_of
from ._found import FoundMixer


Give = Callable[[str, int, np.ndarray, np.ndarray], np.ndarray | None]
"""Of a block's name, the number of its call from 0, what it read and what it gave, each
(batch, seq, d_model) in its own type: what goes on instead; None: what it gave."""


class ReplacedBlocks:
    """Replace what blocks give for as long as a `with` lasts.

    A block still runs, so that what it does beside its output happens as ever; hooks of
    the user's see what goes on instead. Nothing of it stays behind.

    **Arguments:**

    - `found`: the blocks.
    - `give`: what goes on instead.
    - `sequence_first`: names of blocks that read (seq, batch, d_model).
    """

    def __init__(
        self,
        found: Sequence[FoundMixer],
        give: Give,
        sequence_first: Sequence[str] = (),
    ):
        self._found = found
        self._give = give
        self._sequence_first = set(sequence_first)
        self._handles: list[Any] = []
        self.names = [one.name for one in found]
        self.calls: Counter[str] = Counter()
        """How often each block ran."""

    def __enter__(self) -> "ReplacedBlocks":
        for one in self._found:
            self._handles.append(
                one.module.register_forward_hook(
                    self._hook(one), with_kwargs=True, prepend=True
                )
            )
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, one: FoundMixer) -> Any:
        swapped = one.name in self._sequence_first

        def hook(module: Any, given: tuple, named: Mapping[str, Any], result: Any):
            del module
            read, _ = input_of(one, given, named)
            wrote = result[0] if isinstance(result, tuple | list) else result
            number = self.calls[one.name]
            self.calls[one.name] += 1
            rows = rows_of(read, swapped), rows_of(wrote, swapped)
            found = self._give(one.name, number, *rows)
            if found is None:
                return None
            return _instead(result, _like(wrote, found, swapped))

        return hook


def _like(wrote: Any, found: np.ndarray, swapped: bool) -> Any:
    """The array as a tensor of the block's own shape, type and device."""
    torch = sys.modules["torch"]
    rows = np.swapaxes(found, 0, 1) if swapped else found
    values = torch.from_numpy(np.array(rows, np.float64, order="C"))
    return values.reshape(wrote.shape).to(device=wrote.device, dtype=wrote.dtype)


def _instead(result: Any, tensor: Any) -> Any:
    """What the block gave with another output; what it gave beside that stays."""
    if not isinstance(result, tuple | list):
        return tensor
    rest = [tensor, *result[1:]]
    kind: Any = type(result)
    return kind(*rest) if hasattr(result, "_fields") else kind(rest)
