"""Runs of the end-to-end estimates beside a reference and executions."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lyapunov
from lyapunov.bounds.end_to_end import EndToEnd, EndToEndEstimate
from lyapunov.implementations import Emulated, Reference
from lyapunov.questions import _compare

from ..helpers import not_none


class Estimated(NamedTuple):
    estimate: EndToEndEstimate
    measured: float
    differs: np.ndarray


def estimates(model, tokens, executions, *, runs=None, **options) -> list[Estimated]:
    """One entry an execution; `runs` are their traces, emulated if not given."""
    reference = Reference().trace(model, tokens)
    if runs is None:
        runs = [Emulated(e).trace(model, tokens) for e in executions]
    end = EndToEnd(model, tokens, executions, **options)
    for layer in model.sublayers:
        end.sublayer(layer, next(reference))
        for run in runs:
            next(run)
    heads: list[Any] = [next(run) for run in (reference, *runs)]
    end.head(heads[0])
    sums = [_compare.no_logits(*tokens.shape) for _ in runs]
    for rows in model.vocabulary_slices():
        logits, *of_runs = (x.logits(rows.start, rows.stop) for x in heads)
        end.logits(rows, logits, of_runs)
        sums = [
            _compare.add_logits(s, logits, one, rows)
            for s, one in zip(sums, of_runs, strict=True)
        ]
    assert list(end.reverse()) in ([], [x.layer for x in model.sublayers][::-1])
    found = []
    for i, s in enumerate(sums):
        output = _compare.output_divergence(s, model.config.vocab_size)
        differs, _ = _compare.flips(s)
        found.append(
            Estimated(end.estimate(i), not_none(output.measured_rel_l2), differs)
        )
    return found


def held_out(batch: int, seq: int, first: int = 0) -> np.ndarray:
    """Held-out text of the bundled model."""
    home = Path(lyapunov.__file__).parent / "assets" / "mamba1-bytes"
    text = np.fromfile(home / "heldout.txt", np.uint8)
    return text[first : first + batch * seq].astype(int).reshape(batch, seq)
