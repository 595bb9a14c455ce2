"""torchao's tensors of 8 bits, as its library takes them apart for safetensors (0.18).

`P._weight_qdata` int8 or e4m3 (N, K), `P._weight_scale` (N, 1), (1) or (N, groups), and
of integers `P._weight_zero_point`: (q - z) * s. Tensors of 4 bits are laid out for one
kernel or another, and are not covered.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..._errors import UnsupportedCheckpointError
from ..files._files import listing
from ._activations import INT_TOKEN, TOKEN, Asked, Asking, nothing
from ._eight_bits import eight_bit_matrix
from ._settings import ORIGINAL
from ._taken import Taken


METHOD = "torchao"
_WHOLE = Asked("fp8, one scale a tensor, chosen as it runs")
"""torchao's granularity where none is named."""


def read_torchao(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what torchao stores, and say how activations are quantised.

    **Raises:** `UnsupportedCheckpointError` for tensors of 4 bits.
    """
    modules = list(taken.modules("_weight_qdata"))
    odd = [
        f"{module}._weight_qdata"
        for module in modules
        if taken.stored[f"{module}._weight_qdata"].dtype not in ("int8", "fp8_e4m3")
    ]
    if odd:
        raise UnsupportedCheckpointError(
            f"{listing(odd)} of torchao hold codes of 4 bits, which are not covered",
            hint=ORIGINAL,
        )
    for module in modules:
        name, scales = f"{module}._weight_qdata", f"{module}._weight_scale"
        zeros = f"{module}._weight_zero_point"
        if taken.has(zeros) and not taken.stored[zeros].read().any():
            # symmetric: stored, and nothing is taken off
            taken.used.add(zeros)
            zeros = None
        codes = ("int8", "fp8_e4m3")
        made = eight_bit_matrix(taken, name, scales, zeros=zeros, codes=codes)
        taken.give(dataclasses.replace(made, name=f"{module}.weight"))
    told = str(config.get("quant_type", ""))
    if "DynamicActivation" not in told:
        return nothing
    if "Int8Dynamic" in told:
        asked = INT_TOKEN
    else:
        asked = TOKEN if "PerRow" in told else _WHOLE
    return lambda module: asked
