"""Matrices that servers join into one, and that are stored with scales of their own.

vLLM 0.33 joins queries, keys and values, gate and up, and the projections of gated
DeltaNet. Where each has one FP8 scale a tensor, it divides all by the largest
(`quantization/utils/w8a8_utils.py:requantize_with_max_scale`): the weights that it
serves are rounded once more. Where each has one NVFP4 scale a tensor it takes the
largest for all without that (`quantization/modelopt.py`), and the others' weights are
off by the ratio.
"""

from collections.abc import Iterator, Mapping

from ..files._files import listing
from ._taken import Note
from ._tensor import QuantisedTensor


FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Last parts of names, of one module each."""


def different_scales(made: Mapping[str, QuantisedTensor]) -> Iterator[Note]:
    """Say which of them have different scales a tensor."""
    told: dict[str, list[str]] = {}
    for name in made:
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        for group in FUSED:
            if leaf != group[0]:
                continue
            found = [
                tensor
                for part in group
                if (tensor := made.get(f"{parent}.{part}.weight")) is not None
                and tensor.scale is not None
            ]
            elements = {tensor.format.element for tensor in found}
            scales = {float(t.scale.read().reshape(-1)[0]) for t in found if t.scale}
            if len(elements) == 1 and len(scales) > 1:
                told.setdefault(elements.pop(), []).append(
                    f"{parent}.({'|'.join(group)})"
                )
    for element, names in told.items():
        what = (
            "takes the largest for all, so that the other weights are off by the ratio"
            if element == "nvfp4"
            else "rounds them once more, under the largest"
        )
        yield Note(
            f"{listing(names)} have different scales a tensor ({element}); vLLM joins"
            f" them and {what}: the weights that it serves are not the checkpoint's",
            hint=element != "nvfp4",
        )
