"""What of a report is logged beside a training."""

import math

from ..results._check import Report


def figures_of(report: Report) -> dict[str, float]:
    """What of a report is logged; finite numbers only, as JSON can hold them."""
    rows = report.exponents.layers
    memories = [row.memory_tokens for row in rows if row.memory_tokens is not None]
    first = report.precisions[0] if report.precisions else None
    # of a network of blocks its own output, of a language model the logits
    output = first and (first.network or first.output)
    found = {
        "max_exponent": report.exponents.max,
        "decay_min": _extreme(min, [row.decay_min for row in rows]),
        "decay_max": _extreme(max, [row.decay_max for row in rows]),
        "memory_tokens": _extreme(max, [memory.p90 for memory in memories]),
        "predicted_divergence": output and output.sigma_t3,
        "measured_divergence": output and output.measured_rel_l2,
        "findings": len(report.findings),
    }
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _extreme(which, values: list[float | None]) -> float | None:
    return which((v for v in values if v is not None), default=None)
