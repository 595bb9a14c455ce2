"""Which matrices should stay in 16 bits: what quantising each moves at the logits.

Predicted for every one of them by one way back through the reference, measured for the
first ones alone, and for what keeping the best of them gives back.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from .._arguments import progress_or_none
from .._errors import UsageError
from .._version import __version__
from .._xla import demand_flags
from ..bounds.weight_pulls import Derivatives, WeightPulls
from ..implementations import Reference
from ..models import Model
from ..models._load import demand_head, model_of
from ..models._rounded_layout import rounded_layout
from ..models._weight_units import EveryMatrix, Place, WeightUnit, weight_units
from ..results._ranking import (
    KeptWeights,
    RankedMatrix,
    RankedSublayer,
    WeightRanking,
)
from ..sublayers.groups import OUTSIDE, rounded_group
from ._environment import environment
from ._kept_weights import chosen_to_keep, ignore_lists
from ._moved_logits import moved_logits
from ._request import checkpoint_facts, chosen_tokens, device_named, tokens_facts
from ._settings import checked_settings


ASSUMPTIONS = [
    "a prediction is of first order in the change of the weights and of second in the "
    "logits: it is an estimate, and no bound",
    "everything but the weights is exact: activations are not quantised, and nothing "
    "is rounded beside them",
    "weights are rounded to nearest under the format's scales, without calibration: a "
    "quantiser that chooses its codes by data (GPTQ, AWQ) moves the logits less",
]


PROBES, MEASURED = 16, 8
"""Of each sequence, and of matrices and of sublayers, where nobody says otherwise."""


def rank_weights(
    model: Any = None,
    tokens=None,
    *,
    format: str = "fp8_e4m3",  # noqa: A002 - the option's word
    n_probes: int = PROBES,
    measured: int = MEASURED,
    keep: float = 0.1,
    seed: int = 0,
    device: str | None = None,
    progress=None,
) -> WeightRanking:
    """Rank matrices and sublayers by what quantising each moves at the logits.

    **Arguments:**

    - `model`: as for `check`.
    - `tokens`: (seq) or (batch, seq) integers, or `models.Tokens`, as for `check`.
    - `format`: FORMAT or FORMAT:GROUP, as `round_weights` takes them. Without a group
      the embedding, the head and routers are ranked as well, and are not among what
      is quantised: most quantisers leave them as they are.
    - `n_probes`: behind every prediction, of each sequence; its relative standard
      error is at most about the root of 2 over their number.
    - `measured`: how many of the first matrices, and of the first sublayers, are run
      alone; with 0 nothing is, and the ranking is the prediction's.
    - `keep`: share of the quantised numbers that may stay in 16 bits.
    - `seed`: of random tokens and probes.
    - `device`, `progress`: as for `check`.

    **Returns:** every matrix and sublayer by rank, and what to keep, as the lists that
    quantisers and servers read.

    **Raises:** `LyapunovError` with a hint: for an unknown format, for a group that the
    network has not, and for a model without a head.
    """
    named = dict(locals())  # the front is flat; a report repeats it
    for beside in ("model", "tokens", "progress"):
        del named[beside]
    began = time.perf_counter()
    settings = checked_settings(named)
    progress = progress_or_none(progress)
    demand_flags()
    model = model_of(model)
    demand_head(model)
    group = rounded_group(settings["format"])
    every = EveryMatrix(*group)
    layout = rounded_layout(model.layout, every)
    units = weight_units(model.layout, group)
    if not any(unit.quantised for unit in units):
        raise UsageError(
            f"quantisers leave all of {group.group!r} as it is here",
            hint=f"name what is to be ranked: {group.format}:head",
        )
    given = chosen_tokens(model, tokens, seed)
    with jax.enable_x64(True), jax.default_device(device_named(device)):
        found = _Ranking(
            model, Model(layout, model.source), given.ids, units, settings, progress
        )
        matrices, sublayers, kept = found.matrices(), found.sublayers(), found.kept()
        surroundings = environment()
    return WeightRanking(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=settings,
        environment=surroundings,
        assumptions=ASSUMPTIONS,
        checkpoint=checkpoint_facts(model),
        tokens=tokens_facts(given),
        format=str(group),
        meaning=layout.meaning,
        matrices=matrices,
        sublayers=sublayers,
        kept=kept,
        unmoved=sum(row.relative_change == 0 for row in matrices),
        seconds=time.perf_counter() - began,
    )


class Predicted(NamedTuple):
    """A divergence that is predicted, nats a token."""

    kl: float
    stderr: float


def predicted(
    derivatives: Derivatives, places: Sequence[Place], tokens: int
) -> Predicted:
    """The mean divergence a token of changing all of these parameters at once.

    **Arguments:**

    - `derivatives`: by place, (sequences, probes).
    - `tokens`: of each sequence.
    """
    along = sum(derivatives[place] for place in places if place in derivatives)
    squares = np.square(np.ravel(along)) / (2 * tokens)
    stderr = np.std(squares, ddof=1) / squares.size**0.5 if squares.size > 1 else 0.0
    return Predicted(float(np.mean(squares)), float(stderr))


class _Ranking:
    """One ranking under way: predictions of all, then runs of the first."""

    def __init__(
        self,
        model: Model,
        changed: Model,
        ids: np.ndarray,
        units: list[WeightUnit],
        settings: dict[str, Any],
        progress,
    ):
        self._model, self._changed, self._ids = model, changed, ids
        self._units, self._settings = units, settings
        self._derivatives = derivatives_of(
            model,
            changed,
            ids,
            n_probes=settings["n_probes"],
            seed=settings["seed"],
            progress=progress,
        )
        self._change = _relative_changes(model, changed, units)
        self._alone = [self._of(unit.places) for unit in units]
        self._inside = {
            layer.layer: [
                place
                for unit in units
                if unit.quantised
                for place in unit.places
                if place[0] == layer.layer
            ]
            for layer in model.sublayers
        }
        self._inside = {i: places for i, places in self._inside.items() if places}
        self._layers = {i: self._of(places) for i, places in self._inside.items()}
        self._all = [place for u in units if u.quantised for place in u.places]
        self._measure(progress)

    def _of(self, places: Sequence[Place]) -> Predicted:
        return predicted(self._derivatives, places, self._ids.shape[1])

    def _measure(self, progress) -> None:
        """Run the first units and sublayers alone, then all, then all but the best."""
        most = self._settings["measured"]
        self._measured_all = self._measured_rest = None
        moves = [i for i in range(len(self._units)) if self._change[i] > 0]
        first = sorted(moves, key=lambda i: -self._alone[i].kl)[:most]
        layers = sorted(self._layers, key=lambda i: -self._layers[i].kl)[:most]
        wanted = [frozenset(self._units[i].places) for i in first]
        wanted += [frozenset(self._inside[i]) for i in layers]
        if most:
            wanted.append(frozenset(self._all))
        run = partial(moved_logits, self._model, self._changed, self._ids)
        found = run(wanted, progress)
        self._measured = dict(zip(first, found, strict=False))
        self._measured_layers = dict(zip(layers, found[len(first) :], strict=False))
        self._best = self._chosen()
        if most:
            self._measured_all = found[-1]
            (self._measured_rest,) = run([frozenset(self._rest)], None)

    def _kl(self, i: int) -> float:
        return self._measured[i].kl_mean if i in self._measured else self._alone[i].kl

    def _chosen(self) -> list[int]:
        """The units to keep."""

        def moves(together: Sequence[int]) -> float:
            if len(together) == 1:
                return self._kl(together[0])
            places = [place for i in together for place in self._units[i].places]
            return self._of(places).kl

        return chosen_to_keep(self._units, moves, self._settings["keep"])

    @property
    def _rest(self) -> list[Place]:
        """What is quantised while the best are kept."""
        kept = {place for i in self._best for place in self._units[i].places}
        return [place for place in self._all if place not in kept]

    # ---- what is told

    def matrices(self) -> list[RankedMatrix]:
        """Every unit, by rank."""
        total = sum(unit.size for unit in self._units if unit.quantised)
        order = sorted(range(len(self._units)), key=lambda i: -self._kl(i))
        return [self._matrix(rank, i, total) for rank, i in enumerate(order, 1)]

    def _matrix(self, rank: int, i: int, total: int) -> RankedMatrix:
        unit, kinds = self._units[i], self._model.config.sublayers
        inside = [layer for layer, _ in unit.places if isinstance(layer, int)]
        layers = list(dict.fromkeys(inside))
        return RankedMatrix(
            rank=rank,
            module=unit.name,
            modules=list(unit.modules),
            layers=layers,
            kind=kinds[layers[0]].kind if layers else OUTSIDE,
            parameters=list(dict.fromkeys(name for _, name in unit.places)),
            size=unit.size,
            share=unit.size / total,
            saved_bytes=unit.stored_bytes - unit.bytes,
            relative_change=self._change[i],
            predicted_kl=self._alone[i].kl,
            predicted_stderr=self._alone[i].stderr,
            quantised=unit.quantised,
            kept=i in self._best,
            measured=self._measured.get(i),
        )

    def sublayers(self) -> list[RankedSublayer]:
        """Every sublayer in which something is quantised, by rank."""
        sizes = {i: 0 for i in self._layers}
        for unit in self._units:
            for i in {layer for layer, _ in unit.places} & set(sizes):
                sizes[int(i)] += unit.size if unit.quantised else 0
        total = sum(unit.size for unit in self._units if unit.quantised)
        rows = [
            RankedSublayer(
                rank=0,
                layer=i,
                kind=self._model.config.sublayers[i].kind,
                module=self._model.layout.modules[i],
                size=sizes[i],
                share=sizes[i] / total,
                predicted_kl=one.kl,
                predicted_stderr=one.stderr,
                measured=self._measured_layers.get(i),
            )
            for i, one in self._layers.items()
        ]
        rows.sort(key=lambda row: -row.kl)
        return [dataclasses.replace(row, rank=rank) for rank, row in enumerate(rows, 1)]

    def kept(self) -> KeptWeights:
        """What keeping the best gives back, and how to say it to a quantiser."""
        units, best = self._units, self._best
        total = sum(unit.size for unit in units if unit.quantised)
        return KeptWeights(
            limit=self._settings["keep"],
            modules=[units[i].name for i in best],
            share=sum(units[i].size for i in best) / total,
            bytes=sum(units[i].stored_bytes - units[i].bytes for i in best),
            predicted_kl_all=self._of(self._all).kl,
            predicted_kl=self._of(self._rest).kl,
            measured_all=self._measured_all,
            measured=self._measured_rest,
            ignore=ignore_lists([units[i] for i in best], units),
        )


def derivatives_of(
    model: Model,
    changed: Model,
    ids: np.ndarray,
    *,
    n_probes: int,
    seed: int,
    progress=None,
) -> Derivatives:
    """What each changed parameter does to probes of the logits, by place.

    **Arguments:**

    - `changed`: the same network with other weights.
    - `ids`: (batch, seq).
    - `n_probes`: of each sequence.
    """
    count = len(model.sublayers)
    if progress is not None:
        progress.start(2 * count + 1, "every weight at once")
    pulls = WeightPulls(model, changed, ids, n_probes=n_probes, seed=seed)
    records: Any = Reference().trace(model, ids)
    for place in model.sublayers:
        pulls.sublayer(next(records))
        _advance(progress, f"layer {place.layer}")
    head = next(records)
    pulls.head(head)
    for rows in model.vocabulary_slices():
        pulls.logits(rows, head.logits(rows.start, rows.stop))
    _advance(progress, "logits")
    for layer in pulls.reverse():
        _advance(progress, f"back through layer {layer}")
    return pulls.derivatives


def _advance(progress, what: str) -> None:
    if progress is not None:
        progress.advance(1, what)


def _relative_changes(
    model: Model, changed: Model, units: Sequence[WeightUnit]
) -> list[float]:
    """||W' - W|| / ||W|| of each unit; 0 where the format holds it as it is."""
    squares: dict[Place, tuple[float, float]] = {}
    for layer in model.sublayers:
        theirs = changed.raw_parameters(layer.layer)
        for name, array in model.raw_parameters(layer.layer).items():
            squares[layer.layer, name] = _squares(theirs[name], array)
    for name, (before, after) in _around(model, changed).items():
        squares[OUTSIDE, name] = _squares(after, before)
    rows = [np.arange(r.start, r.stop)[r.behind :] for r in model.vocabulary_slices()]
    for name in ("embedding", "head"):
        each = [_of_rows(model, changed, name, some) for some in rows]
        total = np.sum(each, axis=0)
        squares[OUTSIDE, name] = float(total[0]), float(total[1])
    found = []
    for unit in units:
        apart, size = np.sum([squares[place] for place in unit.places], axis=0)
        ratio = np.sqrt(apart / size) if size > 0 else np.sqrt(apart)
        found.append(float(ratio))
    return found


def _around(model: Model, changed: Model) -> dict[str, tuple[Any, Any]]:
    """Norms outside of sublayers, of either network."""
    found = {}
    for part, name in (("final_norm", "norm_f"), ("embedding_norm", "embedding_norm")):
        for bias in ("", "_bias"):
            both = [getattr(m.layout, f"{part}{bias}")() for m in (model, changed)]
            if both[0] is not None:
                found[f"{name}{bias}"] = tuple(both)
    return found


def _of_rows(model: Model, changed: Model, name: str, rows: np.ndarray):
    def read(layout):
        if name == "embedding":
            return layout.embedding(rows)
        return layout.head(int(rows[0]), int(rows[-1]) + 1)

    return _squares(read(changed.layout), read(model.layout))


def _squares(changed: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    base = base.astype(np.float64)
    apart = changed.astype(np.float64) - base
    return float(np.sum(apart**2)), float(np.sum(base**2))
