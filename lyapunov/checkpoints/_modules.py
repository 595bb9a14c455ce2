"""Which module of the checkpoint a sublayer is, from where its parameters lie."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .files._files import disagreeing, quote


if TYPE_CHECKING:
    from ._parts import Part


_BESIDE = ("norm", "norm_bias", "norm_behind", "norm_behind_bias", "linear")
"""Parameters of a sublayer that its module does not hold: the norms around it, and
Zamba's projection of what a shared block puts out."""


def module_of(parts: Mapping[str, "Part"]) -> str:
    """The name of the module that holds a sublayer's parameters, as
    `model.layers.1.mamba`.

    It is what the stored names have in common, without the norms in front and behind.
    A norm alone is its own module. Granite's shared MLP lies beside its experts, which
    give the name; a block that several layers share (Zamba) is named at the layer that
    uses it.

    **Raises:** `CorruptCheckpointError` where the names have nothing in common.
    """
    inside = [
        name.split(".")[:-1]
        for key, part in parts.items()
        if key not in _BESIDE and not key.startswith("shared_")
        for name in part.names
    ] or [name.split(".")[:-1] for part in parts.values() for name in part.names]
    common = inside[0] if inside else []
    for path in inside[1:]:
        pairs = zip(common, path, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        common = common[: min(len(common), len(path)) if same is None else same]
    if not common:
        raise disagreeing(
            "the parameters of a sublayer have no module in common:"
            f" {quote(next(iter(parts.values())).names[0])} and others"
        )
    if "linear" in parts:
        user = parts["linear"].names[0].split(".")[:-2]
        common = [*user, *common[len(user) :]]
    return ".".join(common)
