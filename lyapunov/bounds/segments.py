"""T0, T1 and z of one sublayer whose tokens were computed in several calls.

A text run step by step, in chunks, or as a prompt and then steps is a row of
segments, each under its own execution; what a kind hands on (`hand_over`) goes from one
to the next with its error: a state, rounded to the format of its cache, and windows and
rows of a cache as their sites stored them. Consecutive calls of one execution are one
segment where `implementations._segment.merged` says why: of one scan they are another
bracketing, which the scan lemma covers (`arithmetic.bounded`), of one in chunks the
chunks begin with the calls (`sublayers.ssd`), and elsewhere tokens meet in no other way
than all at once.

z at a token is the L2 error of the sublayer's output over its root mean square under
random roundings of the declared stores (`arithmetic.sampled`), from exact arithmetic
with the held weights on the execution's own input. A right execution's z is of order
1: its roundings are not random, but d_model outputs average over many of them. Where
one rounding decides, few draws of it may all be small, so that z is estimated anew from
many where it is large. A token whose choice of experts roundings decide has no z: what
another expert puts out is no sum of roundings, and T1 alone holds it.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._devices import as_here, chosen_device, side_by_side
from ..arithmetic import Bounded, Exact, RoundingModel, Sampled
from ..arithmetic._interface import CHOSEN
from ..arithmetic._programs import program
from ..arithmetic.random_keys import keys_of
from ..formats import FP32
from ..implementations._compiled import PRODUCTS
from ..implementations._segment import Segment
from ..sublayers.residual import Incoming, sublayer
from ..sublayers.sites import FLOW_ORDER, NO_ROW_A_TOKEN
from .local import Held, around, hold


# What fp64 leaves of a token's output: no error below is told from none.
FP64_SHARE_OF_OUTPUT = 2.0**-40

# A z above this is estimated anew, from so many times the draws. Of a single uniform
# rounding z is sqrt(3) at most; four draws of it are all below a sixth of their root
# mean square, so that it looks like 6 sigma, once in 260 tokens, 64 draws never.
DOUBTFUL_Z, MORE_DRAWS = 3.0, 16


class SublayerAudit(NamedTuple):
    """One sublayer of one run."""

    tensors: dict[str, Held]
    """T0, by site."""
    output: Held
    """T1."""
    z: Float[Array, "batch seq"]


class _Plan:
    """What shapes the computation: the sublayer, and the segments' spans and depths."""

    def __init__(self, segments: Sequence[Segment], sizes: Any):
        self._executions = tuple(s.execution for s in segments)
        self.spans = tuple((s.start, s.stop) for s in segments)
        self.sizes = sizes
        # a scan's depth counts as a number: calls whose depths add up to that of the
        # whole text are one computation, but for where chunks begin
        self._key = (
            self.spans,
            sizes,
            tuple(
                (d.accumulation, d.reduction, *form)
                for s in segments
                for e in (s.execution,)
                for d in (e.depths,)
                for form in (self._form(e, s.stop - s.start),)
            ),
        )

    def _form(self, execution, seq: int) -> tuple:
        """What is compiled, and how a recurrence runs where there is one."""
        if not self.sizes.recurrent:
            return (execution.compiled, execution.form.ranks)
        form = execution.form
        if not form.chunked:  # calls of one scan are another bracketing
            form = dataclasses.replace(form, calls=())
        return execution.compiled, execution.scan_depth(seq), form

    def bounded(self, i: int, sites, model, anchors=None, **kept):
        """The bounding interpreter of one segment."""
        first, stop = self.spans[i]
        return self._executions[i].bounded(
            stop - first, sites, model, anchors=anchors, centred=True, **kept
        )

    @property
    def compiled(self) -> bool:
        """Whether what a trace stored need not be what was read on."""
        return any(execution.compiled for execution in self._executions)

    def sampled(self, i: int, sites, key, **inner):
        """The drawing interpreter of one segment."""
        own = self._executions[i]
        return Sampled(sites, key, form=own.form, **inner)

    def __eq__(self, other) -> bool:
        return isinstance(other, _Plan) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __getstate__(self) -> tuple:
        return self._key  # all that a program is kept by


