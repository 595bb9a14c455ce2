"""AWQ (AutoAWQ's gemm): integers of 4 bits with zero points.

`P.qweight` int32 (K, N/8) and `P.qzeros` int32 (K/g, N/8), both packed along the
outputs, eight to a word in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up;
`P.scales` (K/g, N). A weight is (q - z) * s.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ._activations import Asking, nothing
from ._codes import from_awq_words
from ._settings import contradiction, count_of, text_of, unsupported
from ._taken import FLOATS, SAME_PLACE, Taken, scaling_words
from ._tensor import Format, QuantisedTensor, in_steps, sound_scales


METHOD = "awq"


def read_awq(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what AWQ stores. Activations are not quantised.

    **Raises:** `UnsupportedCheckpointError` for other versions of the layout,
    `CorruptCheckpointError` where shapes do not fit.
    """
    version = text_of(config, "version", "gemm").lower()
    if version != "gemm":
        raise unsupported("AWQ's version", version, ("gemm",))
    key = "w_bit" if "w_bit" in config else "bits"
    bits = count_of(config, key, 4)
    if bits != 4:
        raise unsupported("AWQ's bits", bits, ("4",))
    key = "q_group_size" if "q_group_size" in config else "group_size"
    group = count_of(config, key, 128)
    for module in list(taken.modules("qweight")):
        taken.give(_matrix(taken, module, group))
    return nothing


def _matrix(taken: Taken, module: str, group: int) -> QuantisedTensor:
    name = f"{module}.qweight"
    stored = taken.take(name, ("int32",), f"{module}.scales", axes=(2,))
    scales = taken.take(f"{module}.scales", FLOATS, name, axes=(2,))
    zeros = taken.take(f"{module}.qzeros", ("int32",), name, axes=(2,))
    groups, n = scales.shape
    if taken.has(f"{module}.g_idx") or (
        stored.shape[1] == n and 8 * stored.shape[1] != n
    ):
        raise contradiction([name], "GPTQ", "AWQ")
    k = stored.shape[0]
    shape = n, k
    if 8 * stored.shape[1] != n or zeros.shape != (groups, stored.shape[1]):
        raise CorruptCheckpointError(
            f"{quote(module)}: qweight {stored.shape} and qzeros {zeros.shape} do not"
            f" fit {groups} x {n} scales",
            hint=f"AWQ packs eight outputs to a word; {SAME_PLACE}",
        )
    size = k if group == -1 else group
    if size < 1 or k != size * groups:
        raise CorruptCheckpointError(
            f"{quote(module)}.scales has {groups} groups; {k} inputs do not divide"
            f" into as many of {size}",
            hint=f"group_size of the configuration is {group}: {SAME_PLACE}",
        )

    def values(start: int, stop: int) -> np.ndarray:
        packed, offsets = stored.read(), zeros.read()
        of_groups = sound_scales(scales.read(), f"{module}.scales")

        def some(first: int, last: int) -> np.ndarray:
            # a word holds eight outputs: whole words, of which these rows are taken
            words = slice(first // 8, -(-last // 8))
            here = slice(first % 8, first % 8 + last - first)
            found = from_awq_words(packed[:, words])[:, here].astype(np.float64)
            shifts = from_awq_words(offsets[:, words])[:, here]
            found -= np.repeat(shifts, size, axis=0)
            found *= np.repeat(of_groups[:, first:last], size, axis=0)
            return found.T

        return in_steps(start, stop, k, some)

    return QuantisedTensor(
        f"{module}.weight",
        shape,
        Format("int4", scaling_words((1, size), shape), taken.method),
        values,
        (stored, scales, zeros),
        by_rows=False,
    )
