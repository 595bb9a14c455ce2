"""What a quantiser decides on: stored matrices, those of a layer's experts as one.

Parameters that lie in one stored tensor (gate and up, queries and keys) are one unit,
and so is a block that several layers share, and an embedding that is the head.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..checkpoints._network import NetworkLayout
from ..checkpoints.files._tensors import DTYPES
from ..formats import stored_bytes
from ..sublayers.groups import OUTSIDE, RoundedGroup, is_matrix
from ._rounded_layout import parameters_of


Place = tuple[int | str, str]
"""Sublayer, or `OUTSIDE`, and canonical name of a parameter."""

FUSED = (
    ("q_proj", "k_proj", "v_proj", "g_proj"),
    ("gate_proj", "up_proj"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
"""Modules beside each other that vLLM 0.33 holds as one matrix, of one format
(`packed_modules_mapping` of its models)."""


class EveryMatrix(RoundedGroup):
    """A group of weights, and under a format with scales every other matrix as well:
    the embedding, the head and the router, which quantisers leave as they are."""

    def has(self, kind: str, parameter: str) -> bool:
        """Whether a parameter is ranked."""
        if self.scaled and self.group == "all":
            return is_matrix(kind, parameter)
        return super().has(kind, parameter)


class WeightUnit(NamedTuple):
    """What is quantised whole or not at all."""

    name: str
    """Its module; of experts with * for their numbers."""
    modules: tuple[str, ...]
    """Every module, as an `ignore` list names them."""
    places: tuple[Place, ...]
    """The parameters that are in it, each where it is used."""
    size: int
    """Numbers that it holds."""
    stored_bytes: int
    """What it takes in the checkpoint."""
    bytes: int
    """What it takes under the format, scales included."""
    quantised: bool
    """Whether quantisers round it where nobody says otherwise."""
    fused: str | None = None
    """What a server would hold it in one matrix with; None: nothing."""


def weight_units(layout: NetworkLayout, group: RoundedGroup) -> list[WeightUnit]:
    """The units of a network that a format could round, in order of first use.

    **Arguments:**

    - `layout`: as it is stored.
    - `group`: what is rounded; `EveryMatrix(*group)` is what is ranked.
    """
    every = EveryMatrix(*group)
    holds: dict[Place, tuple[str, ...]] = {}
    wanted: dict[Place, bool] = {}
    for place, kind, names in _places(layout):
        if every.has(kind, place[1]):
            holds[place] = names
            wanted[place] = group.has(kind, place[1])
    return [
        _unit(layout, group, names, places, any(wanted[place] for place in places))
        for names, places in _joined(holds)
    ]


def _places(layout: NetworkLayout) -> Iterator[tuple[Place, str, tuple[str, ...]]]:
    """Every parameter: place, kind, and the stored tensors that it is made of."""
    names = layout.names
    outside = {
        "embedding": names.embedding,
        "head": names.head,
        "norm_f": names.final_norm,
        "norm_f_bias": names.final_norm_bias,
        "embedding_norm": names.embedding_norm,
        "embedding_norm_bias": names.embedding_norm_bias,
    }
    around = [name for kind, name in parameters_of(layout) if kind == OUTSIDE]
    for name in around:
        stored = outside[name]
        if name != "head" and stored is not None:
            yield (OUTSIDE, name), OUTSIDE, (stored,)
    for i, (sizes, parts) in enumerate(
        zip(layout.config.sublayers, layout.parts, strict=True)
    ):
        for name, part in parts.items():
            yield (i, name), sizes.kind, part.names
    if layout.has_head:
        yield (OUTSIDE, "head"), OUTSIDE, (names.head,)


def _joined(
    holds: dict[Place, tuple[str, ...]],
) -> list[tuple[tuple[str, ...], tuple[Place, ...]]]:
    """Places that share a stored tensor, directly or through others, together."""
    user: dict[str, Place] = {}
    parent = {place: place for place in holds}

    def root(place: Place) -> Place:
        while parent[place] != place:
            place = parent[place]
        return place

    for place, names in holds.items():
        for name in names:
            other = user.setdefault(name, place)
            parent[root(place)] = root(other)
    together: dict[Place, list[Place]] = defaultdict(list)
    for place in holds:
        together[root(place)].append(place)
    return [
        (
            tuple(dict.fromkeys(name for one in places for name in holds[one])),
            tuple(places),
        )
        for places in together.values()
    ]


def _unit(
    layout: NetworkLayout,
    group: RoundedGroup,
    names: tuple[str, ...],
    places: tuple[Place, ...],
    quantised: bool,
) -> WeightUnit:
    checkpoint = layout.checkpoint
    tensors = [checkpoint.tensor(name) for name in names]
    modules = tuple(
        f"{checkpoint.root}{name.removesuffix('.weight')}" for name in names
    )
    name = common(modules)
    return WeightUnit(
        name=name,
        modules=modules,
        places=places,
        size=sum(tensor.size for tensor in tensors),
        stored_bytes=sum(map(_bytes_of, tensors)),
        bytes=sum(stored_bytes(tensor.shape, group.format) for tensor in tensors),
        quantised=quantised,
        fused=_fused(name),
    )


def _bytes_of(tensor: Any) -> int:
    """In the file: of a matrix that is stored as codes these and their scales."""
    told = getattr(tensor, "stored_bytes", None)
    return tensor.size * DTYPES[tensor.dtype].itemsize if told is None else told


def _fused(module: str) -> str | None:
    """The same for all modules of which a server makes one matrix."""
    front, _, leaf = module.rpartition(".")
    for family in FUSED:
        if leaf in family:
            return f"{front}.{family[0]}"
    return None


def common(names: Iterable[str]) -> str:
    """The names as one, with * where a part differs."""
    split = [name.split(".") for name in dict.fromkeys(names)]
    if len({len(parts) for parts in split}) > 1:
        return " + ".join(".".join(parts) for parts in split)
    return ".".join(
        parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=True)
    )


def held_together(units: list[WeightUnit]) -> list[list[int]]:
    """Indices of the quantised units, those that servers hold in one matrix together,
    in order."""
    together: dict[str, list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        if unit.quantised:
            together[unit.fused or unit.name].append(i)
    return list(together.values())