class _Inputs(NamedTuple):
    """One sublayer of one run, arrays alone."""

    sites: tuple[dict, ...]
    caches: tuple[dict, ...]
    """The site `state` of what each segment starts from; empty for fp32."""
    models: tuple[RoundingModel, ...]
    incoming: Incoming
    read: Incoming
    """The same with the errors that what was read may have."""
    output: Float[Array, "batch seq d_model"]
    stored: dict[str, Float[Array, "batch seq channels"]]


def audit_sublayer(
    segments: Sequence[Segment],
    sizes,
    record,
    parameters,
    originals,
    start,
    keys,
    read: Incoming | None = None,
) -> SublayerAudit:
    """Hold one sublayer of a run to its bounds, and tell its error in sigmas.

    **Arguments:**

    - `segments`: of the whole text, one after another, `merged`.
    - `sizes`: of the sublayer.
    - `record`: a `SublayerRecord` of all tokens.
    - `parameters`: for each segment as its execution holds them, with operator norms if
      known.
    - `originals`: for each segment the checkpoint's own parameters in the function that
      it computes; those held, where they are the same.
    - `start`: the state before the first token.
    - `keys`: one random key a probe, of all probes that sigma is estimated from.
    - `read`: the record's `incoming` with an error where the run may have read another
      version of it; None: it read that.
    """
    common = set.intersection(*(set(s.execution.sites) for s in segments))
    inputs = _Inputs(
        tuple(s.execution.site_numbers() for s in segments),
        tuple(
            {} if s.cache is FP32 else {"state": s.cache.numbers()} for s in segments
        ),
        tuple(s.execution.constants.model() for s in segments),
        record.incoming,
        record.incoming if read is None else read,
        record.output,
        {
            s: record.stored[s]
            for s in FLOW_ORDER
            if s in record.stored
            and s in common
            # what has no row a token is of one call
            and (len(segments) == 1 or s not in NO_ROW_A_TOKEN)
        },
    )
    plan = _Plan(segments, sizes)
    inside = all(s.execution.sites["out"] is FP32 for s in segments)
    parameters, originals = _once(parameters), _once(originals)
    given = plan, inputs, parameters, start
    # on small models compiling is nearly all there is to do
    with ThreadPoolExecutor(3) as workers:
        begun = lambda *work: workers.submit(as_here, chosen_device(), *work)
        operations = begun(_operations, *given)
        exact, exactly = _exact(*given)
        drawn = begun(_sigmas, *given, keys, inside, exact)
        if list(map(id, originals)) != list(map(id, parameters)):
            exact, _ = _exact(plan, inputs, originals, start)
        output, by_bounds = begun(_output, *given, exact).result()
        z = drawn.result()
    if by_bounds is not None:
        same = (by_bounds.error == 0) & (by_bounds.value == exactly)
        z = jnp.asarray(np.where(np.all(same, axis=-1), z, 0.0))
    return SublayerAudit(operations.result(), output, z)


def _once(of_segments) -> tuple:
    """Parameters of all segments, or the one set that all of them have."""
    first, *others = of_segments
    return (first,) if all(p is first for p in others) else (first, *others)


def _chained(plan: _Plan, inputs, at, incoming, parameters, start, stored=None):
    """The sublayer segment by segment; `at(i, sites, anchors)` makes an interpreter.

    **Returns:** the outputs joined, and each segment's interpreter.
    """
    outputs, interpreters = [], []
    for i, (first, stop) in enumerate(plan.spans):
        anchors = stored or {}
        if len(plan.spans) > 1:  # tensors of one call need not begin with its tokens
            anchors = {s: x[first:stop] for s, x in anchors.items()}
        interpreter = at(i, inputs.sites[i], anchors)
        if i:
            start = plan.sizes.handed(at(i, inputs.caches[i], {}), start)
        given = jax.tree.map(lambda x: x[first:stop], incoming)  # noqa: B023
        p = parameters[i if len(parameters) > 1 else 0]
        _, output, start = sublayer(interpreter, plan.sizes.flow, given, p, start)
        outputs.append(output)
        interpreters.append(interpreter)
    return interpreters[0].join(outputs), interpreters


