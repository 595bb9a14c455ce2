"""Calls that a request was computed in: what counts of them, and which way that is.

Tokens count from 0 at the request's first. A token that was computed again counts as it
was computed last; tokens of a draft that the next call does not go on from are dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .._errors import DumpError


MOST_NAME = 800
"""Characters of a way's name that a dump may hold."""


class Handed(NamedTuple):
    """What is handed on behind a token, as the cache holds it."""

    state: np.ndarray | None
    """(heads, head_dim, d_state) or (d_inner, d_state); None: not seen."""
    window: np.ndarray | None
    """(d_conv - 1, channels), oldest first."""


@dataclass
class Call:
    """One call of the network, as far as it concerns the request."""

    start: int
    stop: int
    step: bool
    """Whether a decode kernel computed it, a token or a draft's window of tokens."""
    empty: bool = False
    """Whether the server began it without a state."""
    took_block: int | None = None
    left_block: int | None = None
    sharing: int = 0
    """Other rows of the batch with one of these blocks."""
    others: frozenset[int] = frozenset()
    """Blocks of the other rows."""
    machine: int = 0
    ids: np.ndarray | None = None
    rows: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    """By sublayer and key, (stop - start, width)."""
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    """By the token that they follow."""
    taken: dict[int, Handed] = field(default_factory=dict)
    """By sublayer."""
    left: dict[int, dict[int, Handed]] = field(default_factory=dict)
    """By sublayer and by how many tokens it has read."""

    @property
    def draft(self) -> bool:
        """Whether it may be accepted in part."""
        return self.step and self.stop - self.start > 1

    def __str__(self) -> str:
        if self.draft:
            return f"draft window {self.start} to {self.stop}"
        if self.step:
            return f"step at {self.start}"
        return f"prefill from {self.start} to {self.stop}"


class Span(NamedTuple):
    """Tokens of a call that count."""

    call: int
    """Its number, from 0."""
    start: int
    stop: int


def counting(calls: Sequence[Call]) -> list[Span]:
    """What counts of the calls, in the order of the tokens.

    **Raises:** `DumpError` where there are none, or tokens were in no call.
    """
    if not calls:
        raise DumpError(
            "no call of the request was seen",
            hint="was it run while the hook was on, under that name? hooks fire in "
            "eager mode alone: vLLM's --enforce-eager, SGLang's --disable-cuda-graph",
        )
    spans: list[Span] = []
    for i, call in enumerate(calls):
        if spans and call.start > spans[-1].stop:
            raise DumpError(
                f"tokens {spans[-1].stop} to {call.start} were in no call that was "
                f"seen; {_listed(calls)}",
                hint="put the hook on before the request begins",
            )
        while spans and spans[-1].start >= call.start:
            spans.pop()
        if spans:
            spans[-1] = spans[-1]._replace(stop=min(spans[-1].stop, call.start))
        spans.append(Span(i, call.start, call.stop))
    if calls[-1].draft:  # nobody has accepted any but its first token yet
        spans[-1] = spans[-1]._replace(stop=spans[-1].start + 1)
    return spans


def way(calls: Sequence[Call], spans: Sequence[Span], *, rounds: bool) -> str:
    """The name of the way to run the text that the calls amount to.

    Tokens of a draft's window count as steps where nothing is rounded between two: the
    kernel keeps the state of a window in fp32, and rounds it behind each token only for
    the call that may go on from there.

    **Arguments:**

    - `rounds`: whether the state's cache holds less than fp32.

    **Raises:** `DumpError` that says which calls were seen, where there is none.
    """
    begins = spans[0].start
    sizes: list[int] = []
    for span in spans:
        step, size = calls[span.call].step, span.stop - span.start
        if step and size > 1 and rounds:
            raise _no_way(
                calls,
                f"{size} tokens of a draft went through without a rounding of the "
                "state, which its cache rounds between steps",
            )
        first = not sizes
        if step and first and not all(calls[s.call].step for s in spans):
            raise _no_way(calls, "the first token was a step, and later ones were not")
        if not step and size == 1 and not (first and begins == 0):
            raise _no_way(
                calls, "a kernel of prefills computed a single token behind others"
            )
        sizes += [1] * size if step else [size]
    if all(calls[span.call].step for span in spans):
        return "steps"
    if len(sizes) == 1:
        return "whole"
    if all(size == 1 for size in sizes[1:]):
        return f"initial_state:{sizes[0]}"
    while len(sizes) > 1 and sizes[-1] == sizes[-2]:
        sizes.pop()
    name = "chunks:" + ",".join(map(str, sizes))
    if len(name) > MOST_NAME:
        raise _no_way(calls, f"{len(sizes)} pieces are more than a name can hold")
    return name


def hand_over(calls: Sequence[Call], i: int) -> tuple[str, int | None] | None:
    """What kind of hand-over call `i` began with, and which call left what it needs.

    **Returns:** None where nothing is handed: the first tokens, from an empty state.
    """
    call = calls[i]
    before = calls[i - 1] if i else None
    again = (
        before is not None
        and call.start < before.stop
        and not (before.draft and before.start < call.start)
    )
    if call.start == 0:
        if call.empty:
            return None
        return ("pre-emption" if again else "beginning"), None
    source = next((j for j in reversed(range(i)) if _left(calls[j], call.start)), None)
    if before is None:
        return "prefix hit", source
    if again:
        how = "pre-emption"
    elif call.machine != before.machine:
        how = "to another machine"
    elif before.draft:
        how = "draft window"
    else:
        how = f"{_kind(before)} to {_kind(call)}"
    left = None if source is None else calls[source].left_block
    copied = left is not None and call.took_block not in (None, left)
    same_row = how not in ("pre-emption", "to another machine", "draft window")
    return (f"{how}, block copied" if copied and same_row else how), source


def recomputed(calls: Sequence[Call]) -> Iterator[tuple[int, int, int, int]]:
    """What was computed again, call by call: the call, how many tokens, how many
    elements of the sublayers' outputs, and how many of these differ in any bit."""
    before: dict[tuple[int, int], tuple[Any, np.ndarray]] = {}
    for i, call in enumerate(calls):
        tokens, elements, apart = set(), 0, 0
        for (layer, key), rows in call.rows.items():
            if key != "output":
                continue
            for k, row in enumerate(rows):
                token = None if call.ids is None else int(call.ids[k])
                place = layer, call.start + k
                if place in before and before[place][0] == token:
                    tokens.add(place[1])
                    elements += row.size
                    apart += int(np.sum(bits(row) != bits(before[place][1])))
                before[place] = token, row
        drafted = i > 0 and calls[i - 1].draft and calls[i - 1].start < call.start
        if tokens and not drafted:
            yield i, len(tokens), elements, apart


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of floats, as integers of their width."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays agree in format, shape and every bit."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bool(np.array_equal(bits(one), bits(other)))
    )


def _left(call: Call, count: int) -> bool:
    return any(count in of_layer for of_layer in call.left.values())


def _kind(call: Call) -> str:
    return "decode" if call.step else "prefill"


def _listed(calls: Sequence[Call]) -> str:
    names = [str(call) for call in calls]
    most = 12
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"seen: {', '.join(names[:most])}{more}"


def _no_way(calls: Sequence[Call], why: str) -> DumpError:
    return DumpError(
        f"the calls amount to no way of running a text: {why}; {_listed(calls)}",
        hint="watch a request that is run otherwise (drafts with a state in fp32), or "
        "its logits alone: lyapunov.serving.write_logprobs",
    )
