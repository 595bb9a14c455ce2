"""How many stored numbers an emulation has otherwise than the kernels, by site.

The emulator runs each sublayer on what the kernels' run of it read, so that nothing
is carried from one sublayer to the next.
"""

from typing import Any

import numpy as np


APART = "conv, of equal inputs"
"""The convolution's outputs all of whose inputs are bit-equal."""


def shares(model: Any, ids: Any, execution: Any) -> dict[str, dict[str, int]]:
    """Elements that differ, and all elements, by site.

    **Arguments:**

    - `ids`: (batch, seq).
    - `execution`: of vLLM's.
    """
    from lyapunov.implementations import Emulated, HeadRecord, Segment
    from lyapunov.implementations.vllm import Vllm

    emulated = Emulated(execution)
    segments = (Segment(0, ids.shape[1], execution),)
    found: dict[str, dict[str, int]] = {}

    def counted(site: str, differs) -> None:
        entry = found.setdefault(site, {"differ": 0, "elements": 0})
        entry["differ"] += int(np.count_nonzero(differs))
        entry["elements"] += int(differs.size)

    for record in Vllm(execution).trace(model, ids):
        if isinstance(record, HeadRecord):
            break
        layer = model.sublayers[record.layer]
        incoming = record.incoming
        *_, stored = emulated._sublayer(model, layer, incoming, segments)
        own = {site: np.asarray(array) for site, array in record.stored.items()}
        other = {
            site: np.asarray(array) for site, array in stored.items() if site in own
        }
        for site, array in other.items():
            counted(site, own[site] != array)
        sizes = model.config.sublayers[record.layer]
        if "conv" not in own:
            continue
        read = [site for site in ("xz", "q", "k", "v") if site in own]
        equal = np.concatenate([own[s] == other[s] for s in read], axis=-1)
        same = _inputs_equal(sizes, equal)
        counted(APART, (own["conv"] != other["conv"])[same])
    return found


def _inputs_equal(sizes: Any, equal: np.ndarray) -> np.ndarray:
    """Where all taps of the convolution read equal inputs: (batch, seq, channels).

    **Arguments:**

    - `equal`: of what in_proj put out, (batch, seq, rows); of a delta rule of queries,
      keys and values.
    """
    first = sizes.d_inner if sizes.kind == "mamba2" else 0
    wide = getattr(sizes, "d_inner", equal.shape[-1])
    if sizes.kind == "mamba2":
        wide += 2 * sizes.groups * sizes.d_state
    read = equal[..., first : first + wide]
    found = read.copy()
    for back in range(1, sizes.d_conv):
        found[:, back:] &= read[:, :-back]
    return found
