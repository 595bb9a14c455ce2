"""T0 and T1 of one sublayer, element by element, by the public interpreters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Bounded, Exact
from lyapunov.formats import rounding_error_bound
from lyapunov.sublayers.residual import Incoming, sublayer


class Elementwise:
    """Bounds of executions that differ in their numbers alone; compiled once."""

    def __init__(self, execution, flow, seq):
        @eqx.filter_jit
        def bounds(sites, model, incoming, stored, p, original, start):
            at = execution.bounded(seq, sites, model, anchors=stored)
            sublayer(at, flow, incoming, p, start)
            # at the least half a spacing of the format: what a store may always add
            t0 = {
                site: jnp.maximum(
                    bound.error, rounding_error_bound(jnp.abs(bound.value), sites[site])
                )
                for site, bound in at.records.items()
            }
            centred = execution.bounded(seq, sites, model, centred=True)
            centre = sublayer(centred, flow, incoming, p, start)[1]
            exact = sublayer(Exact(), flow, incoming, original, start)[1]
            t1 = centre.error + jnp.abs(centre.value - exact)
            return at.records, t0, Bounded(exact, t1)

        @eqx.filter_jit
        def worst(sites, model, incoming, p, start):
            at = execution.bounded(seq, sites, model)
            return sublayer(at, flow, incoming, p, start)[1].error

        self._bounds, self._worst = bounds, worst

    def worst(self, execution, before, hidden, p, start):
        """T1 in which every rounding counts at its worst, around exact arithmetic."""
        numbers = execution.site_numbers(), execution.constants.model()
        stream = (jnp.asarray(x, jnp.float64) for x in (before, hidden))
        return np.asarray(self._worst(*numbers, Incoming(*stream), p, start))

    def __call__(self, execution, before, hidden, stored, p, original, start):
        """(records, T0 bounds by site, T1), arrays (seq, channels)."""
        wide = lambda x: jnp.asarray(x, jnp.float64)
        found = self._bounds(
            execution.site_numbers(),
            execution.constants.model(),
            Incoming(wide(before), wide(hidden)),
            {site: wide(x) for site, x in stored.items()},
            p,
            original,
            start,
        )
        return jax.tree.map(np.asarray, found)


def exceeding(measured, against: Bounded) -> int:
    """Elements beyond their bound."""
    limit = np.where(np.isnan(against.error), np.inf, against.error)
    with np.errstate(invalid="ignore"):  # inf under an infinite bound
        distance = np.abs(measured - np.asarray(against.value))
    return int(np.sum(~(distance <= limit) & np.isfinite(limit)))
