"""compressed-tensors (llm-compressor, Red Hat): what its formats store, by the names
and shapes in its compressors (0.20).

| format | stored beside each other | value |
|---|---|---|
| float-quantized, naive-quantized | weight e4m3, weight_scale (1), (N, 1) or a block grid | q s |
| int-quantized | weight int8, weight_scale, weight_zero_point int8 | (q - z) s |
| pack-quantized | weight_packed int32, weight_scale, weight_shape, zero points, g_idx | (q - z) s |
| nvfp4-pack-quantized | weight_packed, weight_scale e4m3, weight_global_scale | q s / global |
| mxfp4-pack-quantized | weight_packed, weight_scale uint8 | q 2^(s - 127) |
| mxfp8-quantized | weight e4m3, weight_scale uint8 (N, K/32) | q 2^(s - 127) |

The tensors say how each matrix is stored; the configuration's groups have to say the
same of at least one of them.
"""  # noqa: E501

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..._errors import CorruptCheckpointError
from ..files._files import listing, quote
from ._activations import Asked, Asking, nothing, of_compressed_tensors
from ._eight_bits import eight_bit_matrix
from ._four_bits import mxfp4_matrix, nvfp4_matrix
from ._packed import packed_matrix
from ._patterns import LONGEST, PATTERNS, is_pattern, matcher
from ._settings import (
    contradiction,
    count_of,
    names_of,
    object_of,
    text_of,
    unsupported,
)
from ._taken import Taken
from ._tensor import QuantisedTensor


