"""A text that was computed in several calls, as segments of one execution each."""

import dataclasses
from collections.abc import Sequence

from ..formats import FP32, Format
from ._execution import Execution


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens from `start` to before `stop`, computed by one execution in one call.

    `cache` is the format in which the call before left the state.
    """

    start: int
    stop: int
    execution: Execution
    cache: Format = FP32


@dataclasses.dataclass(frozen=True)
class _InCalls:
    """Scan depth of a text that was cut into calls: those of the calls, added up."""

    depth: object
    calls: tuple[int, ...]

    def __call__(self, seq: int) -> int:
        return sum(self.depth(call) for call in self.calls)  # pyright: ignore


def merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Consecutive segments of one execution as one, its scan as deep as all of them.

    Not where the state is rounded in between; fp32 holds what fp32 registers held.
    """
    runs: list[list[Segment]] = []
    for segment in segments:
        same = runs and runs[-1][0].execution is segment.execution
        if same and segment.cache is FP32:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    out = []
    for run in runs:
        execution = run[0].execution
        if len(run) > 1:
            calls = tuple(s.stop - s.start for s in run)
            depths = dataclasses.replace(
                execution.depths, scan=_InCalls(execution.depths.scan, calls)
            )
            execution = dataclasses.replace(execution, depths=depths)
        out.append(Segment(run[0].start, run[-1].stop, execution, run[0].cache))
    return tuple(out)
