"""NumPy's Mamba-2 layers (`kernels.mamba2`) run in a row, and held to their bounds."""

import jax.numpy as jnp
import numpy as np

from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.implementations.mamba_ssm.mamba2 import (
    mamba_ssm_mamba2_decode,
    mamba_ssm_mamba2_prefill,
)
from oracles.kernels import mamba1 as kernel, mamba2 as ssd

from .ssd_models import Sizes


def shape_of(sizes: Sizes) -> ssd.Shape:
    """What the oracle needs beside the weights."""
    return ssd.Shape(sizes.groups, sizes.chunk, sizes.dt_limit, sizes.norm_before_gate)


def execution_of(precision: str, sizes: Sizes, cache: str | None = None, **options):
    """The execution that is declared for them; `cache` for decoding."""
    if cache is not None:
        return mamba_ssm_mamba2_decode(
            precision, state_precision=cache, gate_norm=sizes.gate_norm
        )
    return mamba_ssm_mamba2_prefill(
        precision, chunk=sizes.chunk, gate_norm=sizes.gate_norm, **options
    )


def run_stack(weights, tokens, precision, sizes, make=ssd.Ssd, **options):
    """(before, hidden, stored tensors) of each layer."""
    name, _, variant = precision.partition("-")
    rows = weights["backbone.embedding.weight"].astype(np.float32)
    before = (rows if variant == "amp" else kernel.cast(rows, name))[tokens]
    hidden = np.zeros_like(before)
    records = []
    for i in range(sizes.layers):
        held = ssd.held(ssd.layer_weights(weights, i), precision)
        stored = make(held, name, shape_of(sizes), **options).run(before, hidden)
        records.append((before, hidden, stored))
        before, hidden = stored["residual"], stored["out"]
    return records


def bounded_by(model, execution, given, i):
    """What bounds of layer i take."""
    before, hidden, stored = given
    parameters = with_operator_norms(model.parameters(i, execution))
    wide = lambda x: jnp.asarray(x, jnp.float64)[None]
    stored = {site: wide(x) for site, x in stored.items() if site in execution.sites}
    record = SublayerRecord(
        i,
        model.sublayers[i].kind,
        wide(before),
        wide(hidden),
        stored["out"],
        stored,
        {},
    )
    flow = model.sublayers[i].flow
    return (execution, flow, record, parameters), model.start(parameters)


def verdicts(model, execution, records):
    """Violations of every tensor (T0) and of the output (T1), by layer."""
    out = []
    for i, given in enumerate(records):
        bounded, start = bounded_by(model, execution, given, i)
        tensors = operation_bounds(*bounded, start)
        t1 = sublayer_bound(*bounded, model.parameters(i), start).comparison
        t0 = {site: int(np.sum(c.violations)) for site, c in tensors.items()}
        out.append((t0, int(np.sum(t1.violations)), ratio(t1)))
    return out


def ratio(comparison) -> float:
    """Bound over measured, in L2."""
    measured = np.sum(comparison.measured_square)
    return float(np.sqrt(np.sum(comparison.bound_square) / measured))
