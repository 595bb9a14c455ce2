"""What a dump holds of a run's logits: all, or what a server returns of them."""

import dataclasses
import functools
import math
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from ..._errors import DumpError
from ._arrays import BF16, AbstractArrays


LOGITS, LOGPROBS, TOP = "logits", "logprobs", "top_logprobs"
TOP_IDS, POSITIONS = "top_ids", "positions"
FORMS = (LOGITS, LOGPROBS, TOP)
KEYS = (*FORMS, TOP_IDS, POSITIONS)
FLOATS = ("f2", "f4", "f8", "u2")
UNITS = {"f2": 2.0**-11, "f4": 2.0**-24, "f8": 2.0**-53, "u2": 2.0**-8}
"""Unit roundoff of what an array is written in."""
FP32_UNIT = 2.0**-24
# Values that are looked at together, in fp64.
ROWS = 2**22


@dataclasses.dataclass(frozen=True)
class SeenLogits:
    """Logits of one run as far as they were written down.

    **Arguments:**

    - `run`: its name in the dump.
    - `form`: `logits`; `logprobs`, their log-softmax in nats; `top_logprobs`, the same
      of a few tokens.
    - `tokens`: shape of the text, (batch, seq).
    - `positions`: (k), the tokens behind which they were taken, ascending.
    - `names`: of its arrays, by key.
    """

    arrays: AbstractArrays
    run: str
    form: str
    tokens: tuple[int, int]
    positions: Int[np.ndarray, " k"]
    names: dict[str, str]

    @property
    def everywhere(self) -> bool:
        """Whether there is a row of the whole vocabulary for every token."""
        return self.form != TOP and len(self.positions) == self.tokens[1]

    @property
    def unit(self) -> float:
        """Unit roundoff of the format that the values were written in."""
        _, dtype = self.arrays.shape_and_dtype(self.names[self.form])
        return 2.0**-8 if dtype == BF16 else UNITS[dtype.str[1:]]

    @functools.cached_property
    def ids(self) -> Int[np.ndarray, "batch k n"] | None:
        """Which tokens there are values of, -1 for none; None: the vocabulary."""
        if self.form != TOP:
            return None
        found = self.arrays.read(self.names[TOP_IDS], kinds="iu")
        return found.astype(np.int64).reshape(self._shape)

    def values(self, start: int = 0, stop: int | None = None) -> Float[Any, "..."]:
        """(batch, k, rows) from `start` to before `stop`, in fp64."""
        return as_fp64(self._stored[..., start:stop])

    @functools.cached_property
    def _stored(self) -> np.ndarray:
        # as it is written: a vocabulary of fp64 takes four times a 16-bit one
        return self.arrays.read(self.names[self.form]).reshape(self._shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.tokens[0], len(self.positions), -1)

    def check(self, vocab_size: int, padded: int) -> None:
        """Hold shapes, dtypes, ids and sums of probabilities to a vocabulary.

        **Raises:** `DumpError`.
        """
        name = self.names[self.form]
        if self.form == TOP:
            self._check_top(name, vocab_size)
        else:
            lead = (self.tokens[0], len(self.positions))
            given = POSITIONS in self.names
            which = "" if given else f"; of some of the tokens: `{POSITIONS}` beside it"
            check_shape(self.arrays, name, lead, (vocab_size, padded), which)
        if self.form != LOGITS:
            self._check_probabilities(name, padded)

    def _check_top(self, name: str, vocab_size: int) -> None:
        if TOP_IDS not in self.names:
            raise DumpError(
                f"{name} has no {TOP_IDS} beside it",
                hint="the tokens that the values are of, in the same shape",
            )
        lead = (self.tokens[0], len(self.positions))
        ids = self.names[TOP_IDS]
        wide, _ = self.arrays.shape_and_dtype(ids)
        width = wide[-1] if wide else 0
        if not 0 < width <= vocab_size:
            raise DumpError(
                f"{ids} has shape {wide}, of a vocabulary of {vocab_size}",
                hint="(..., n), n tokens a position",
            )
        for one in (name, ids):
            which = f"; of some of the tokens: `{POSITIONS}` beside it"
            check_shape(self.arrays, one, lead, (width,), which, ids=one == ids)
        found = self.ids
        assert found is not None
        if found.max() >= vocab_size or found.min() < -1:
            wrong = found.max() if found.max() >= vocab_size else found.min()
            raise DumpError(
                f"{ids} has {wrong}, of a vocabulary of {vocab_size}",
                hint="ids of tokens, and -1 where a row has fewer",
            )
        ordered = np.sort(found, axis=-1)
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        if twice.any() or (found < 0).all(axis=-1).any():
            row = np.argwhere(twice.any(axis=-1) | (found < 0).all(axis=-1))[0]
            what = "a token twice" if twice.any() else "no token"
            raise DumpError(
                f"{ids} has {what} at token {self.positions[row[1]]}",
                hint="each token once, and -1 where a row has fewer",
            )

    def _check_probabilities(self, name: str, vocabulary: int) -> None:
        """Logarithms of probabilities are at most 0, and those of a vocabulary add up
        to 1: but for what writing them down rounds (u H <= u log V, H the entropy) and
        a sum of V terms in fp32."""
        slack = 2 * self.unit * math.log(vocabulary) + vocabulary * FP32_UNIT
        flat = self._stored.reshape(-1, self._stored.shape[-1])
        kept = None if self.ids is None else self.ids.reshape(flat.shape) >= 0
        rows = max(1, ROWS // flat.shape[1])
        for first in range(0, len(flat), rows):
            part = as_fp64(flat[first : first + rows])
            if kept is not None:
                part = np.where(kept[first : first + rows], part, -np.inf)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                total = np.log(np.sum(np.exp(part), axis=-1))
            wrong = total > slack
            if self.form == LOGPROBS:
                wrong |= total < -slack
            if wrong.any():
                place = int(np.argmax(wrong))
                row = (first + place) % len(self.positions)
                raise DumpError(
                    f"the probabilities in {name} at token {self.positions[row]} add "
                    f"up to {np.exp(total[place]):.3g}",
                    hint=f"logarithms of probabilities in nats; what is not normalised "
                    f"is `{LOGITS}`",
                )


def as_fp64(array: np.ndarray) -> Float[np.ndarray, "..."]:
    """The values of an array as it was written; uint16 is the bits of bf16."""
    if array.dtype.kind == "u":
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float64)


