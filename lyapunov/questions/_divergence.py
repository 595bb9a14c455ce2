"""One sublayer under one execution: bounds beside measurements, one row."""

from concurrent.futures import Executor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._devices import as_here, chosen_device
from ..bounds.floor import floor_l2
from ..bounds.local import (
    Comparison,
    first_violation,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from ..bounds.passes import where_it_grows
from ..implementations import Execution
from ..models import Model, Sublayer
from ..results._check import OUTPUT, LayerDivergence
from ._compare import by_position


class SublayerDivergence:
    """The work on one sublayer, begun at once and gathered by `row`.

    **Arguments:**

    - `reference`, `record`: records of the reference and of the execution.
    - `floor`: whether to search for what no bound on free roundings could beat.
    - `workers`: where T0, T1 and the search run side by side.
    - `stagnation`: share of state updates too small for the state's format, if any.
    """

    def __init__(
        self,
        model: Model,
        sublayer: Sublayer,
        execution: Execution,
        reference,
        record,
        floor: bool,
        workers: Executor,
        stagnation: float | None = None,
    ):
        layer = sublayer.layer
        held = model.parameters(layer, execution)
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
        self._arguments = (
            execution,
            sublayer.flow,
            record,
            parameters,
            original,
            start,
        )
        flow = sublayer.flow
        # a worker is told what holds in this thread alone
        in_worker = partial(as_here, chosen_device())
        self._t1 = workers.submit(in_worker, sublayer_bound, *self._arguments)
        self._t0 = workers.submit(
            in_worker, operation_bounds, execution, flow, record, parameters, start
        )
        self._floor = (
            workers.submit(in_worker, floor_l2, *self._arguments) if floor else None
        )
        square, largest, size = _apart(record.output, reference.output)
        self._accumulated = np.asarray(square)
        self._accumulated_max = float(largest)
        self._reference_l2 = float(size)
        self._stagnation = stagnation

    def row(self) -> LayerDivergence:
        """Wait for the work and put it together."""
        t0: dict[str, Comparison] = self._t0.result()
        t1 = self._t1.result()
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
            accumulated_l2=_root(self._accumulated),
            accumulated_max=self._accumulated_max,
            bound_t0_ratio=min(known.values(), default=None),
            bound_t1_l2=bound,
            bound_t1_ratio=_ratio(bound, measured),
            floor_t1_ratio=self._floor_ratio(),
            violations=violations,
            elements_total=sum(c.violations.size * n for c, n in tensors.values()),
            first_violation=self._first_violation() if violations else None,
            reference_l2=self._reference_l2,
            weights_l2=_root(t1.weights_square),
            radius_l2=_root(t1.radius_square),
            bound_t0=known,
            local_by_position=by_position(t1.comparison.measured_square),
            bound_by_position=by_position(t1.comparison.bound_square),
            accumulated_by_position=by_position(self._accumulated),
            max_abs_stored={site: float(np.max(t0[site].largest)) for site in sites},
            stagnation=self._stagnation,
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


@jax.jit
def _apart(output, reference):
    """Squared L2 by token and the largest of the difference; L2 of the reference."""
    apart = jnp.abs(output - reference)
    square = jnp.sum(apart**2, axis=-1)
    return square, jnp.max(apart), jnp.linalg.norm(reference)


def _root(square) -> float:
    return float(np.sqrt(np.sum(square)))


def _ratio(bound: float, measured: float) -> float | None:
    return bound / measured if measured > 0 else None


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
