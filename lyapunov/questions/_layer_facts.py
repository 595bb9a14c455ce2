"""Of one sublayer beside its divergence: exponents, or why there are none."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..exponents import layer_exponents, perturbation_growth
from ..exponents._initialisation import at_initialisation
from ..exponents._suspicions import HINT, adds_nothing, suspects, suspicions_of
from ..models import Model, Sublayer
from ..results._check import LayerExponents
from ..sublayers.kinds import KINDS


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
    raw = model.raw_parameters(sublayer.layer)
    silent = adds_nothing(record.output, raw)
    facts = dataclasses.replace(
        facts,
        suspicions=sorted(
            [*(str(one) for one in silent), *facts.suspicions],
            key=lambda text: text.startswith(HINT),
        ),
        suspects=list(dict.fromkeys([*suspects(silent), *facts.suspects])),
        at_initialisation=at_initialisation(raw),
    )
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
    if sublayer.kind == "mamba3":
        return _mamba3(model, sublayer, record, largest)
    raw = model.raw_parameters(sublayer.layer)
    sizes = model.config.sublayers[sublayer.layer]
    dt = np.asarray(record.observed["dt"])
    channels = dt.shape[-1]
    A_log = raw["A_log"].astype(np.float64)
    multiplicity, dt_limit = 1, (0.0, math.inf)
    if sublayer.kind == "mamba2":
        multiplicity = sizes.d_inner // sizes.heads * sizes.d_state
        dt_limit = sizes.dt_limit
    elif sublayer.kind == "mamba1":
        # heads one after the other, as the flow puts them
        A_log = A_log.reshape(channels, -1)
    else:
        raise TypeError(f"exponents of {sublayer.kind} are not found here")
    return layer_exponents(
        sublayer.layer,
        sublayer.kind,
        dt,
        -np.exp(A_log),
        max_abs_state=float(jnp.max(record.observed["state"])),
        max_abs_output=largest,
        dt_bias=raw["dt_bias"].astype(np.float64).ravel(),
        A_log=A_log,
        D=raw["D"].astype(np.float64),
        stored_dtype=model.layout.dtype,
        multiplicity=multiplicity,
        dt_limit=dt_limit,
        per_head=sublayer.kind == "mamba2",
    )


def _mamba3(model: Model, sublayer: Sublayer, record, largest: float) -> LayerExponents:
    """One exponent a head, the mean of log decays that depend on the token.

    The angle's exponent, 0 whatever the weights, and those of the last key and value,
    -inf, are not counted (see `recurrences.mamba3`).
    """
    sizes = model.config.sublayers[sublayer.layer]
    dt = np.asarray(record.observed["dt"])
    log_decay = np.asarray(record.observed["log_decay"])
    found = layer_exponents(
        sublayer.layer,
        sublayer.kind,
        -log_decay,
        -np.ones(log_decay.shape[-1]),
        max_abs_state=float(jnp.max(record.observed["state"])),
        max_abs_output=largest,
        stored_dtype=model.layout.dtype,
        multiplicity=sizes.d_inner // sizes.heads * sizes.d_state,
    )
    raw = model.raw_parameters(sublayer.layer)
    mean_dt = dt.mean(axis=(0, 1))
    lost = suspicions_of(
        dt,
        # the rate that gives each head its exponent
        (log_decay.mean(axis=(0, 1)) / mean_dt)[:, None],
        dt_bias=raw["dt_bias"],
        D=raw["D"],
        stored_dtype=model.layout.dtype,
        ones={name: raw[name] for name in ("B_bias", "C_bias")},
        per_head=True,
    )
    return dataclasses.replace(
        found,
        suspicions=[str(one) for one in lost],
        suspects=suspects(lost),
        dt_min=float(dt.min()),
        dt_max=float(dt.max()),
        dt_mean=float(dt.mean()),
    )