def check_shape(
    arrays: AbstractArrays,
    name: str,
    lead: tuple[int, int],
    widths: tuple[int, ...],
    more: str = "",
    *,
    ids: bool = False,
) -> None:
    """Hold an array to its shape and to the dtypes of values, or of ids.

    **Arguments:**

    - `lead`: (batch, tokens); a batch of 1 may be left out.
    - `widths`: allowed lengths of the last axis.
    - `more`: for the hint of a wrong shape.

    **Raises:** `DumpError`.
    """
    shape, dtype = arrays.shape_and_dtype(name)
    allowed = [(*lead, width) for width in widths]
    if lead[0] == 1:
        allowed += [(lead[1], width) for width in widths]
    if shape not in allowed:
        named = " or ".join(map(str, dict.fromkeys(allowed)))
        raise DumpError(
            f"{name} has shape {shape}, not {named}",
            hint="tokens first, as in `tokens`; is the dump of another checkpoint?"
            + more,
        )
    if ids and dtype.kind in "iu":
        return
    if ids or (dtype != BF16 and dtype.str[1:] not in FLOATS):
        raise DumpError(
            f"{name} is of dtype {dtype}",
            hint="integers"
            if ids
            else "float16, float32, float64, or uint16 with the bits of bf16",
        )


def seen_logits(
    arrays: AbstractArrays, run: str, tokens: tuple[int, int], names: dict[str, str]
) -> SeenLogits:
    """What there is of a run's logits.

    **Arguments:**

    - `tokens`: (batch, seq) of the text.
    - `names`: of the run's arrays among `KEYS`.

    **Raises:** `DumpError` for two forms of one thing, or positions that are none.
    """
    forms = [form for form in FORMS if form in names]
    if len(forms) != 1:
        lonely = ", ".join(names[key] for key in names)
        raise DumpError(
            f"the run {run[:60]!r} has {' and '.join(forms) if forms else lonely}",
            hint=f"one of {', '.join(FORMS)}",
        )
    positions = np.arange(tokens[1])
    if POSITIONS in names:
        name = names[POSITIONS]
        positions = arrays.read(name, kinds="iu", most=tokens[1], hint="integers")
        positions = positions.astype(np.int64)
        low = positions.ndim != 1 or not positions.size or positions.min() < 0
        if low or positions.max() >= tokens[1] or (np.diff(positions) <= 0).any():
            raise DumpError(
                f"{name} is not of tokens 0 to {tokens[1] - 1}, ascending",
                hint="row i of the logits follows token positions[i]",
            )
    return SeenLogits(arrays, run, forms[0], tokens, positions, names)
