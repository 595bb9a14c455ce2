"""A text that was computed in several calls, as segments of one execution each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

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


def merged(segments: Sequence[Segment], sizes: Any) -> tuple[Segment, ...]:
    """Consecutive calls of one execution as one segment, where its kind joins calls.

    Without a state a prompt and the steps behind it are of one execution, too, where
    they store the same tensors. Not where a state is rounded in between; fp32 holds
    what fp32 registers held. A scan is then as deep as all of its calls, chunks begin
    with calls, and attention has as many terms a sum as its last call, of which earlier
    calls have fewer.

    **Arguments:**

    - `sizes`: of the sublayer, whose executions these are.
    """
    runs: list[list[Segment]] = []
    for segment in segments:
        same = runs and _alike(runs[-1][0].execution, segment.execution, sizes)
        kept = segment.cache is FP32 or not sizes.recurrent
        if same and kept and sizes.joins_calls:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    out = []
    for run in runs:
        execution = run[0].execution
        if len(run) > 1:
            calls = tuple(s.stop - s.start for s in run)
            form = dataclasses.replace(execution.form, calls=calls)
            execution = dataclasses.replace(execution, form=form)
        execution = execution.begun(run[0].start)
        out.append(Segment(run[0].start, run[-1].stop, execution, run[0].cache))
    return tuple(out)


def _alike(one: Execution, other: Execution, sizes: Any) -> bool:
    """Whether both compute and round alike: of a scan the declared depths differ."""
    if one is other or sizes.recurrent:
        return one is other
    names = "sites", "parameters", "constants", "dt_limit"
    depths = lambda x: (x.depths.accumulation, x.depths.reduction)
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and depths(one) == depths(other)
