"""Where an implementation's paths are different functions, whatever the precision.

Bounds and measured divergence hold one path against exact arithmetic. These findings
say what no rounding explains: prefill and decode, training and inference, or short and
long sequences that compute something else. Each was read in the sources of mamba_ssm
2.3.2.post1 and transformers 5.23.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..models import Model
from ..results._check import Finding
from ._catalogue import CATALOGUE


_LARGEST = 2**31 - 1
_SCAN_CHUNK = 2048  # tokens that Mamba-1's scan kernel takes at a time

# Modules whose weights a path reads without calling them, so that what PEFT wraps
# around them takes no part: on every path, and on the fused path of training alone.
_PASSED_OVER = {
    ("mamba1", "transformers"): (("dt_proj", "conv1d"), ("x_proj", "out_proj")),
    ("mamba1", "mamba_ssm"): (
        ("in_proj", "dt_proj", "conv1d"),
        ("x_proj", "out_proj"),
    ),
    ("falcon_mamba", "transformers"): (("dt_proj", "conv1d"), ("x_proj", "out_proj")),
    ("jamba", "transformers"): (("dt_proj", "conv1d"), ()),
    ("zamba", "transformers"): (("conv1d",), ()),
    ("mamba2", "mamba_ssm"): (("conv1d",), ("out_proj",)),
} | {
    (family, "transformers"): (("conv1d",), ("out_proj",))
    for family in (
        "mamba2",
        "bamba",
        "granitemoehybrid",
        "falcon_h1",
        "nemotron_h",
        "zamba2",
    )
}


class ClippedDt(NamedTuple):
    """How many dt of a layer lie at its limits; each would be another without them."""

    below: int
    above: int
    total: int


class Reach(NamedTuple):
    """The longest sequence that the kernels' 32-bit offsets address."""

    length: int
    kernel: str


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
    found = [
        *_limits(model, observed),
        *_fused_norms(model),
        *_offsets(model, length, batch),
        *_gradients(model, adapter_targets),
    ]
    return [f for f in found if f is not None]


def _finding(code: str, message: str, **more: Any) -> Finding:
    more = {"layer": None, **more}
    return Finding(code, CATALOGUE[code].severity, message=message, **more)


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
    ignored = "decode steps of mamba_ssm and transformers do not apply them"
    if observed is None:
        yield _finding(
            "LYA011",
            f"{_counted(len(limited), 'layer')} limit dt to {limits} in prefill;"
            f" {ignored}",
        )
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
    yield _finding(
        "LYA011",
        f"{below + above:,} of {total:,} dt are limited to {limits} in prefill"
        f" ({', '.join(parts)}); {ignored}; most in this layer",
        layer=worst,
        value=(below + above) / total,
        limit=0.0,
    )


def _fused_norms(model: Model) -> Iterator[Finding]:
    if model.layout.architecture == "falcon_mamba":
        yield _finding(
            "LYA012",
            "in train mode with mamba_ssm's kernels dt is normalised behind dt_proj,"
            " and before it everywhere else",
        )


def kernel_reach(model: Model, batch: int = 1) -> Reach | None:
    """The longest sequences that mamba_ssm's prefill kernels address, of any mixer.

    A kernel that multiplies an index by a stride in 32 bits wraps at 2^31. For
    Mamba-2 the index of a token meets the rows of in_proj (gated norm, chunks of dt)
    and that of a chunk d_inner d_state (states between chunks); for Mamba-1 the token
    meets d_model (norm), and the channel chunks x d_state (scan).

    **Arguments:**

    - `batch`: sequences at once.

    **Returns:** None where the model has no SSM.
    """
    reaches = [
        reach
        for sizes in set(model.config.sublayers)
        for reach in _reaches(sizes, batch)
    ]
    return min(reaches, default=None)


def _reaches(sizes: Any, batch: int) -> Iterator[Reach]:
    if sizes.kind == "mamba1":
        rows = 1 + _LARGEST // sizes.d_model
        yield Reach(rows // batch, "_layer_norm_fwd_1pass_kernel (norm)")
        row = (batch * sizes.d_inner - 1) * sizes.d_state
        chunks = _LARGEST // row if row else _LARGEST
        yield Reach(chunks * _SCAN_CHUNK, "selective_scan_fwd_kernel")
    if sizes.kind != "mamba2":
        return
    columns = 2 * sizes.d_inner + 2 * sizes.groups * sizes.d_state + sizes.heads
    if sizes.gate_norm:
        last_group = sizes.d_inner - sizes.d_inner // sizes.norm_groups
        rows = 1 + (_LARGEST - last_group) // columns
        yield Reach(rows // batch, "_layer_norm_fwd_1pass_kernel (gated norm)")
    yield Reach(_chunked_reach(columns, sizes.chunk, batch), "_chunk_cumsum_fwd_kernel")
    # the last head of the last chunk of the last sequence
    head = sizes.d_inner // sizes.heads * sizes.d_state
    chunks = (_LARGEST + head) // (sizes.d_inner * sizes.d_state) // batch
    yield Reach(chunks * sizes.chunk, "_chunk_scan_fwd_kernel (states)")


def _chunked_reach(columns: int, chunk: int, batch: int) -> int:
    """Largest length with ((batch - 1) length + start of the last chunk) columns in
    reach; it grows with the length, so that halving finds it."""
    low, high = 0, 1 + _LARGEST
    while high - low > 1:
        length = (low + high) // 2
        start = (length - 1) // chunk * chunk
        fits = ((batch - 1) * length + start) * columns <= _LARGEST
        low, high = (length, high) if fits else (low, length)
    return low


def _offsets(model: Model, length: int, batch: int) -> Iterator[Finding]:
    reach = kernel_reach(model, batch)
    if reach is not None and length > reach.length:
        yield _finding(
            "LYA013",
            f"{batch} x {length:,} tokens: the 32-bit offsets of mamba_ssm's"
            f" {reach.kernel} end at {reach.length:,}",
            value=float(length),
            limit=float(reach.length),
        )


def _gradients(model: Model, targets: Iterable[str]) -> Iterator[Finding]:
    checkpoint = getattr(model.layout, "checkpoint", None)
    config = {} if checkpoint is None else checkpoint.config
    library = "transformers" if config.get("model_type") else "mamba_ssm"
    always, fused = _PASSED_OVER.get((model.layout.architecture, library), ((), ()))
    named = {_mixers_module(target) for target in targets}
    never = [name for name in always if name in named]
    sometimes = [name for name in fused if name in named]
    parts = []
    if never:
        parts.append(f"{' and '.join(never)} on every path")
    if sometimes:
        parts.append(f"{' and '.join(sometimes)} in training with the fused kernels")
    if parts:
        yield _finding(
            "LYA014",
            f"{library} reads these weights past the adapter, which has no effect and"
            f" no gradient there: {'; '.join(parts)}",
        )


def _mixers_module(target: str) -> str:
    """The module's own name where the path is a mixer's, or is no path."""
    *path, name = target.removesuffix(".weight").split(".")
    return name if not path or path[-1] in ("mixer", "mamba") else ""


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
