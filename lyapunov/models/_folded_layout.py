"""A model's weights with what another network of them multiplies by folded in.

llama.cpp's files of Falcon-H1 have all multipliers in the weights; the checkpoint that
they were made from has them in its configuration. Both are one function of weights that
are each other's multiples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..checkpoints._network import NetworkLayout


_FP32 = 2.0**-23

# Of each kind's multipliers: which parameters are multiplied by them.
_FOLDED: dict[str, dict[str, tuple[str, ...]]] = {
    "mamba2": {
        "in_multiplier": ("in_proj",),
        "row_multipliers": ("in_proj", "in_proj_bias"),
        "out_multiplier": ("out_proj", "out_proj_bias"),
    },
    "attention": {
        "in_multiplier": ("q_proj", "k_proj", "v_proj"),
        "key_multiplier": ("k_proj", "k_bias"),
        "out_multiplier": ("o_proj", "o_bias"),
    },
    "mlp": {
        "gate_multiplier": ("gate", "gate_bias"),
        "down_multiplier": ("down", "down_bias"),
    },
}


def same_in_fp32(one: Any, other: Any) -> bool:
    """Whether two settings are one number, or one number each, to fp32's roundings."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(same_in_fp32, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= _FP32 * abs(other)
    return one == other


@dataclass(frozen=True, eq=False)
class FoldedLayout(NetworkLayout):
    """A model's layout whose weights are multiplied, in fp64, as they are read.

    **Arguments:**

    - `base`: what is multiplied.
    - `factors`: of each sublayer's parameters; an array has one a row.
    - `of_embedding`, `of_head`: the factors around the sublayers.
    """

    base: NetworkLayout = field(repr=False)
    factors: tuple[dict[str, Any], ...] = field(repr=False)
    of_embedding: float
    of_head: float

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Parameters of one sublayer."""
        arrays = self.base.layer(i)
        for name, factor in self.factors[i].items():
            array = arrays[name].astype(np.float64)
            rows = np.asarray(factor).reshape(-1, *(1,) * (array.ndim - 1))
            arrays[name] = array * rows
        return arrays

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding."""
        return _times(self.base.embedding(rows), self.of_embedding)

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head."""
        return _times(self.base.head(start, stop), self.of_head)


def _times(array: np.ndarray, factor: float) -> np.ndarray:
    return array if factor == 1.0 else array.astype(np.float64) * factor


def folded(layout: NetworkLayout, wanted: Any) -> NetworkLayout:
    """The network as weights under the multipliers of another configuration.

    **Arguments:**

    - `wanted`: sizes of a network, of whose multipliers those are taken that differ by
        more than fp32's roundings.

    **Returns:** the layout itself where none differs, or kinds of sublayers do.
    """
    config = layout.config
    kinds = [[one.kind for one in c.sublayers] for c in (config, wanted)]
    if kinds[0] != kinds[1]:
        return layout
    factors, sizes = [], []
    for theirs, ours, parts in zip(
        config.sublayers, wanted.sublayers, layout.parts, strict=True
    ):
        own: dict[str, Any] = {}
        taken: dict[str, Any] = {}
        for name, factor in _differing(theirs, ours):
            taken[name] = getattr(ours, name)
            for parameter in _FOLDED[theirs.kind][name]:
                if parameter in parts:
                    own[parameter] = own.get(parameter, 1.0) * factor
        factors.append(own)
        sizes.append(replace(theirs, **taken))
    around = {
        name: getattr(config, name) / getattr(wanted, name)
        for name in ("embedding_multiplier", "logits_multiplier")
        if not same_in_fp32(getattr(config, name), getattr(wanted, name))
    }
    if not any(factors) and not around:
        return layout
    found = layout.read_by(
        FoldedLayout,
        base=layout,
        factors=tuple(factors),
        of_embedding=around.get("embedding_multiplier", 1.0),
        of_head=around.get("logits_multiplier", 1.0),
    )
    others = {name: getattr(wanted, name) for name in around}
    return replace(found, config=replace(config, sublayers=tuple(sizes), **others))


def _differing(theirs: Any, ours: Any) -> Iterator[tuple[str, Any]]:
    """Multipliers that differ, and by what theirs are more: one a row where they are
    those of rows."""
    for name in _FOLDED.get(theirs.kind, ()):
        one, two = getattr(theirs, name), getattr(ours, name)
        if same_in_fp32(one, two):
            continue
        if name != "row_multipliers":
            yield name, one / two
            continue
        states = theirs.groups * theirs.d_state
        counts = (theirs.d_inner, theirs.d_inner, states, states, theirs.heads)
        ones = (1.0,) * len(counts)
        each = np.asarray(one or ones) / np.asarray(two or ones)
        yield name, np.repeat(each, counts)
