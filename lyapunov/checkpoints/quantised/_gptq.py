"""GPTQ, as AutoGPTQ and GPTQModel store it: integers of 2, 3, 4 or 8 bits.

`P.qweight` int32 (K b/32, N), packed along the inputs; `P.qzeros` int32 (G, N b/32),
along the outputs; `P.scales` (G, N); `P.g_idx` int32 (K), the group of each input, in
no order where the quantiser went by activations (desc_act). A weight is
(q - z) * s[g_idx]. The stored zero point is z for checkpoint_format gptq_v2, and z - 1
within its bits for gptq, the older and the default.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ..files._tensors import StoredTensor
from ._activations import Asking, nothing
from ._codes import from_words, words_needed
from ._packed import group_of_each
from ._settings import contradiction, count_of, text_of, unsupported
from ._taken import FLOATS, SAME_PLACE, Taken, scaling_words
from ._tensor import Format, QuantisedTensor, in_steps, sound_scales


METHOD = "gptq"
BITS = (2, 3, 4, 8)
OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point."""


def read_gptq(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what GPTQ stores. Activations are not quantised.

    **Raises:** `UnsupportedCheckpointError` for another checkpoint_format,
    `CorruptCheckpointError` where shapes do not fit.
    """
    form = text_of(config, "checkpoint_format", "gptq")
    if form not in OFFSETS:
        raise unsupported("GPTQ's checkpoint_format", form, tuple(OFFSETS))
    bits = count_of(config, "bits", 4)
    if bits not in BITS:
        raise unsupported("GPTQ's bits", bits, tuple(map(str, BITS)))
    group = count_of(config, "group_size", 128)
    ordered = config.get("desc_act") and group != -1
    for module in list(taken.modules("qweight")):
        made = _matrix(taken, module, OFFSETS[form], bits, group, bool(ordered))
        taken.give(made)
    return nothing


def _matrix(
    taken: Taken, module: str, offset: int, bits: int, group: int, ordered: bool
) -> QuantisedTensor:
    name = f"{module}.qweight"
    stored = taken.take(name, ("int32",), f"{module}.scales", axes=(2,))
    scales = taken.take(f"{module}.scales", FLOATS, name, axes=(2,))
    zeros = taken.take(f"{module}.qzeros", ("int32",), name, axes=(2,))
    groups, n = scales.shape
    if stored.shape[1] != n and 8 * stored.shape[1] == n:
        raise contradiction([name], "AWQ", "GPTQ")
    index = f"{module}.g_idx"
    places, order = None, None
    if taken.has(index):
        places = taken.take(index, ("int32", "int64"), name, axes=(1,))
        k = places.shape[0]
    else:
        k = stored.shape[0] * 32 // bits
    shape = n, k
    if stored.shape != (words_needed(k, bits), n):
        raise _misshapen(name, stored, (words_needed(k, bits), n), bits)
    if zeros.shape != (groups, words_needed(n, bits)):
        wanted = (groups, words_needed(n, bits))
        raise _misshapen(f"{module}.qzeros", zeros, wanted, bits)
    size = k if group == -1 else group
    if size < 1 or -(-k // size) != groups:
        raise CorruptCheckpointError(
            f"{quote(module)}.scales has {groups} groups; {k} inputs in groups of"
            f" {size} have {-(-k // max(size, 1))}",
            hint=f"group_size of the configuration is {group}: {SAME_PLACE}",
        )
    if places is None:
        if k % size:
            raise CorruptCheckpointError(
                f"{quote(name)} has {k} inputs, no multiple of the group of {size}",
                hint=f"g_idx would say which group each belongs to; {SAME_PLACE}",
            )
        order = np.arange(k) // size

    def values(start: int, stop: int) -> np.ndarray:
        each = order
        if places is not None:
            each = group_of_each(places, index, k, groups)
        packed, whole = stored.read(), from_words(zeros.read(), bits, n)
        # within its bits: a zero point of 0 is stored as the largest code
        shifts = (whole.astype(np.int64) + offset) % 2**bits
        of_groups = sound_scales(scales.read(), f"{module}.scales")

        def some(first: int, last: int) -> np.ndarray:
            here = slice(first, last)
            found = from_words(packed[:, here].T, bits, k).astype(np.float64)
            found -= shifts[:, here].T[:, each]
            return found * of_groups[:, here].T[:, each]

        return in_steps(start, stop, k, some)

    words = scaling_words((1, size), shape)
    if ordered:
        words = f"{words}, by g_idx"
    pieces = (stored, scales, zeros, *([places] if places is not None else []))
    return QuantisedTensor(
        f"{module}.weight",
        shape,
        Format(f"int{bits}", words, taken.method),
        values,
        pieces,
        by_rows=False,
    )


def _misshapen(
    name: str, found: StoredTensor, wanted: tuple[int, int], bits: int
) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{quote(name)} has shape {found.shape}; codes of {bits} bits take {wanted}"
        " words beside these scales",
        hint=f"bits and group_size stand in the configuration: {SAME_PLACE}",
    )
