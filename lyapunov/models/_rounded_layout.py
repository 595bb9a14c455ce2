"""A model's weights, some of them rounded to a format as they are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .._errors import UsageError
from ..checkpoints._network import NetworkLayout, each_once
from ..formats import format_named
from ..formats._weight_table import EACH_BY_ITSELF, PLAIN_FORMATS, WEIGHT_FORMAT_TABLE
from ..sublayers.groups import OUTSIDE, RoundedGroup, chosen_parameters
from .held import rounded


_ROWS = 4096  # of the embedding or the head that are read at once


def parameters_of(layout: NetworkLayout) -> Iterator[tuple[str, str]]:
    """Kind and canonical name of every parameter of a network, in order."""
    yield OUTSIDE, "embedding"
    if layout.names.embedding_norm is not None:
        yield OUTSIDE, "embedding_norm"
    if layout.names.embedding_norm_bias is not None:
        yield OUTSIDE, "embedding_norm_bias"
    for sizes, parts in zip(layout.config.sublayers, layout.parts, strict=True):
        for name in parts:
            yield sizes.kind, name
    if layout.names.final_norm is not None:
        yield OUTSIDE, "norm_f"
    if layout.names.final_norm_bias is not None:
        yield OUTSIDE, "norm_f_bias"
    yield OUTSIDE, "head"


def rounded_layout(base: NetworkLayout, group: RoundedGroup) -> "RoundedLayout":
    """The network with the parameters of a group rounded to a format.

    **Raises:** `UsageError` where the network has nothing that could be rounded so.
    """
    rounded, kept = chosen_parameters(group, parameters_of(base))
    return base.read_by(
        RoundedLayout, base=base, group=group, rounded=rounded, kept=kept
    )


@dataclass(frozen=True, eq=False)
class RoundedLayout(NetworkLayout):
    """A model's layout whose parameters of a group are rounded to a format.

    A format with scales takes each stored tensor whole, as the file's quantiser would:
    of a tensor that holds several parameters (gate and up, say) the rounded ones have
    the scales of all.

    **Arguments:**

    - `base`: what is rounded. `rounded`, `kept`: parameters, as `kind.parameter`.
    """

    base: NetworkLayout = field(repr=False)
    group: RoundedGroup
    rounded: list[str]
    kept: list[str]

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Parameters of one layer."""
        arrays = self.base.layer(i)
        dequantised = each_once(self.base.parts[i], self._dequantised)
        kind, where = self.config.sublayers[i].kind, f" of layer {i}"
        for name in arrays:
            if not self.group.has(kind, name):
                continue
            if self.group.scaled:
                found = self.base.parts[i][name].read(dequantised)
            else:
                found = self._each_rounded(arrays[name])
            arrays[name] = self._checked(found, arrays[name], f"{name}{where}")
        return arrays

    def _dequantised(self, name: str) -> np.ndarray:
        from ..formats import dequantised

        return dequantised(self.base.stored(name), self.group.format)

    def _each_rounded(self, array: np.ndarray) -> np.ndarray:
        return rounded(array, format_named(PLAIN_FORMATS[self.group.format]))

    def _checked(self, found: np.ndarray, array: np.ndarray, what: str) -> np.ndarray:
        if np.all(np.isfinite(found)):
            return found
        largest = np.max(np.abs(array.astype(np.float64)))
        name = self.group.format
        limit = "fp32"
        if name in PLAIN_FORMATS:
            fmt = format_named(PLAIN_FORMATS[name])
            limit = f"{fmt.largest:g}, the largest number of {fmt.name}"
        raise UsageError(
            f"{what} holds {largest:.4g}, beyond {limit}",
            hint="round another group, or to bf16",
        )

    def stored(self, name: str) -> np.ndarray:
        """A tensor of the base, as it is."""
        return self.base.stored(name)

    def stored_rows(self, name: str, start, stop: int | None = None) -> np.ndarray:
        """Rows of a tensor of the base, as they are."""
        return self.base.stored_rows(name, start, stop)

    def embedding_norm(self) -> np.ndarray | None:
        """Weight of the norm of the embedding, if it has one."""
        return self._of_norm("embedding_norm", self.base.embedding_norm())

    def embedding_norm_bias(self) -> np.ndarray | None:
        """Its bias, if it has one."""
        name = "embedding_norm_bias"
        return self._of_norm(name, self.base.embedding_norm_bias())

    def final_norm(self) -> np.ndarray | None:
        """Weight of the norm in front of the head, if it has one."""
        return self._of_norm("norm_f", self.base.final_norm())

    def final_norm_bias(self) -> np.ndarray | None:
        """Its bias, if it has one."""
        return self._of_norm("norm_f_bias", self.base.final_norm_bias())

    def _of_norm(self, name: str, array: np.ndarray | None) -> np.ndarray | None:
        if array is None or not self.group.has(OUTSIDE, name):
            return array
        return self._checked(self._each_rounded(array), array, name)

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding."""
        rows = np.asarray(rows)
        return self._tall("embedding", rows, lambda: self.base.embedding(rows))

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head."""
        rows = np.arange(start, stop)
        return self._tall("head", rows, lambda: self.base.head(start, stop))

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of the base's embedding or head."""
        if name == "head":
            return self.base.head(start, stop)
        return self.base.embedding(np.arange(start, stop))

    def _tall(
        self, name: str, rows: np.ndarray, plain: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Rows of a tall matrix, each within all the rows that share its scales."""
        from ..formats import dequantised, row_period

        if not self.group.has(OUTSIDE, name):
            return plain()
        if not self.group.scaled:
            array = plain()
            return self._checked(self._each_rounded(array), array, name)
        c, largest = self.config, self._largest[name]
        period = row_period(self.group.format, c.d_model)
        found = np.empty((len(rows), c.d_model))
        # several periods at once, but no more than the memory that a slice may take
        step = max(period, _ROWS // period * period)
        for first in np.unique(rows // step) * step:
            stop = min(int(first) + step, c.padded_vocab_size)
            chunk = self._read(name, int(first), stop)
            values = dequantised(chunk, self.group.format, largest)
            inside = (first <= rows) & (rows < first + step)
            found[inside] = values[rows[inside] - first]
        return found

    @cached_property
    def _largest(self) -> dict[str, float | None]:
        """The largest magnitudes of embedding and head, where a scale needs them."""
        from ..formats import needs_largest

        names = ("embedding", "head")
        if not needs_largest(self.group.format):
            return dict.fromkeys(names)
        rows = self.config.padded_vocab_size
        ends = [(i, min(i + _ROWS, rows)) for i in range(0, rows, _ROWS)]
        size = lambda name, end: float(np.max(np.abs(self._read(name, *end))))
        return {name: max(size(name, end) for end in ends) for name in names}

    @property
    def meaning(self) -> str:
        """What the format is, in words."""
        row = WEIGHT_FORMAT_TABLE.get(self.group.format)
        return EACH_BY_ITSELF if row is None else row.meaning
