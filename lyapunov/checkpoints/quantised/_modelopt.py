"""ModelOpt (NVIDIA): FP8 a tensor, a row and by blocks, MXFP8, and NVFP4.

Names and shapes as vLLM 0.33's reader (`quantization/modelopt.py`) has them: `P.weight`
e4m3 beside `P.weight_scale` () or (N) or a grid of blocks of 128 x 128; of NVFP4
`P.weight` uint8 (N, K/2), `P.weight_scale` e4m3 (N, K/16) and `P.weight_scale_2` (),
which is multiplied. What its configuration calls a layer's algorithm is held to what
is stored.
"""

from collections.abc import Mapping
from typing import Any

from ..._errors import UnsupportedCheckpointError
from ..files._files import listing
from ._activations import NVFP4, STATIC, TOKEN, Asked, Asking, groups_of
from ._eight_bits import eight_bit_matrix
from ._four_bits import nvfp4_matrix
from ._settings import ORIGINAL, contradiction, object_of, text_of, unsupported
from ._taken import Taken


METHOD = "modelopt"
BLOCK = (128, 128)
ALGORITHMS = {
    "FP8": ("fp8_e4m3", STATIC),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8_e4m3", TOKEN),
    "FP8_PB_WO": ("fp8_e4m3", groups_of(128)),
    "FP8_BLOCK_SCALES": ("fp8_e4m3", groups_of(128)),
    "NVFP4": ("nvfp4", NVFP4),
    "W4A16_NVFP4": ("nvfp4", None),
    "MXFP8": ("fp8_e4m3", groups_of(32)),
}
"""Codes, and what is asked of activations. FP8_PB_WO is of weights alone by its name;
vLLM 0.33 quantises what they read (`modelopt.py:resolve`, kFp8Dynamic128Sym)."""
MIXED = "MIXED_PRECISION"


def read_modelopt(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what ModelOpt stores, and say how activations are quantised.

    **Arguments:**

    - `config`: `hf_quant_config.json` or config.json's quantization_config; of both,
      whatever is inside `quantization` counts.

    **Raises:** `UnsupportedCheckpointError` for algorithms that are not covered,
    `CorruptCheckpointError` where it and the tensors disagree.
    """
    told = object_of(config, "quantization") or config
    algorithm = text_of(told, "quant_algo").upper()
    algorithms, each = {algorithm}, {}
    if algorithm == MIXED:
        layers = object_of(told, "quantized_layers")
        each = {
            name: text_of(object_of(layers, name), "quant_algo").upper()
            for name in layers
        }
        algorithms = set(each.values())
    for one in sorted(algorithms):
        if one not in ALGORITHMS:
            raise unsupported("ModelOpt's quant_algo", one, (*ALGORITHMS, MIXED))
    smoothed = [n for n in taken.stored if n.endswith(".pre_quant_scale")]
    if smoothed:
        raise UnsupportedCheckpointError(
            f"inputs are multiplied by {listing(smoothed)} (ModelOpt's AWQ and"
            " SmoothQuant), which is not covered",
            hint=ORIGINAL,
        )
    for module in list(taken.modules("weight_scale_2")):
        args = (module, "weight", "weight_scale_2")
        taken.give(nvfp4_matrix(taken, *args, divided=False))
    for module in list(taken.modules("weight_scale")):
        name, scales = f"{module}.weight", f"{module}.weight_scale"
        if taken.has(name) and taken.stored[name].dtype == "uint8":
            taken.take(f"{module}.weight_scale_2", ("fp32",), name)
        matrix = taken.stored[name].shape if taken.has(name) else ()
        block = BLOCK if _by_blocks(taken.stored[scales].shape, matrix) else None
        codes = ("fp8_e4m3",)
        taken.give(eight_bit_matrix(taken, name, scales, block=block, codes=codes))
    elements = {ALGORITHMS[one][0] for one in algorithms}
    strangers = [n for n, t in taken.made.items() if t.format.element not in elements]
    if strangers:
        found = taken.made[strangers[0]].format.element
        raise contradiction(strangers, found, f"ModelOpt's {algorithm}")
    if algorithm != MIXED:
        return lambda module: ALGORITHMS[algorithm][1]
    asked = {name: ALGORITHMS[one][1] for name, one in each.items()}
    return lambda module: _of_layer(asked, module)


def _of_layer(asked: Mapping[str, Asked | None], module: str) -> Asked | None:
    """What is asked of a module that is listed, or of what it is part of."""
    name = module
    while name:
        if name in asked:
            return asked[name]
        name = name.rpartition(".")[0]
    return Asked("as no entry of quantized_layers says")


def _by_blocks(scales: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether scales are a grid of blocks over such a matrix, and not one a row."""
    if len(shape) != 2 or len(scales) not in (2, 4):
        return False
    flat = scales if len(scales) == 2 else (scales[0], scales[2])
    grid = tuple(-(-a // b) for a, b in zip(shape, BLOCK, strict=True))
    return flat == grid and max(flat) > 1
