"""Executions that compute another function than the model, and how far it is from it.

No rounding is looked at here: both functions run in fp64. The one way in which the
implementations that are followed differ from models is between which they limit dt.
"""

from typing import Any

import numpy as np

from ..implementations import Execution, Reference
from ..implementations._trace import HeadRecord
from ..models import Model, VocabularySlice
from ..results._check import FunctionDistance
from . import _compare


class OtherFunctions:
    """Run each execution's own function beside the reference, where it is another.

    In order: `sublayer` for each of the model's, `head`, `logits` for each slice of the
    vocabulary (or `stream`, where there is no head), then `distance`. Executions that
    share a function share its run.

    **Arguments:**

    - `ids`: (batch, seq).
    """

    def __init__(self, model: Model, ids: np.ndarray, executions: list[Execution]):
        self._model = model
        self._traces: dict[Any, Any] = {}
        for execution in executions:
            limit = _own_limit(model, execution)
            if limit is not None and limit not in self._traces:
                run = Reference(function=execution)
                self._traces[limit] = run.trace(model, ids)
        self._sums = {limit: _compare.no_logits(*ids.shape) for limit in self._traces}
        self._heads: dict[Any, Any] = {}
        self._apart: dict[Any, float] = {}

    def sublayer(self) -> None:
        """Run the next sublayer of each."""
        for trace in self._traces.values():
            next(trace)

    def head(self) -> None:
        """Run the norm in front of the head."""
        self._heads = {limit: next(trace) for limit, trace in self._traces.items()}

    def stream(self, reference: HeadRecord) -> None:
        """Compare what comes out of the last sublayer, where there is no head.

        **Arguments:**

        - `reference`: the model's own.
        """
        there = np.asarray(reference.residual + reference.hidden)
        for limit, head in self._heads.items():
            apart = np.asarray(head.residual + head.hidden) - there
            self._apart[limit] = float(np.linalg.norm(apart) / np.linalg.norm(there))

    def logits(self, rows: VocabularySlice, reference) -> None:
        """Compare a slice of the vocabulary.

        **Arguments:**

        - `reference`: the model's own logits, (batch, seq, rows).
        """
        for limit, head in self._heads.items():
            own = head.logits(rows.start, rows.stop)
            self._sums[limit] = _compare.add_logits(
                self._sums[limit], reference, own, rows
            )

    def distance(self, execution: Execution) -> FunctionDistance | None:
        """How far an execution's function is from the model's; None: it is the same."""
        limit = _own_limit(self._model, execution)
        if limit is None:
            return None
        about = {
            "implementation": execution.implementation,
            "mode": execution.mode,
            "dt_limit": list(limit),
            "model_dt_limit": list(_limits(self._model)[0]),
        }
        if limit in self._apart:
            return FunctionDistance(
                **about,
                rel_l2=self._apart[limit],
                kl_mean=None,
                argmax_flips=0,
                argmax_total=None,
            )
        found = _compare.output_divergence(
            self._sums[limit], self._model.config.vocab_size
        )
        return FunctionDistance(
            **about,
            rel_l2=found.measured_rel_l2,
            kl_mean=found.kl_mean,
            argmax_flips=found.argmax_flips,
            argmax_total=found.argmax_total,
        )


def _limits(model: Model) -> list[tuple[float, float]]:
    """Of the model, each once."""
    sizes = model.config.sublayers
    return list(dict.fromkeys(s.dt_limit for s in sizes if hasattr(s, "dt_limit")))


def _own_limit(model: Model, execution: Execution) -> tuple[float, float] | None:
    """Between which the execution limits dt, where that is not the model's."""
    for layer in model.sublayers:
        own = execution.at(layer)
        if not model.same_function(layer.layer, own):
            return own.dt_limit
    return None
