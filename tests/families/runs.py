"""A run held to its bounds, a sublayer at a time."""

from typing import Any, NamedTuple

from lyapunov.bounds.local import (
    first_violation,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)


class Divergence(NamedTuple):
    """Of one sublayer: T0 by site, T1, and the first violation, if any."""

    layer: Any
    operations: dict
    whole: Any
    first: Any


def divergences(model, execution, trace):
    """Each sublayer of a run against its execution's own function."""
    for layer in model.sublayers:
        record, own = next(trace), execution.of(layer.kind)
        p = with_operator_norms(model.parameters(layer.layer, own))
        exactly = model.held_exactly(layer.layer, own)
        original = None if exactly else model.parameters(layer.layer, function=own)
        given, start = (own, layer.flow, record, p), model.start(p)
        operations = operation_bounds(*given, start)
        whole = sublayer_bound(*given, original, start).comparison
        wrong = any(int(c.violations.sum()) for c in (whole, *operations.values()))
        first = first_violation(*given, original, start) if wrong else None
        yield Divergence(layer, operations, whole, first)
