"""Seconds of a step, on a GPU as one CUDA graph; what fits; a line through it all."""

import itertools
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .networks import KERNELS, Attention, Kernel, Step
from .shapes import BYTES, Shape


_WARM_UP = 3
_MARGIN = 0.06  # of the device's memory, for what libraries keep


@dataclass(frozen=True)
class Timed:
    """`seconds`: of every replay; `graph`: whether one launch ran the whole step."""

    seconds: list[float]
    graph: bool


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be taken; None where it is not known."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(free + reserved - _MARGIN * total)


def weights_fit(shape: Shape, free: int | None) -> bool:
    """Whether the weights fit, before they are made."""
    return free is None or shape.parameters() * BYTES <= free


def fits(
    shape: Shape, batch: int, context: int, free: int | None, state_bytes: int
) -> bool:
    """Whether caches and logits fit beside weights that are there already."""
    if free is None:
        return True
    weights = shape.parameters() * BYTES
    return shape.held(batch, context, state_bytes) - weights <= free


@torch.no_grad()
def timed(
    step: Step, shape: Shape, batch: int, caches: list[Any], device: torch.device,
    replays: int,
) -> Timed:  # fmt: skip
    """Time a step; caches are written at the same place every time."""
    ids = torch.randint(shape.vocabulary, (batch,), device=device)
    if device.type != "cuda":
        found = []
        for _ in range(_WARM_UP + replays):
            began = time.perf_counter()
            step(ids, caches)
            found.append(time.perf_counter() - began)
        return Timed(found[_WARM_UP:], False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step(ids, caches)
    torch.cuda.current_stream().wait_stream(side)
    run, graph = _captured(step, ids, caches)
    run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    between = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return Timed([one / 1000 for one in between], graph)


def _captured(step: Step, ids: torch.Tensor, caches: list[Any]) -> tuple[Any, bool]:
    """The step as a graph; eagerly if something in it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step(ids, caches)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        torch.cuda.synchronize()
        reason = str(error).splitlines()[0]
        print(f"no graph, timed launch by launch: {reason}", file=sys.stderr)
        return lambda: step(ids, caches), False
    return graph.replay, True


@torch.no_grad()
def fastest_kernel(
    step: Step, caches: list[Any], batch: int, device: torch.device
) -> Kernel | None:
    """Let the step attend with the fastest of torch's kernels for these caches.

    None where there is no attention. On a CPU there is nothing to choose.
    """
    layers: Any = step.layers
    own = [(layer, cache) for layer, cache in zip(layers, caches, strict=True)
           if isinstance(layer, Attention)]  # fmt: skip
    if not own:
        return None
    layer, (keys, values) = own[0]
    best = KERNELS[0]
    if device.type == "cuda":
        sizes = (batch, layer.shape.heads, layer.shape.head_dim)
        q = torch.randn(sizes, device=device, dtype=keys.dtype)
        best = min(KERNELS, key=lambda one: _kernel_seconds(one, q, keys, values))
    for layer, _ in own:
        layer.kernel = best
    return best


def _kernel_seconds(kernel: Kernel, q: Any, keys: Any, values: Any) -> float:
    """Infinite for one that does not take these sizes."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    try:
        for i in range(6):
            if i == 2:
                marks[0].record()
            kernel.attend(q, keys, values)
        marks[1].record()
        torch.cuda.synchronize()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        return float("inf")
    return marks[0].elapsed_time(marks[1]) / 1000


def copy_rate(device: torch.device, size: int = 2**32) -> float | None:
    """Bytes a second that a copy on the card reads and writes together."""
    if device.type != "cuda":
        return None
    size = min(size, (free_bytes(device) or 0) // 4)  # a small card has room for less
    one, other = (torch.empty(size, dtype=torch.uint8, device=device) for _ in "ab")
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    other.copy_(one)
    marks[0].record()
    for _ in range(10):
        other.copy_(one)
    marks[1].record()
    torch.cuda.synchronize()
    return 10 * 2 * size / (marks[0].elapsed_time(marks[1]) / 1000)


@dataclass(frozen=True)
class Line:
    """seconds = start + batch (sequence + context token), through measured steps.

    `worst`: the largest relative distance of a measured step from it.
    """

    start: float
    sequence: float
    token: float
    worst: float

    def seconds(self, batch: int, context: int) -> float:
        """Of a step that was not measured."""
        return self.start + batch * (self.sequence + context * self.token)


def line(measured: list[tuple[int, int, float]]) -> Line | None:
    """Least squares of relative errors over (batch, context, seconds); 4 or more."""
    if len(measured) < 4:
        return None
    batch, context, seconds = (np.array(c, float) for c in zip(*measured, strict=True))
    columns = np.stack([np.ones_like(batch), batch, batch * context], axis=1)
    weighted = columns / seconds[:, None]
    # columns differ by orders of magnitude: brought to one scale first
    scale = np.maximum(np.abs(weighted).max(axis=0), 1e-300)
    found = np.linalg.lstsq(weighted / scale, np.ones_like(seconds), rcond=None)[0]
    found = found / scale
    worst = float(np.max(np.abs(columns @ found / seconds - 1)))
    start, sequence, token = found.tolist()
    return Line(start, sequence, token, worst)
