"""A changed weight set against the base: rounded weights, a checkpoint, an adapter.

Both networks run in exact arithmetic, layer by layer and side by side. Each sublayer's
effect is measured on the base's own input, beside a certified bound; the effect at the
logits is measured on both trajectories, beside its first order: the tangent along
W' - W, pushed through the base.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._devices import side_by_side
from ..arithmetic import Exact
from ..arithmetic._programs import program
from ..bounds.parameters import change_floor, difference, sublayer_change
from ..bounds.passes import exact_pass
from ..implementations import Reference
from ..models import Model
from ..results._check import LayerChange, ParameterChangeReport
from ..sublayers.residual import Stream, final_norm, sublayer
from . import _compare
from ._request import chosen_layers, chosen_tokens
from ._weight_sets import ParameterChange


@dataclass
class _Run:
    """One change under way: its trajectory, and the tangent of the base's."""

    change: ParameterChange
    trace: Iterator
    stream: Stream
    rows: list[LayerChange] = field(default_factory=list)


def parameter_changes(
    model: Model,
    tokens,
    changes: Sequence[ParameterChange],
    progress=None,
    *,
    layers: Sequence[int] | None = None,
    bounds: bool = True,
    floor: bool = True,
) -> list[ParameterChangeReport]:
    """Measure and bound what changed weight sets do, in exact arithmetic.

    **Arguments:**

    - `model`: the base.
    - `tokens`: (seq) or (batch, seq) integers; None as in `check`.
    - `changes`: made by `rounded_weights` and `other_weights`.
    - `progress`: with `start(total, what)` and `advance()`; None is silent.
    - `layers`: sublayers to bound; None is all.
    - `bounds`: bound what is measured.
    - `floor`: search for the worst weight set that is as far from the base.

    **Returns:** one report a change, in order.
    """
    if not changes:
        return []
    ids = chosen_tokens(model, tokens).ids
    chosen = chosen_layers(model, layers)
    with jax.enable_x64(True):
        return _study(model, ids, changes, progress, chosen, bounds, floor)


def _study(
    model, ids, changes, progress, chosen, *looked_for
) -> list[ParameterChangeReport]:
    if progress is not None:
        progress.start(len(model.sublayers) + 1, "changed weights")
    base = Reference().trace(model, ids)
    embedded = model.embed(ids)
    runs = []
    for change in changes:
        moved = change.model.embed(ids) - embedded
        trace = Reference().trace(change.model, ids)
        runs.append(_Run(change, trace, Stream.start(moved, model.sublayers)))
    for place in model.sublayers:
        record: Any = next(base)
        p = model.parameters(place.layer)
        for run in runs:
            other = next(run.trace)
            changed = run.change.model.parameters(place.layer)
            step = difference(p, changed)
            if place.layer in chosen:
                weights = _relative(
                    run.change.model.raw_parameters(place.layer),
                    model.raw_parameters(place.layer),
                )
                pair = p, changed, model.start(p)
                run.rows.append(_row(place, record, other, pair, weights, *looked_for))
            found = _push(
                place.flow,
                (record.incoming, p),
                (run.stream.incoming(place), step),
                model.start(p),
            )
            run.stream = run.stream.after(place, *found, jnp.add)
        if progress is not None:
            progress.advance(1, f"layer {place.layer}")
    head = next(base)
    reports = [_report(model, head, run, ids.shape) for run in runs]
    if progress is not None:
        progress.advance(1, "logits")
    return reports


def _row(place, record, other, pair, weights, bounds: bool, floor: bool) -> LayerChange:
    """What a change does to one sublayer.

    **Arguments:**

    - `record`, `other`: of the base and of the changed network.
    - `pair`: parameters of either, and the state before the first token.
    - `weights`: how far each parameter changed; empty where none did.
    - `bounds`, `floor`: as of `parameter_changes`.
    """
    inputs = place.flow, record.incoming, *pair
    local = largest = 0.0
    bound, violations, unbounded = (0.0, 0, 0) if bounds else (None, None, None)
    worst = None
    if weights and bounds:
        found = sublayer_change(*inputs)
        found = jax.tree.map(np.asarray, found)
        local, bound = _root(found.measured_square), _root(found.bound_square)
        largest = float(np.max(found.measured_max))
        violations = int(np.sum(found.violations))
        unbounded = int(np.sum(found.unbounded))
    elif weights:
        _, changed, start = pair
        after = exact_pass(place.flow, record.incoming, changed, start)
        apart = np.abs(np.asarray(after) - np.asarray(record.output))
        local, largest = _root(apart**2), float(np.max(apart))
    if weights and floor:
        searched, own = change_floor(*inputs)
        worst = float(searched) / float(own) if own > 0 else None
    accumulated, size = map(float, _lengths(other.output, record.output))
    return LayerChange(
        layer=place.layer,
        kind=place.kind,
        weights=weights,
        local_l2=local,
        local_max=largest,
        bound_l2=bound,
        bound_ratio=bound / local if bound is not None and local > 0 else None,
        floor_ratio=worst,
        violations=violations,
        elements_total=int(record.output.size) if bounds else None,
        accumulated_l2=accumulated,
        reference_l2=size,
        elements_unbounded=unbounded,
    )


