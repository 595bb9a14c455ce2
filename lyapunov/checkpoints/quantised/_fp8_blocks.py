"""FP8 with a scale for each block of a matrix, as DeepSeek and Qwen store it.

`P.weight` in e4m3 (N, K) beside `P.weight_scale_inv` (N/128, K/128, rounded up), which
the codes are multiplied by despite its name. Without blocks (`weight_block_size` null)
the scale is one a tensor.

Activations as vLLM 0.33 has them (`quantization/fp8.py:Fp8LinearMethod`): by blocks in
groups of a block's rows; without, `static` under `input_scale`, and `dynamic` under one
scale a token where its CUTLASS kernels run (Ada, Hopper and later), which is said here,
one a tensor elsewhere.
"""

from collections.abc import Mapping
from typing import Any

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ._activations import STATIC, TOKEN, Asking, groups_of
from ._eight_bits import eight_bit_matrix
from ._settings import text_of, unsupported
from ._taken import Taken


METHOD = "fp8"
SCHEMES = ("dynamic", "static")


def read_fp8_blocks(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what stands beside a `weight_scale_inv` or a `weight_scale`, and say how
    activations are quantised.

    **Raises:** `CorruptCheckpointError` where shapes do not fit.
    """
    form = config.get("fmt", "e4m3")
    if form not in ("e4m3", "float8_e4m3fn", None):
        raise unsupported("fp8's fmt", form, ("e4m3",))
    block = config.get("weight_block_size")
    if block is not None and (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(x) is int and 0 < x <= 2**20 for x in block)
    ):
        raise CorruptCheckpointError(
            f"config.json: weight_block_size {quote(block, 40)} is no pair of sizes",
            hint="take config.json from where the weights come from",
        )
    of = None if block is None else (block[0], block[1])
    for suffix in ("weight_scale_inv", "weight_scale"):
        for module in list(taken.modules(suffix)):
            name, scales = f"{module}.weight", f"{module}.{suffix}"
            codes = ("fp8_e4m3",)
            taken.give(eight_bit_matrix(taken, name, scales, block=of, codes=codes))
    scheme = text_of(config, "activation_scheme", "dynamic")
    if scheme not in SCHEMES:
        raise unsupported("fp8's activation_scheme", scheme, SCHEMES)
    if of is not None and scheme == "static":
        raise CorruptCheckpointError(
            f"config.json: weights in blocks of {of[0]} x {of[1]} and activations under"
            " scales fixed beforehand (activation_scheme static), which no server runs",
            hint="take config.json from where the weights come from",
        )
    if of is not None:
        asked = groups_of(of[0])
    else:
        asked = STATIC if scheme == "static" else TOKEN
    return lambda module: asked
