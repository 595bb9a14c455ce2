"""Where an implementation's paths are different functions, whatever the precision.

Bounds and measured divergence hold one path against exact arithmetic. These findings
say what no rounding explains: prefill and decode, training and inference, or short and
long sequences that compute something else. What is known, each implementation says.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..implementations import IMPLEMENTATIONS
from ..implementations._implementation import Reach
from ..models import Model
from ..results._check import Finding
from ._catalogue import finding_of


class ClippedDt(NamedTuple):
    """How many dt of a layer lie at its limits; each would be another without them."""

    below: int
    above: int
    total: int


def clipped_dt(dt: np.ndarray, limits: tuple[float, float]) -> ClippedDt:
    """Count the dt that the limits have moved.

    **Arguments:**

    - `dt`: after softplus and limits, of any shape, as the reference observes it. A
      dt is taken for moved where it equals a limit.
    - `limits`: the smallest and the largest dt; 0 and inf are none.
    """
    low, high = limits
    return ClippedDt(
        int(np.count_nonzero(np.asarray(dt) <= low)) if low > 0 else 0,
        int(np.count_nonzero(np.asarray(dt) >= high)) if math.isfinite(high) else 0,
        int(np.size(dt)),
    )


def semantic_findings(
    model: Model,
    length: int,
    batch: int = 1,
    *,
    observed: Mapping[int, ClippedDt] | None = None,
    adapter_targets: Iterable[str] = (),
) -> list[Finding]:
    """Paths of the known implementations that are other functions than the one checked.

    **Arguments:**

    - `model`: recognised; no weight is read.
    - `length`, `batch`: tokens a sequence, and sequences at once.
    - `observed`: by sublayer, how many dt of the reference lie at their limits on the
      tokens. Where it is given, limits that move nothing raise no finding.
    - `adapter_targets`: modules that an adapter changes, by name or path.
    """
    return [
        *_limits(model, observed),
        *_trained_otherwise(model),
        *_offsets(model, length, batch),
        *_gradients(model, adapter_targets),
    ]


def _limits(
    model: Model, observed: Mapping[int, ClippedDt] | None
) -> Iterator[Finding]:
    limited = {
        i: sizes.dt_limit
        for i, sizes in enumerate(model.config.sublayers)
        if sizes.kind == "mamba2" and sizes.dt_limit != (0.0, math.inf)
    }
    if not limited:
        return
    low, high = next(iter(limited.values()))
    limits = f"[{low:g}, {high:g}]"
    deaf = [one.name for one in IMPLEMENTATIONS.values() if one.ignores_dt_limits]
    ignored = f"decode steps of {' and '.join(deaf)} do not apply them"
    if observed is None:
        told = f"{len(limited):,} layer{'s' if len(limited) > 1 else ''}"
        message = f"{told} limit dt to {limits} in prefill; {ignored}"
        yield finding_of("LYA011", None, message)
        return
    moved = {
        i: seen
        for i, seen in observed.items()
        if i in limited and seen.below + seen.above
    }
    if not moved:
        return
    worst = max(moved, key=lambda i: (moved[i].below + moved[i].above) / moved[i].total)
    below = sum(seen.below for seen in moved.values())
    above = sum(seen.above for seen in moved.values())
    total = sum(seen.total for i, seen in observed.items() if i in limited)
    parts = [f"{below:,} below"] * bool(below) + [f"{above:,} above"] * bool(above)
    yield finding_of(
        "LYA011",
        worst,
        f"{below + above:,} of {total:,} dt are limited to {limits} in prefill"
        f" ({', '.join(parts)}); {ignored}; most in this layer",
        (below + above) / total,
        0.0,
    )


def _trained_otherwise(model: Model) -> Iterator[Finding]:
    family = model.layout.architecture
    for one in IMPLEMENTATIONS.values():
        if family in one.trains_otherwise:
            yield finding_of("LYA012", None, one.trains_otherwise[family])


def kernel_reach(model: Model, batch: int = 1) -> Reach | None:
    """The longest sequences that some implementation's kernels address, of any mixer.

    **Arguments:**

    - `batch`: sequences at once.

    **Returns:** None where no kernel of any implementation ends a sequence.
    """
    reaches = [
        reach
        for one in IMPLEMENTATIONS.values()
        for sizes in set(model.config.sublayers)
        for reach in one.reach(sizes, batch)
    ]
    return min(reaches, default=None)


def _offsets(model: Model, length: int, batch: int) -> Iterator[Finding]:
    reach = kernel_reach(model, batch)
    if reach is not None and length > reach.length:
        yield finding_of(
            "LYA013",
            None,
            f"{batch} x {length:,} tokens: the 32-bit offsets of"
            f" {reach.implementation}'s {reach.kernel} end at {reach.length:,}",
            float(length),
            float(reach.length),
        )


def _gradients(model: Model, targets: Iterable[str]) -> Iterator[Finding]:
    checkpoint = getattr(model.layout, "checkpoint", None)
    config = {} if checkpoint is None else checkpoint.config
    named = {_mixers_module(target) for target in targets}
    for one in IMPLEMENTATIONS.values():
        over = one.passed_over.get(model.layout.architecture)
        if over is None or not one.reads(config):
            continue
        never = [name for name in over.always if name in named]
        sometimes = [name for name in over.fused if name in named]
        parts = []
        if never:
            parts.append(f"{' and '.join(never)} on every path")
        if sometimes:
            fused = " and ".join(sometimes)
            parts.append(f"{fused} in training with the fused kernels")
        if parts:
            yield finding_of(
                "LYA014",
                None,
                f"{one.name} reads these weights past the adapter, which has no effect"
                f" and no gradient there: {'; '.join(parts)}",
            )


def _mixers_module(target: str) -> str:
    """The module's own name where the path is a mixer's, or is no path."""
    *path, name = target.removesuffix(".weight").split(".")
    return name if not path or path[-1] in ("mixer", "mamba") else ""