def _relative(changed: dict, base: dict) -> dict[str, float]:
    """||W' - W|| / ||W|| of each parameter that changed."""
    found = {}
    for name, array in base.items():
        before = array.astype(np.float64)
        apart = np.linalg.norm(changed[name].astype(np.float64) - before)
        if apart > 0:
            size = np.linalg.norm(before)
            found[name] = float(apart / size) if size > 0 else float("inf")
    return found


def _root(square) -> float:
    return float(np.sqrt(np.sum(square)))


@program
def _lengths(output, reference):
    """L2 of the difference, and of the reference."""
    return jnp.linalg.norm(output - reference), jnp.linalg.norm(reference)


@program
def _push(flow, primals, tangents, start):
    """Tangents of the stream and of the sublayer's output, over a batch."""

    def run(incoming, p):
        one = lambda i: sublayer(Exact(), flow, i, p, start)[:2]
        return side_by_side(one)(incoming)

    return jax.jvp(run, primals, tangents)[1]


@program
def _push_norm(primals, tangents):
    def run(residual, hidden, p):
        return jax.vmap(lambda r, h: final_norm(Exact(), r, h, p))(residual, hidden)

    return jax.jvp(run, primals, tangents)


@program
def _add_head(sums, normed, pushed, rows, changed, reference, other, end, behind):
    """Take in one slice of the vocabulary, but for `behind` rows that are in the sums.

    **Returns:** (4, 2, batch, seq): sums and sums of squares over the vocabulary, of
    the logits' tangent, of what it leaves of the difference, of the difference, and
    of the logits.
    """
    product = lambda x, w: jnp.matmul(x, w.T, precision="highest")
    # the logits' tangent takes the multiplier that the logits themselves have
    tangent = product(pushed, rows) + product(normed, changed - rows)
    tangent = tangent * end.slope(reference)
    moved = other - reference
    seen = jnp.stack([tangent, moved - tangent, moved, reference])
    seen = jnp.where(jnp.arange(len(rows)) >= behind, seen, 0.0)
    return sums + jnp.stack([seen.sum(axis=-1), (seen**2).sum(axis=-1)], axis=1)


def _report(model: Model, head, run: _Run, shape) -> ParameterChangeReport:
    changed = run.change.model
    other = next(run.trace)
    p = model.final_norm()
    step = difference(p, changed.final_norm())
    normed, pushed = _push_norm(
        (head.residual, head.hidden, p), (run.stream.residual, run.stream.hidden, step)
    )
    logits = _compare.no_logits(*shape)
    sums = np.zeros((4, 2, *shape))
    outside = _Squares()
    for part, name in (("final_norm", "norm_f"), ("embedding_norm", "embedding_norm")):
        for bias in ("", "_bias"):
            both = (getattr(m.layout, f"{part}{bias}")() for m in (changed, model))
            after, before = both
            if after is not None and before is not None:
                outside.take(name, after, before)
    for rows in model.vocabulary_slices():
        ends = rows.start, rows.stop
        reference, moved = head.logits(*ends), other.logits(*ends)
        logits = _compare.add_logits(logits, reference, moved, rows)
        new = np.arange(*ends)[rows.behind :]
        outside.take(
            "embedding", changed.layout.embedding(new), model.layout.embedding(new)
        )
        ours, theirs = model.head(*ends).matrix, changed.head(*ends).matrix
        outside.take(
            "head", *(np.asarray(head)[rows.behind :] for head in (theirs, ours))
        )
        sums = _add_head(
            sums,
            normed,
            pushed,
            ours,
            theirs,
            reference,
            moved,
            model.config.logits_end,
            rows.behind,
        )
    vocabulary = model.config.vocab_size
    total, square = np.asarray(sums).swapaxes(0, 1)
    # softmax does not see a token's mean
    centred = np.maximum(square - total**2 / vocabulary, 0.0).sum(axis=(1, 2))
    first, rest, whole, size = np.sqrt(centred)
    return ParameterChangeReport(
        name=run.change.name,
        kind=run.change.kind,
        layers=run.rows,
        output=_compare.output_divergence(logits, vocabulary),
        # a head of zeros (as muP begins) has no logits to be relative to
        predicted_rel_l2=float(first / size) if size > 0 else math.nan,
        nonlinearity=float(rest / whole) if whole > 0 else None,
        outside=outside.relative(),
        files=run.change.files,
        weight_format=run.change.weight_format,
        rounded=list(run.change.rounded),
        kept=list(run.change.kept),
        coverage=run.change.coverage,
    )


class _Squares:
    """||W' - W|| / ||W|| of parameters that come in slices."""

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}

    def take(self, name: str, changed: np.ndarray, base: np.ndarray) -> None:
        """Take in a slice."""
        base = base.astype(np.float64)
        apart = changed.astype(np.float64) - base
        squares = np.array([np.sum(apart**2), np.sum(base**2)])
        self._sums[name] = self._sums.get(name, 0.0) + squares

    def relative(self) -> dict[str, float]:
        """Those that changed."""
        with np.errstate(divide="ignore"):
            return {
                name: float(np.sqrt(apart / size))
                for name, (apart, size) in self._sums.items()
                if apart > 0
            }