METHOD = "compressed-tensors"
FORMATS = (
    *("float-quantized", "naive-quantized", "int-quantized", "pack-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
    "mixed-precision",
)
_BLOCK = (128, 128)


@dataclass(frozen=True)
class Scheme:
    """What one group of the configuration says of weights and activations."""

    bits: int
    kind: str
    strategy: str
    group_size: int
    block: tuple[int, int]
    activations: Asked | None
    """What is asked of what its matrices read."""
    targets: tuple[str, ...] = ()
    """Names of modules, expressions, or classes that it is for."""

    @property
    def element(self) -> str:
        """The codes, as a matrix's format calls them."""
        if self.kind == "int":
            return f"int{self.bits}"
        return "fp8_e4m3" if self.bits == 8 else f"fp{self.bits}"

    def __str__(self) -> str:
        group = {
            "tensor": "one scale a tensor",
            "channel": "one scale a row",
            "block": f"blocks of {self.block[0]} x {self.block[1]}",
        }.get(self.strategy, f"groups of {self.group_size}")
        return f"{self.element}, {group}"

    def is_of(self, tensor: QuantisedTensor) -> bool:
        """Tell whether a matrix is stored so."""
        element = tensor.format.element.partition(" ")[0]
        found = {"nvfp4": "fp4", "mxfp4": "fp4"}.get(element, element)
        # a matrix of 8 bits holds codes of fewer as well
        same = found == self.element or (
            found == "int8" and self.kind == "int" and self.bits < 8
        )
        words = tensor.format.scaling.partition(",")[0]
        n, k = tensor.shape
        told = str(self).partition(", ")[2]
        if self.strategy in ("group", "tensor_group") and self.group_size == k:
            told = "one scale a row"
        alike = {told, "one scale a tensor"} if n == 1 or k == 1 else {told}
        if self.strategy == "block" and tensor.scale is not None:
            alike |= {"one scale a tensor"}
        return same and words in alike


def read_compressed_tensors(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what compressed-tensors stores, and say how activations are quantised.

    **Raises:** `UnsupportedCheckpointError` for formats that are not covered,
    `CorruptCheckpointError` where configuration and tensors disagree.
    """
    declared = text_of(config, "format", "mixed-precision")
    schemes = _schemes(config)
    for scheme in schemes:
        for kind in (scheme[0],):
            if kind not in FORMATS:
                raise unsupported("compressed-tensors' format", kind, FORMATS)
    if declared not in FORMATS:
        raise unsupported("compressed-tensors' format", declared, FORMATS)
    sparsity = object_of(config, "sparsity_config")
    if sparsity and sparsity.get("format", "dense") != "dense":
        raise unsupported(
            "compressed-tensors' sparsity", sparsity.get("format"), ("dense",)
        )
    if config.get("transform_config"):
        raise unsupported(
            "compressed-tensors' transform_config,",
            "rotations in front of products",
            ("none",),
        )
    _take(schemes, taken)
    plans = [one for _, one in schemes]
    for name, tensor in taken.made.items():
        if plans and not any(plan.is_of(tensor) for plan in plans):
            raise CorruptCheckpointError(
                f"{quote(name)} is {tensor.format.element},"
                f" {tensor.format.scaling}; config.json has"
                f" {'; '.join(dict.fromkeys(map(str, plans)))}",
                hint="take config.json and weights from the same place",
            )
    return _asking(plans)


def _asking(plans: list[Scheme]) -> Asking:
    """What the group of a module asks, found as vLLM 0.33 finds it
    (`compressed_tensors/utils.py:find_matched_target`): the first by its name or an
    expression, else by its class, of which "Linear" is part of every one's."""
    if not plans:
        return nothing
    named = [_Named(one.targets) for one in plans]
    of_class = [one for one in plans if "Linear" in one.targets]

    def of(module: str) -> Asked | None:
        found = [one for one, own in zip(plans, named, strict=True) if own.has(module)]
        found = found or of_class
        asked = list(dict.fromkeys(one.activations for one in found[:1] or plans))
        if len(asked) == 1:
            return asked[0]
        words = " or ".join(one.words if one else "not at all" for one in asked)
        return Asked(f"{words}, by groups of which none names this module")

    return of


class _Named:
    """Modules that a group's targets name, whole or by an expression; of expressions
    those that `matcher` looks at, and no more than `PATTERNS`."""

    def __init__(self, targets: tuple[str, ...]):
        self._whole = frozenset(targets)
        told = [one for one in targets if is_pattern(one)][:PATTERNS]
        self._meant = [one for one in map(matcher, told) if one is not None]

    def has(self, module: str) -> bool:
        """Tell whether a module is among them."""
        if module in self._whole:
            return True
        return len(module) <= LONGEST and any(meant(module) for meant in self._meant)


def _take(schemes: list[tuple[str, Scheme]], taken: Taken) -> None:
    """Make a matrix of everything that is stored as codes, however it is."""
    for module in list(taken.modules("weight_packed")):
        packed = taken.stored[f"{module}.weight_packed"]
        if packed.dtype == "int32":
            taken.give(packed_matrix(taken, module))
        elif taken.has(f"{module}.weight_global_scale"):
            codes, over = "weight_packed", "weight_global_scale"
            taken.give(nvfp4_matrix(taken, module, codes, over, divided=True))
        else:
            taken.give(mxfp4_matrix(taken, module))
    blocks = [one.block for _, one in schemes if one.strategy == "block"]
    for module in list(taken.modules("weight_scale")):
        name, scales = f"{module}.weight", f"{module}.weight_scale"
        if taken.has(name) and taken.stored[name].dtype in ("fp32", "bf16", "fp16"):
            raise contradiction(
                [name], "a model that was prepared and never compressed", METHOD
            )
        shape = taken.stored[scales].shape
        tall = taken.stored[name].shape if taken.has(name) else ()
        block = blocks[0] if blocks and _is_grid(shape, tall, blocks[0]) else None
        zeros = f"{module}.weight_zero_point"
        taken.give(eight_bit_matrix(taken, name, scales, block=block, zeros=zeros))


def _is_grid(
    scales: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int]
) -> bool:
    """Whether scales are a grid of blocks over such a matrix."""
    if len(shape) != 2 or len(scales) != 2:
        return False
    return scales == tuple(-(-a // b) for a, b in zip(shape, block, strict=True))


def _schemes(config: Mapping[str, Any]) -> list[tuple[str, Scheme]]:
    """Format and scheme of each of the configuration's groups."""
    groups = object_of(config, "config_groups")
    declared = text_of(config, "format", "mixed-precision")
    found = []
    for key in groups:
        group = object_of(groups, key)
        weights = object_of(group, "weights")
        if not weights:
            continue
        block = weights.get("block_structure") or list(_BLOCK)
        if (
            not isinstance(block, list)
            or len(block) != 2
            or not all(type(x) is int and 0 < x <= 2**20 for x in block)
        ):
            raise CorruptCheckpointError(
                f"config.json: block_structure {quote(block, 40)} is no pair of sizes",
                hint="take config.json and weights from the same place",
            )
        scheme = Scheme(
            bits=count_of(weights, "num_bits", 8),
            kind=text_of(weights, "type", "int"),
            strategy=text_of(weights, "strategy", "tensor"),
            group_size=count_of(weights, "group_size", -1),
            block=(block[0], block[1]),
            activations=of_compressed_tensors(object_of(group, "input_activations")),
            targets=names_of(group, "targets"),
        )
        own = text_of(group, "format", declared)
        found.append((own, scheme))
    if groups and not found:
        listed = listing(list(groups))
        raise CorruptCheckpointError(
            f"config.json's groups ({listed}) say nothing of weights",
            hint="take config.json and weights from the same place",
        )
    return found