@program
def _operations(plan: _Plan, inputs: _Inputs, parameters, start):
    def one(incoming, stored):
        def at(i, sites, anchors):
            if plan.compiled:  # from what has one version alone the flow goes on
                anchors = {s: x for s, x in anchors.items() if s in PRODUCTS}
            model = inputs.models[i]
            every = (lambda bound, _: bound) if plan.compiled else None
            return plan.bounded(i, sites, model, anchors, keeps=every)

        _, made = _chained(plan, inputs, at, incoming, parameters, start, stored)
        return {
            site: made[0].join([m.records[site] for m in made])
            for site in stored
            if all(site in m.records for m in made)
        }

    bounds = side_by_side(one)(inputs.read, inputs.stored)
    return {site: hold(inputs.stored[site], bounds[site]) for site in bounds}


@program
def _output(plan: _Plan, inputs: _Inputs, parameters, start, reference):
    def bounded(incoming) -> tuple[Bounded, Bounded | None]:
        at = lambda i, sites, _: plan.bounded(i, sites, inputs.models[i])
        output, made = _chained(plan, inputs, at, incoming, parameters, start)
        return output, _chosen(made)

    centre, chosen = side_by_side(bounded)(inputs.read)
    return hold(inputs.output, around(reference, centre)), chosen


def _chosen(interpreters):
    """Experts that each token goes through, in all calls; None where none is chosen."""
    found = [at.observed[CHOSEN] for at in interpreters if CHOSEN in at.observed]
    return interpreters[0].join(found) if found else None


@program
def _exact(plan: _Plan, inputs: _Inputs, parameters, start):
    """In exact arithmetic calls are one, unless each computes a function of its own.

    **Returns:** the output, and the choice of experts.
    """

    def run(incoming):
        at = Exact()
        if len(parameters) == 1:
            output = sublayer(at, plan.sizes.flow, incoming, parameters[0], start)[1]
            return output, _chosen([at])
        fresh = lambda i, sites, _: Exact()
        output, made = _chained(plan, inputs, fresh, incoming, parameters, start)
        return output, _chosen(made)

    return side_by_side(run)(inputs.incoming)


def _sigmas(plan: _Plan, inputs, parameters, start, keys, inside: bool, exact):
    """z, from more draws where few say that it is large."""
    given = plan, inputs, parameters, start
    words = jax.random.key_data
    z, error, square, own = _z(*given, words(keys), inside, exact)
    if not float(jnp.max(z)) > DOUBTFUL_Z:
        return z
    for i in range(1, MORE_DRAWS):
        more = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)  # noqa: B023
        square = square + _z(*given, words(more), inside, exact)[2]
    return _over(error, square / MORE_DRAWS, own)


def _over(error, square, own):
    # no sigma where a value may overflow, nor where exact arithmetic itself fails
    known = jnp.isfinite(square) & (error > 0)
    return jnp.where(known, error / jnp.sqrt(square + own**2), 0.0)


@program
def _z(plan: _Plan, inputs: _Inputs, parameters, start, words, inside: bool, exact):
    """z, the error, the mean square of draws, what fp64 leaves."""
    # roundings of the fp32 operations between stores, where stores are no larger
    inner = {"inner": FP32.numbers(), "inner_sums": True} if inside else {}

    def probe(key):
        def one(key, incoming):
            own = lambda i: jax.random.fold_in(key, i)
            at = lambda i, sites, _: plan.sampled(i, sites, own(i), **inner)
            return _chained(plan, inputs, at, incoming, parameters, start)[0]

        per_sequence = jax.random.split(key, exact.shape[0])
        drawn = side_by_side(one)(per_sequence, inputs.incoming)
        return jnp.sum((drawn - exact) ** 2, axis=-1)

    square = jnp.mean(jax.lax.map(probe, keys_of(words)), axis=0)
    own = FP64_SHARE_OF_OUTPUT * jnp.linalg.norm(exact, axis=-1)
    error = jnp.linalg.norm(inputs.output - exact, axis=-1)
    return _over(error, square, own), error, square, own
