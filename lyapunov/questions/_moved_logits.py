"""Runs with some weights of another weight set, side by side with the reference.

Up to the first sublayer in which a run differs it is the reference, so that a single
matrix costs a forward from there on.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..arithmetic import Exact
from ..arithmetic._programs import program
from ..implementations._reference import run_head, run_layer, run_norm
from ..models import Model
from ..models._weight_units import Place
from ..results._ranking import MovedLogits
from ..sublayers.groups import OUTSIDE
from ..sublayers.norm import Norm, normalise
from ..sublayers.residual import Stream
from . import _compare


class _Run(NamedTuple):
    """Which parameters are the other set's, and where the run has come to."""

    places: frozenset[Place]
    stream: Stream | None
    """None: the reference's still."""

    def has(self, name: str) -> bool:
        """Whether it has what is in no sublayer of the other set."""
        return (OUTSIDE, name) in self.places

    def chosen(self, name: str, ours: Any, theirs: Any) -> Any:
        """What it has under a name outside of sublayers."""
        return theirs if self.has(name) else ours


def moved_logits(
    model: Model,
    changed: Model,
    ids: np.ndarray,
    wanted: Sequence[frozenset[Place]],
    progress=None,
) -> list[MovedLogits]:
    """Measure what each set of parameters does alone, in fp64.

    **Arguments:**

    - `model`: the reference. `changed`: the same network with the other weights.
    - `ids`: (batch, seq).
    - `wanted`: which parameters of `changed` each run has.
    - `progress`: with `start(total, what)` and `advance()`; None is silent.

    **Returns:** one a set, in order.
    """
    if not wanted:
        return []
    if progress is not None:
        progress.start(len(model.sublayers) + 1, "weights one by one")
    base = Stream.start(model.embed(ids), model.sublayers)
    runs = [_begun(model, changed, ids, places) for places in wanted]
    for place in model.sublayers:
        ours = model.arrays(place.layer)
        p = model.parameters(place.layer)
        theirs: dict[str, Any] = {}
        for i, run in enumerate(runs):
            here = {name for layer, name in run.places if layer == place.layer}
            if run.stream is None and not here:
                continue
            own = p
            if here:
                theirs = theirs or changed.arrays(place.layer)
                mixed = ours | {name: theirs[name] for name in here}
                own = model.parameters_of(place.layer, mixed)
            stream = base if run.stream is None else run.stream
            runs[i] = run._replace(stream=_after(model, place, stream, own))
        base = _after(model, place, base, p)
        if progress is not None:
            progress.advance(1, f"layer {place.layer}")
    found = _of_logits(model, changed, ids.shape, base, runs)
    if progress is not None:
        progress.advance(1, "logits")
    return found


def _begun(model: Model, changed: Model, ids, places: frozenset[Place]) -> _Run:
    run = _Run(places, None)
    names = ("embedding", "embedding_norm", "embedding_norm_bias")
    if not any(run.has(name) for name in names):
        return run
    rows = run.chosen("embedding", model, changed).embedding_rows(ids)
    norm = _mixed(run, model.embedding_norm(), changed.embedding_norm(), names[1])
    return run._replace(stream=Stream.start(_normalised(rows, norm), model.sublayers))


def _mixed(run: _Run, ours: Norm | None, theirs: Norm | None, name: str):
    if ours is None or theirs is None:
        return ours
    return Norm(
        run.chosen(name, ours.weight, theirs.weight),
        run.chosen(f"{name}_bias", ours.bias, theirs.bias),
        ours.epsilon,
        ours.centred,
        ours.offset,
    )


@program
def _normalised(rows, norm):
    return normalise(Exact(), rows, norm)


def _after(model: Model, place, stream: Stream, p) -> Stream:
    incoming = stream.incoming(place)
    residual, output, _ = run_layer(place.flow, incoming, p, model.start(p))
    return stream.after(place, residual, output, jnp.add)


def _of_logits(model: Model, changed: Model, shape, base: Stream, runs):
    end = model.config.logits_end
    norms = model.final_norm(), changed.final_norm()
    normed = run_norm(base.residual, base.hidden, norms[0])
    each = []
    for run in runs:
        stream = base if run.stream is None else run.stream
        own = _mixed(run, *norms, "norm_f")
        each.append(run_norm(stream.residual, stream.hidden, own))
    sums = [_compare.no_logits(*shape) for _ in runs]
    for rows in model.vocabulary_slices():
        ends = rows.start, rows.stop
        head = model.head(*ends)
        other = changed.head(*ends) if any(run.has("head") for run in runs) else head
        reference = run_head(normed, head, end)
        for i, run in enumerate(runs):
            logits = run_head(each[i], run.chosen("head", head, other), end)
            sums[i] = _compare.add_logits(sums[i], reference, logits, rows)
    return [_told(one, model.config.vocab_size) for one in sums]


def _told(sums, vocabulary: int) -> MovedLogits:
    found = _compare.output_divergence(sums, vocabulary)
    number = lambda x: math.nan if x is None else x
    return MovedLogits(
        kl_mean=number(found.kl_mean),
        kl_max=number(found.kl_max),
        rel_l2=number(found.measured_rel_l2),
        flips=found.argmax_flips,
        ties=found.argmax_ties,
        total=found.argmax_total,
    )
