"""Whether two checkpoints are weight sets of one network, and if not, what differs.

A network is its sizes and switches and the parameters that it has. Two checkpoints that
agree in these hold weights of one function, whatever their layouts are called.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Set
from typing import Any

from ..checkpoints._network import NetworkLayout, Part
from ..models._folded_layout import same_in_fp32
from ..sublayers.config import NetworkConfig


# What changes how a network is run or stored, and not which function it is in exact
# arithmetic: every other field counts, those to come among them.
_NO_PART_OF_THE_FUNCTION = frozenset(
    {
        "vocab_size",  # without padding: transformers stores the padded number
        "residual_in_fp32",
        "fused_add_norm",
        "tie_embeddings",
        "asks",
        "chunk",
        "transformers_dt_limit",  # what one library does; the network's is dt_limit
        "sublayers",  # one by one below
    }
)


NOT_IN_GGUF = frozenset({"dt_limit", "mixer_norm_epsilon"})
"""What llama.cpp's files have no room for: limits of dt, and an epsilon of the norms
over dt, B and C that is not that of all others."""


def differences(
    other: NetworkLayout,
    base: NetworkLayout,
    *,
    in_fp32: bool = False,
    beside: Set[str] = frozenset(),
) -> list[str]:
    """What makes two networks different functions of their weights.

    **Arguments:**

    - `other`, `base`: recognised checkpoints; only sizes, names and shapes are read.
    - `in_fp32`: whether settings are one where they are to fp32's roundings.
    - `beside`: fields of sublayers that are not looked at.

    **Returns:** a text for each difference, the other's value first; empty where the
    two are weight sets of one network.
    """
    theirs, ours = other.config, base.config
    same = same_in_fp32 if in_fp32 else operator.eq
    names = [f.name for f in dataclasses.fields(NetworkConfig)]
    found = [
        f"{name} {_told(getattr(theirs, name))} and {_told(getattr(ours, name))}"
        for name in names
        if name not in _NO_PART_OF_THE_FUNCTION
        and not same(getattr(theirs, name), getattr(ours, name))
    ]
    if theirs.n_layers != ours.n_layers:
        return [*found, f"n_layers {theirs.n_layers} and {ours.n_layers}"]
    for i, pair in enumerate(zip(theirs.sublayers, ours.sublayers, strict=True)):
        if different := list(_of_sizes(*pair, same, beside)):
            return [*found, f"in sublayer {i} {', '.join(different)}"]
    for i, parts in enumerate(zip(other.parts, base.parts, strict=True)):
        if different := list(_of_parameters(*parts)):
            return [*found, f"in sublayer {i} {', '.join(different)}"]
    norms = ("final_norm", "embedding_norm")
    for name in (f"{norm}{bias}" for norm in norms for bias in ("", "_bias")):
        one, two = (getattr(layout.names, name) for layout in (other, base))
        if (one is None) != (two is None):
            found.append(f"no {name}" if one is None else f"{name} that the base lacks")
    return found


def _of_sizes(
    theirs: Any,
    ours: Any,
    same: Callable[[Any, Any], bool],
    beside: Set[str],
    inside: str = "",
) -> Iterator[str]:
    if type(theirs) is not type(ours):
        yield f"{inside}kind {_kind(theirs)} and {_kind(ours)}"
        return
    for field in dataclasses.fields(ours):
        one, two = getattr(theirs, field.name), getattr(ours, field.name)
        name = f"{inside}{field.name}"
        if dataclasses.is_dataclass(one) or dataclasses.is_dataclass(two):
            yield from _of_sizes(one, two, same, beside, f"{name}.")
        elif field.name in _NO_PART_OF_THE_FUNCTION or field.name in beside:
            continue
        elif field.name == "norm_before_gate" and not ours.gate_norm:
            continue  # there is no norm
        elif not same(one, two):
            yield f"{name} {_told(one)} and {_told(two)}"


def _kind(sizes: Any) -> str:
    return getattr(sizes, "kind", "none")


def _of_parameters(theirs: dict[str, Part], ours: dict[str, Part]) -> Iterator[str]:
    """Biases and norms that one has alone: no size says so in every family."""
    if extra := sorted(set(theirs) - set(ours)):
        yield f"{', '.join(extra)} that the base lacks"
    if lacking := sorted(set(ours) - set(theirs)):
        yield f"no {', '.join(lacking)}"
    for name in theirs.keys() & ours.keys():
        one, two = theirs[name], ours[name]
        plain = all(isinstance(p.name, str) and p.take is None for p in (one, two))
        if plain and one.shape != two.shape:  # Mamba-2's D: of heads or of channels
            yield f"{name} of shape {one.shape} and {two.shape}"


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
