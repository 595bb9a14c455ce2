"""Hand-overs of a run that was dumped: what a call began with is what another left.

Nothing rounds there, so that one bit is a bug: a lost state, a stale block, a state
that two requests share. How a dump's hand-overs are found, `lyapunov.serving` says.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..bounds.hand_over import DTYPES, beyond_int8, differing, window_of
from ..formats._precision import Precision
from ..implementations._registry import implementation_named
from ..implementations.dump._handed import HandOver, Layout, layout_of
from ..implementations.dump._keys import INT8
from ..implementations.dump.file import File
from ..models import Model
from ..results._audit import BUG, NOT_RUN, HandOverAudit, VariantAudit
from ._audit_ways import Way


class _Held(NamedTuple):
    """One tensor of one hand-over."""

    layer: int
    tensor: str
    wrong: Any
    """Which of its elements, as a mask."""
    taken: np.ndarray
    expected: np.ndarray


def with_hand_overs(
    model: Model, ways: list[Way], results: list[VariantAudit]
) -> list[VariantAudit]:
    """The entries of all runs, those of a dump with their hand-overs held.

    **Arguments:**

    - `results`: one entry a way.
    """
    return [
        one
        if way.dump is None or one.verdict == NOT_RUN
        else _held(model, way.dump, one)
        for way, one in zip(ways, results, strict=True)
    ]


def held_hand_overs(model: Model, run: File) -> list[HandOverAudit]:
    """Those of one run of a dump, in the order of its calls."""
    inputs = _Inputs(run)
    return [_one(model, run, one, inputs) for one in run.hand_overs]


def _held(model: Model, run: File, result: VariantAudit) -> VariantAudit:
    audited = held_hand_overs(model, run)
    bad = any(not one.held for one in audited)
    return dataclasses.replace(
        result,
        hand_overs=audited,
        hand_overs_alike=run.hand_overs_alike,
        verdict=BUG if bad else result.verdict,
    )


class _Inputs:
    """What the convolutions of a run read, one sublayer after another."""

    def __init__(self, run: File):
        self._run = run
        self._kept: dict[int, Any] = {}

    def of(self, layer: int, layout: Layout):
        """(seq, channels), or None where they were not seen."""
        if layer not in self._kept:
            found = layout.inputs(self._run.stored(layer))
            self._kept[layer] = None if found is None else np.asarray(found)[0]
        return self._kept[layer]


def _one(model: Model, run: File, one: HandOver, inputs: _Inputs) -> HandOverAudit:
    declared = _window_format(run)
    held: list[_Held] = []
    unseen = 0
    for layer in one.layers:
        layout = layout_of(model.config.sublayers[layer], f"sublayer {layer}")
        for what in ("state", "window"):
            left, taken = (one.array(layer, w, what) for w in ("left", "taken"))
            if left is None or taken is None:
                unseen += 1
                continue
            rule = beyond_int8 if one.how == INT8 and what == "state" else differing
            held.append(_Held(layer, what, rule(left, taken), taken, left))
        held += _window(one, layer, layout, inputs, declared, run.begins_at == 0)
    wrong = [x for x in held if np.any(x.wrong)]
    first = wrong[0] if wrong else None
    return HandOverAudit(
        call=one.call + 1,
        source=None if one.source is None else one.source + 1,
        how=one.how,
        token=one.at,
        layers=len(one.layers),
        elements=sum(x.wrong.size for x in held),
        differing=sum(int(np.sum(x.wrong)) for x in wrong),
        unseen=unseen,
        held=not wrong and not one.sharing,
        first_layer=None if first is None else first.layer,
        first_tensor=None if first is None else first.tensor,
        looks_like="; ".join(_words(one, wrong, declared)) or None,
        note=one.note,
    )


def _window_format(run: File) -> str:
    """What windows are kept in: as the dump says, by flags, or as activations."""
    launch = getattr(implementation_named(run.implementation), "launch", None)
    flagged = None if launch is None else launch.window
    return run.window_precision or flagged or Precision.named(run.precision).format


def _window(
    one: HandOver, layer: int, layout: Layout, inputs: _Inputs, declared: str,
    begins: bool,
) -> Iterator[_Held]:  # fmt: skip
    """The window against the last inputs of the convolution, where both were seen."""
    taken = one.array(layer, "taken", "window")
    if taken is None or not one.counts:
        return
    rows = inputs.of(layer, layout)
    if rows is None:
        return
    expected, lost = window_of(rows, one.at, len(taken), declared, begins=begins)
    if len(expected):
        own = taken[lost:]
        wrong = differing(expected, own)
        yield _Held(layer, INPUTS, wrong, own, expected)


INPUTS = "window against the inputs"


def _words(one: HandOver, wrong: list[_Held], declared: str) -> Iterator[str]:
    """What a difference looks like."""
    if one.sharing:
        others = "another request" if one.sharing == 1 else f"{one.sharing} others"
        yield f"its block of the cache is shared with {others}"
    states = [x for x in wrong if x.tensor == "state"]
    if states and all(not np.any(x.taken) for x in states):
        yield "it is all zero: the state was lost"
    windows = [x for x in wrong if x.tensor == INPUTS]
    for name, dtype in DTYPES.items():
        if windows and name != declared and all(_is_cast(x, dtype) for x in windows):
            yield f"the window holds {name}, where {declared} is declared"
            return


def _is_cast(held: _Held, dtype: np.dtype) -> bool:
    with np.errstate(over="ignore"):
        cast = held.expected.astype(np.float32).astype(dtype).astype(np.float32)
    return not np.any(differing(cast, held.taken.astype(np.float32)))
