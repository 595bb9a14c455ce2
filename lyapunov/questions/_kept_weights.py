"""Which matrices to keep in 16 bits, and the lists that say so to a quantiser."""

import re
from collections.abc import Callable, Sequence

from ..models._weight_units import WeightUnit, held_together
from ..sublayers.groups import OUTSIDE


def chosen_to_keep(
    units: list[WeightUnit], moves: Callable[[Sequence[int]], float], share: float
) -> list[int]:
    """Indices of the units to keep: those that move the logits most for their size.

    What servers hold in one matrix is kept together. Whatever does not fit any more is
    passed over; the first is taken whatever its size.

    **Arguments:**

    - `moves`: the divergence of units that are quantised together, nats a token.
    - `share`: of the quantised numbers, that may be kept; 0 keeps nothing.
    """
    if share == 0:
        return []
    found = []
    for together in held_together(units):
        size, kl = sum(units[i].size for i in together), moves(together)
        if kl > 0:
            found.append((kl / size, size, together))
    found.sort(key=lambda one: -one[0])
    room = share * sum(unit.size for unit in units if unit.quantised)
    kept: list[int] = []
    for _, size, together in found:
        if size <= room or not kept:
            kept += together
            room -= size
    return sorted(kept)


def ignore_lists(
    kept: Sequence[WeightUnit], units: Sequence[WeightUnit]
) -> dict[str, list[str]]:
    """What to give a quantiser, by the key that it reads.

    `ignore` is llm-compressor's and compressed-tensors', where a name that begins with
    `re:` is a regular expression; `exclude_modules` is ModelOpt's, with wildcards;
    `modules_to_not_convert` is that of Qwen's and DeepSeek's FP8, names alone. vLLM
    reads each from the config of the checkpoint. Head and routers are in all of them,
    as long as nothing quantises them: they are linear modules, too.
    """
    modules = [
        unit
        for unit in units
        if not unit.quantised and tuple(n for _, n in unit.places) != ("embedding",)
        if not _is_tied(unit)
    ]
    head = ["lm_head"] if any(map(_is_tied, units)) else []
    every = [*modules, *kept]
    names = dict.fromkeys([*head, *(unit.name for unit in every)])
    alone = dict.fromkeys([*head, *(name for unit in every for name in unit.modules)])
    return {
        "ignore": [_expression(name) for name in names],
        "exclude_modules": list(names),
        "modules_to_not_convert": list(alone),
    }


def _is_tied(unit: WeightUnit) -> bool:
    """Whether it is the embedding and the head at once."""
    return {(OUTSIDE, "embedding"), (OUTSIDE, "head")} <= set(unit.places)


def _expression(name: str) -> str:
    if "*" not in name:
        return name
    return "re:" + re.escape(name).replace(r"\*", r"[^.]+") + "$"
