"""Of one sublayer beside its divergence: exponents, or why there are none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ._results import LayerExponents
from .exponents import layer_exponents, perturbation_growth
from .models import Model, Sublayer
from .models.kinds import KINDS


REASONS = {
    "attention": "no exponent: not a recurrence",
    "shared": "no exponent: not a recurrence",
    "mlp": "no exponent: no state",
    "experts": "no exponent: no state",
}


def layer_facts(
    model: Model, sublayer: Sublayer, record, *, growth: bool = False, seed: int = 0
) -> LayerExponents:
    """Exponents of a recurrence on the tokens of a record; else the reason for none.

    **Arguments:**

    - `record`: the reference's `SublayerRecord`.
    - `growth`: find how perturbations of the first sequence grow as well, in
      directions drawn with `seed`.
    """
    facts = _facts(model, sublayer, record)
    if not growth:
        return facts
    p = model.parameters(sublayer.layer)
    found = perturbation_growth(
        sublayer.flow,
        jax.tree.map(lambda x: x[0], record.incoming),
        p,
        model.start(p),
        jax.random.fold_in(jax.random.key(seed), sublayer.layer),
    )
    return dataclasses.replace(facts, growth=found)


def _facts(model: Model, sublayer: Sublayer, record) -> LayerExponents:
    largest = float(jnp.max(jnp.abs(record.output)))
    if not KINDS[sublayer.kind].recurrent:
        return LayerExponents(
            sublayer.layer,
            sublayer.kind,
            reason=REASONS[sublayer.kind],
            max_abs_output=largest,
        )
    raw = model.raw_parameters(sublayer.layer)
    dt = np.asarray(record.observed["dt"])
    flat = {
        name: raw[name].astype(np.float64).reshape(dt.shape[-1], -1)
        for name in ("A_log", "dt_bias")
    }
    return layer_exponents(
        sublayer.layer,
        sublayer.kind,
        dt,
        -np.exp(flat["A_log"]),
        max_abs_state=float(jnp.max(record.observed["state"])),
        max_abs_output=largest,
        dt_bias=flat["dt_bias"].ravel(),
        A_log=flat["A_log"],
        D=raw["D"].astype(np.float64),
        stored_dtype=model.layout.dtype,
    )
