"""One sublayer under one execution: bounds beside measurements, one row."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._devices import as_here, chosen_device
from ..arithmetic._programs import program
from ..bounds.floor import floor_l2
from ..bounds.local import (
    Comparison,
    first_violation,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from ..bounds.passes import exact_pass, where_it_grows
from ..formats import OperandFormat
from ..implementations import Execution
from ..models import Model, Sublayer
from ..results._check import OUTPUT, LayerDivergence
from ._compare import by_position
from ._effort import Effort
from ._expansion import key_expansion


class SublayerDivergence:
    """The work on one sublayer, begun at once and gathered by `row`.

    **Arguments:**

    - `reference`, `record`: records of the reference and of the execution.
    - `effort`: whether to bound, and whether to search for what no bound on free
      roundings could beat.
    - `workers`: where the work is done side by side.
    - `stagnation`: share of state updates too small for the state's format, if any.
    """

    def __init__(
        self,
        model: Model,
        sublayer: Sublayer,
        execution: Execution,
        reference,
        record,
        effort: Effort,
        workers: Executor,
        stagnation: float | None = None,
    ):
        layer, flow = sublayer.layer, sublayer.flow
        held = parameters = model.parameters(layer, execution)
        if effort.bounds or effort.floor:
            parameters = with_operator_norms(held)
        original = (
            None
            if model.held_exactly(layer, execution)
            else model.parameters(layer, function=execution)
        )
        start = model.start(held)
        self._sublayer = sublayer
        self._execution = execution
        self._record = record
        self._arguments = execution, flow, record, parameters, original, start
        # a worker is told what holds in this thread alone
        submit = partial(workers.submit, partial(as_here, chosen_device()))
        self._bounds: tuple[Any, Any] | None = None
        self._floor = None
        if effort.bounds:
            t0 = execution, flow, record, parameters, start
            self._bounds = (
                submit(sublayer_bound, *self._arguments),
                submit(operation_bounds, *t0),
            )
        else:
            self._own = submit(_own, flow, record, held, original, start)
        if effort.floor:
            self._floor = submit(floor_l2, *self._arguments)
        self._apart = submit(_apart, record.output, reference.output)
        self._stagnation = stagnation
        sizes = model.config.sublayers[layer]
        self._expansion = key_expansion(
            reference.observed,
            record.stored,
            execution,
            getattr(sizes, "rate_scale", 1.0),
        )

    def row(self) -> LayerDivergence:
        """Wait for the work and put it together."""
        found = self._measured() if self._bounds is None else self._bounded()
        apart = self._apart.result()
        return dataclasses.replace(
            found,
            accumulated_l2=_root(apart.square),
            accumulated_max=float(apart.largest),
            accumulated_by_position=by_position(apart.square),
            reference_l2=float(apart.size),
            floor_t1_ratio=self._floor_ratio(),
            stagnation=self._stagnation,
            expansion=self._expansion,
            clipped=_clipped(self._execution, self._record.stored),
        )

    def _measured(self) -> LayerDivergence:
        """What the execution did, without any bound."""
        local, weights, largest = self._own.result()
        sites = [site for site in self._execution.sites if site in largest]
        tensors = {**self._record.stored, OUTPUT: self._record.output}
        # few executions have one: counted where the largest says so
        bad = [name for name in [*sites, OUTPUT] if not np.isfinite(largest[name])]
        return LayerDivergence(
            layer=self._sublayer.layer,
            kind=self._sublayer.kind,
            local_l2=_root(local.square),
            local_max=float(local.largest),
            weights_l2=0.0 if weights is None else _root(weights.square),
            local_by_position=by_position(local.square),
            max_abs_stored={site: float(largest[site]) for site in sites},
            non_finite=sum(int(np.sum(~np.isfinite(tensors[name]))) for name in bad),
        )

    def _bounded(self) -> LayerDivergence:
        """The same with T0 and T1 beside it."""
        assert self._bounds is not None
        t1, t0 = (work.result() for work in self._bounds)
        sites = [site for site in self._execution.sites if site in t0]
        stored = self._record.stored
        tensors = {
            **{site: (t0[site], stored[site].shape[-1]) for site in sites},
            OUTPUT: (t1.comparison, self._record.output.shape[-1]),
        }
        every = [comparison for comparison, _ in tensors.values()]
        violations = sum(int(np.sum(c.violations)) for c in every)
        ratios = {site: _l2_ratio(t0[site]) for site in sites}
        known = {site: ratio for site, ratio in ratios.items() if ratio is not None}
        measured = _root(t1.comparison.measured_square)
        bound = _root(t1.comparison.bound_square)
        shares = {site: float(share) for site, share in t1.shares.items()}
        units = {site: f.unit_roundoff for site, f in self._execution.sites.items()}
        binding_site, binding_share = where_it_grows(shares, units)
        return LayerDivergence(
            layer=self._sublayer.layer,
            kind=self._sublayer.kind,
            local_l2=measured,
            local_max=float(np.max(t1.comparison.measured_max)),
            bound_t0_ratio=min(known.values(), default=None),
            bound_t1_l2=bound,
            bound_t1_ratio=_ratio(bound, measured),
            violations=violations,
            elements_total=sum(c.violations.size * n for c, n in tensors.values()),
            first_violation=self._first_violation() if violations else None,
            weights_l2=_root(t1.weights_square),
            radius_l2=_root(t1.radius_square),
            bound_t0=known,
            local_by_position=by_position(t1.comparison.measured_square),
            bound_by_position=by_position(t1.comparison.bound_square),
            max_abs_stored={site: float(np.max(t0[site].largest)) for site in sites},
            non_finite=sum(int(np.sum(c.non_finite)) for c in every),
            binding_site=binding_site,
            binding_share=binding_share,
            elements_unbounded=sum(int(np.sum(c.unbounded)) for c in every),
            unbounded=_unbounded(tensors),
        )

    def _floor_ratio(self) -> float | None:
        if self._floor is None:
            return None
        found, measured = self._floor.result()
        return _ratio(float(found), float(measured))

    def _first_violation(self) -> dict | None:
        found = first_violation(*self._arguments)
        return None if found is None else {"tensor": found[0]} | found[1]._asdict()


class _Apart(NamedTuple):
    """How far a tensor is from another."""

    square: Float[Array, "batch seq"]
    largest: Float[Array, ""]
    size: Float[Array, ""]
    """L2 of the other."""


@program
def _apart(one, other) -> _Apart:
    distance = jnp.abs(one - other)
    square = jnp.sum(distance**2, axis=-1)
    return _Apart(square, jnp.max(distance), jnp.linalg.norm(other))


def _own(flow, record, parameters, original, start):
    """The sublayer on the execution's own input: how far the execution is from it, how
    far rounding the weights alone moves it (None where it does not), and the largest
    magnitude of each stored tensor and of the output."""
    run = partial(exact_pass, flow, record.incoming, start=start)
    held = run(p=parameters)
    reference = held if original is None else run(p=original)
    weights = None if original is None else _apart(held, reference)
    local = _apart(record.output, reference)
    return local, weights, _largest({**record.stored, OUTPUT: record.output})


@program
def _largest(tensors: Mapping[str, Array]):
    return {name: jnp.max(jnp.abs(x)) for name, x in tensors.items()}


def _root(square) -> float:
    return float(np.sqrt(np.sum(square)))


def _ratio(bound: float, measured: float) -> float | None:
    return bound / measured if measured > 0 else None


def _clipped(execution: Execution, stored: Mapping) -> dict[str, float] | None:
    """Share of the codes that are the largest, where a scale does not look at values.

    Of values that fit in, only those within half a step of the end have that code.
    """
    fixed = {
        site: fmt.largest * fmt.fixed
        for site, fmt in execution.sites.items()
        if isinstance(fmt, OperandFormat) and fmt.fixed is not None and site in stored
    }
    if not fixed:
        return None
    most = lambda site: np.abs(np.asarray(stored[site])) >= fixed[site] * (1 - 2**-20)
    return {site: float(np.mean(most(site))) for site in fixed}


def _unbounded(tensors: dict[str, tuple[Comparison, int]]) -> dict[str, float]:
    """Share of a tensor's elements without a finite bound, where it has some.

    **Arguments:**

    - `tensors`: by name, with how many channels there are.
    """
    shares = {
        name: int(np.sum(c.unbounded)) / (c.unbounded.size * channels)
        for name, (c, channels) in tensors.items()
    }
    return {name: share for name, share in shares.items() if share > 0}


def _l2_ratio(comparison: Comparison) -> float | None:
    return _ratio(_root(comparison.bound_square), _root(comparison.measured_square))
