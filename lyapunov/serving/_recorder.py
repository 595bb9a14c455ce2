"""Rows, states and windows of one request, gathered call by call and written down."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import shown
from .._errors import DumpError, UsageError
from ..implementations._registry import flow_names, followed
from ..implementations._ways import parse_variant
from ..implementations.dump._keys import FORMAT, INT8, narrowest, put
from ._calls import Call, Handed, Span, counting, hand_over, recomputed, same, way


class Recorder:
    """Gather what a server computes of one request.

    A hook fills it: `call`, then what its sublayers took, computed and left. It holds
    NumPy arrays alone and can be pickled, from one machine to another.

    **Arguments:**

    - `implementation`, `precision`, `state_precision`: whose flow the server follows,
      in which formats, as in a dump (`lyapunov.implementations.dump.file`).
    - `switches`: of a dump, such as `residual_in_fp32`, where the server has its own.
    - `window_precision`: of the convolution's window, where it is not the activations'.
    - `through_int8`: whether a prefix hit goes through a store of 8-bit integers.

    **Raises:** `UsageError` where no flow has that name.
    """

    def __init__(
        self,
        *,
        implementation: str,
        precision: str,
        state_precision: str | None = None,
        switches: Mapping[str, bool] | None = None,
        window_precision: str | None = None,
        through_int8: bool = False,
    ):
        if not followed(implementation):
            raise UsageError(
                f"no flow is known by the name {shown(implementation)}",
                hint=f"`implementation` is one of {', '.join(flow_names())}",
            )
        self.calls: list[Call] = []
        self._donors: list[Recorder] = []
        self._elsewhere: list[tuple[int, frozenset[int]]] = []
        self._through_int8 = through_int8
        self._settings: dict[str, Any] = {
            "implementation": implementation,
            "precision": precision,
            **(switches or {}),
        }
        if state_precision is not None:
            self._settings["state_precision"] = state_precision
        if window_precision is not None:
            self._settings["window_precision"] = window_precision

    @property
    def _rounds(self) -> bool:
        kept = self._settings.get("state_precision", self._settings["precision"])
        return kept != "fp32"

    # ---- gathering

    def call(self, start: int, stop: int, *, step: bool, **known: Any) -> Call:
        """Begin a call of tokens from `start` to before `stop`.

        **Arguments:**

        - `step`: whether a decode kernel computes it.
        - `known`: further fields of `Call`.

        **Raises:** `DumpError` for tokens that there cannot be.
        """
        if not 0 <= start < stop:
            raise DumpError(
                f"a call has tokens from {start} to before {stop}",
                hint="positions count from 0 at the request's first token",
            )
        self.calls.append(Call(start, stop, step, **known))
        return self.calls[-1]

    def rows(self, layer: int, key: str, array: np.ndarray) -> None:
        """Keep rows of the present call, (stop - start, width).

        **Raises:** `DumpError` for another number of rows.
        """
        call = self.calls[-1]
        if len(array) != call.stop - call.start:
            raise DumpError(
                f"{key} of sublayer {layer} has {len(array)} rows in a {call}",
                hint="rows of the watched request alone",
            )
        call.rows[layer, key] = array

    def taken(self, layer: int, handed: Handed) -> None:
        """Keep what a sublayer of the present call begins with."""
        self.calls[-1].taken[layer] = handed

    def left(self, layer: int, count: int, handed: Handed) -> None:
        """Keep what a sublayer of the present call leaves behind `count` tokens."""
        self.calls[-1].left.setdefault(layer, {})[count] = handed

    def logits(self, token: int, row: np.ndarray) -> None:
        """Keep the logits behind a token, (vocabulary)."""
        self.calls[-1].logits[token] = row

    def elsewhere(self, blocks: frozenset[int]) -> None:
        """Keep the blocks of a call that the request had no part in."""
        if blocks:
            self._elsewhere.append((len(self.calls), blocks))

    def followed_by(self, other: "Recorder") -> "Recorder":
        """The same request, gone on with on another machine: prefill here, say, and
        decoding there. Both stay as they are."""
        both = Recorder.__new__(Recorder)
        both.__dict__ |= self.__dict__
        last = self.calls[-1].machine if self.calls else 0
        both.calls = self.calls + [
            dataclasses.replace(call, machine=last + 1 + call.machine)
            for call in other.calls
        ]
        return both

    def behind(self, donor: "Recorder") -> "Recorder":
        """The same request, whose prefix another one computed that was watched, too: a
        prefix hit is held to what that one left. It stays as it is."""
        found = Recorder.__new__(Recorder)
        found.__dict__ |= self.__dict__ | {"_donors": [*self._donors, donor]}
        return found

    # ---- writing

    def write(
        self, path: str | os.PathLike, *, name: str | None = None, append: bool = False
    ) -> str:
        """Write what was gathered as a dump, for `lyapunov-check MODEL --audit`.

        **Arguments:**

        - `path`: the .npz. `name`: of the run. `append`: to a dump of the same tokens;
          its settings stay.

        **Returns:** the way that the calls amount to.

        **Raises:** `DumpError` where nothing was seen, where the calls amount to no
        way, or what was seen of them does not go together.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise DumpError(f"{path.name} would be a .npz", hint="a name in .npz")
        spans = counting(self.calls)
        kind = way(self.calls, spans, rounds=self._rounds)
        parse_variant(kind)
        tokens = self._tokens(spans)
        if len(tokens) < 2:
            raise DumpError(
                f"{len(tokens)} token counts: {self.calls[-1]}",
                hint="watch a request of at least 2 tokens",
            )
        arrays = self._of_layers(spans) | self._of_logits(spans)
        if not arrays:
            raise DumpError(
                f"{len(self.calls)} calls were seen, and no tensor in them",
                hint="hooks fire in eager mode alone: vLLM's --enforce-eager, SGLang's "
                "--disable-cuda-graph",
            )
        arrays |= self._of_hand_overs(spans)
        settings = {"format": FORMAT, "tokens": tokens, **self._settings}
        if spans[0].start:
            settings["begins_at"] = spans[0].start
        prefix = "" if name is None else f"run.{name}."
        with zipfile.ZipFile(path, "a" if append else "w", zipfile.ZIP_DEFLATED) as to:
            for key, value in ({} if append else settings).items():
                put(to, key, value)
            put(to, f"{prefix}kind", kind)
            for key, value in arrays.items():
                put(to, prefix + key, value)
        return kind

    def _tokens(self, spans: list[Span]) -> np.ndarray:
        parts = []
        for span in spans:
            call = self.calls[span.call]
            if call.ids is None:
                raise DumpError(
                    f"the tokens of a {call} were not seen",
                    hint="the hook needs the model's own call, not a part of it",
                )
            parts.append(call.ids[: span.stop - span.start])
        return np.concatenate(parts).astype(np.int64)

    def _of_layers(self, spans: list[Span]) -> dict[str, np.ndarray]:
        """Rows by key, of what every call that counts has."""
        own = [self.calls[span.call].rows for span in spans]
        keys = [key for key in own[0] if all(key in rows for rows in own)]
        found = {}
        for layer, key in keys:
            parts = [
                rows[layer, key][: span.stop - span.start]
                for rows, span in zip(own, spans, strict=True)
            ]
            whole = np.concatenate(parts).astype(np.float32)
            found[f"layer.{layer}.{key}"] = narrowest(whole)
        return found

    def _of_logits(self, spans: list[Span]) -> dict[str, np.ndarray]:
        begins, found = spans[0].start, {}
        for span in spans:
            for token, row in self.calls[span.call].logits.items():
                if span.start <= token < span.stop:
                    found[token - begins] = row
        if not found or begins:  # the reference would have read other tokens
            return {}
        places = sorted(found)
        rows = np.stack([found[token] for token in places]).astype(np.float32)
        arrays = {"logits": narrowest(rows)}
        if len(places) < spans[-1].stop - begins:
            arrays["positions"] = np.array(places)
        return arrays

    def _of_hand_overs(self, spans: list[Span]) -> dict[str, Any]:
        """What was left and what was taken, but for steps that agree in every bit."""
        found: dict[str, Any] = {}
        begins, counting = spans[0].start, {span.call for span in spans}
        again = {i: rest for i, *rest in recomputed(self.calls)}
        alike = 0
        for i, call in enumerate(self.calls):
            told = hand_over(self.calls, i)
            if told is None or not call.taken or call.start < begins:
                continue
            how, source = told
            if how == "prefix hit" and self._through_int8:
                how = INT8
            pairs = {
                layer: (self._left(source, layer, call, taken), taken)
                for layer, taken in call.taken.items()
            }
            if how == "decode to decode" and not call.sharing and _agree(pairs):
                alike += 1
                continue
            found |= {
                f"handed.{i}.how": how,
                f"handed.{i}.at": call.start - begins,
                f"handed.{i}.source": -1 if source is None else source,
                f"handed.{i}.sharing": call.sharing,
                f"handed.{i}.counts": i in counting,
            }
            notes = self._notes(i, source, pairs, again.get(i))
            if notes:
                found[f"handed.{i}.note"] = "; ".join(notes)
            for layer, (left, taken) in pairs.items():
                for when, one in (("left", left), ("taken", taken)):
                    for what, array in zip(Handed._fields, one, strict=True):
                        if array is not None:
                            key = f"layer.{layer}.handed.{i}.{when}.{what}"
                            found[key] = array
        return found | ({"handed.alike": alike} if alike else {})

    def _left(self, source: int | None, layer: int, call: Call, taken: Handed):
        """What was left there; zeros in front of the first token."""
        count = call.start
        if count == 0:
            empty = [None if a is None else np.zeros_like(a) for a in taken]
            return Handed(*empty)
        sources = [] if source is None else [self.calls[source]]
        if not sources and call is self.calls[0]:
            sources = [one for donor in self._donors for one in reversed(donor.calls)]
        for one in sources:
            if count in one.left.get(layer, {}):
                return one.left[layer][count]
        return Handed(None, None)

    def _notes(self, i: int, source: int | None, pairs, again) -> list[str]:
        """What is known beside the numbers, in words."""
        call, notes = self.calls[i], []
        if again is not None:
            tokens, elements, apart = again
            notes.append(
                f"{tokens} tokens were computed again: {apart:,} of {elements:,} "
                "elements of the sublayers' outputs differ"
            )
        if call.empty and call.start > 0:
            notes.append("the server began it without a state")
        if _agree(pairs):
            return notes
        first = 0 if source is None else source
        others = {b for one in self.calls[first : i + 1] for b in one.others}
        others |= {b for before, own in self._elsewhere if before <= i for b in own}
        if call.took_block in others:
            notes.append(
                f"block {call.took_block}, which it read, was another request's"
            )
        stale = self._looks_like(i, source, pairs)
        return [*notes, stale] if stale else notes

    def _looks_like(self, i: int, source: int | None, pairs) -> str | None:
        """Which other state of the request was taken instead, if it is one."""
        wrong = {
            layer: taken.state
            for layer, (left, taken) in pairs.items()
            if left.state is not None
            and taken.state is not None
            and not same(left.state, taken.state)
        }
        for j in reversed(range(i)) if wrong else ():
            call = self.calls[j]
            for count in sorted({count for own in call.left.values() for count in own}):
                there = [call.left.get(layer, {}).get(count) for layer in wrong]
                if all(
                    one is not None and one.state is not None and same(one.state, taken)
                    for one, taken in zip(there, wrong.values(), strict=True)
                ):
                    drafted = call.draft and j == source
                    rejected = ", of a draft that was rejected" if drafted else ""
                    left = f"it is what call {j + 1} left behind {count} tokens"
                    return left + rejected
        return None


def _agree(pairs: Mapping[int, tuple[Handed, Handed]]) -> bool:
    """Whether everything that was left is what was taken, bit for bit."""
    return all(
        one is not None and other is not None and same(one, other)
        for left, taken in pairs.values()
        for one, other in zip(left, taken, strict=True)
        if one is not None or other is not None
    )
