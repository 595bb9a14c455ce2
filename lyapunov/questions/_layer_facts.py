"""The exponents of one sublayer of a check, or the reason why it has none."""

import dataclasses

import jax
import numpy as np

from ..arithmetic.random_keys import random_key
from ..exponents import (
    HINT,
    Decays,
    StoredParameters,
    Suspicion,
    adds_nothing,
    at_initialisation,
    head_exponents,
    layer_exponents,
    perturbation_growth,
    suspects,
    suspicions_of,
    with_time_steps,
)
from ..models import Model, Sublayer
from ..results._check import LayerExponents, LayerGrowth
from ..sublayers._sublayer import DeltaDynamics, Dynamics


def layer_facts(model: Model, sublayer: Sublayer, record) -> LayerExponents:
    """Find the exponents of a recurrence on a record; else the reason for none.

    **Arguments:**

    - `record`: the reference's `SublayerRecord`.
    """
    facts = _facts(model, sublayer, record)
    raw = model.raw_parameters(sublayer.layer)
    sizes = model.config.sublayers[sublayer.layer]
    silent = adds_nothing(record.output, raw)
    return dataclasses.replace(
        facts,
        suspicions=sorted(
            [*(str(one) for one in silent), *facts.suspicions],
            key=lambda text: text.startswith(HINT),
        ),
        suspects=list(dict.fromkeys([*suspects(silent), *facts.suspects])),
        at_initialisation=at_initialisation(raw, getattr(sizes, "norm_offset", 0.0)),
    )


def layer_growth(model: Model, sublayer: Sublayer, record, seed: int) -> LayerGrowth:
    """Find how perturbations of the first sequence grow, in directions drawn with
    `seed`.

    **Arguments:**

    - `record`: the reference's `SublayerRecord`.
    """
    p = model.parameters(sublayer.layer)
    return perturbation_growth(
        sublayer.flow,
        jax.tree.map(lambda x: np.asarray(x)[0], record.incoming),
        p,
        model.start(p),
        _key(seed, sublayer.layer),
    )


@jax.jit
def _key(seed, layer):
    return jax.random.fold_in(random_key(seed), layer)


def _facts(model: Model, sublayer: Sublayer, record) -> LayerExponents:
    largest = float(np.max(np.abs(np.asarray(record.output))))
    dynamics = model.config.sublayers[sublayer.layer].exponents(
        model.raw_parameters(sublayer.layer), record.observed
    )
    if isinstance(dynamics, str):
        return LayerExponents(
            sublayer.layer, sublayer.kind, reason=dynamics, max_abs_output=largest
        )
    stored = StoredParameters(
        stored_dtype=model.layout.plain_dtype, **dynamics.parameters
    )
    if isinstance(dynamics, DeltaDynamics):
        found = head_exponents(
            sublayer.layer,
            sublayer.kind,
            dynamics.log_gate,
            dynamics.rate,
            dynamics.key,
            multiplicity=dynamics.multiplicity,
        )
        lost = suspicions_of(None, None, stored)
    else:
        found, lost = _of_decays(sublayer, dynamics, stored)
    return dataclasses.replace(
        found,
        max_abs_state=float(np.max(np.asarray(record.observed["state"]))),
        max_abs_output=largest,
        suspicions=[str(one) for one in lost],
        suspects=suspects(lost),
    )


def _of_decays(
    sublayer: Sublayer, dynamics: Dynamics, stored: StoredParameters
) -> tuple[LayerExponents, list[Suspicion]]:
    """Exponents that are means of log decays, and why these look lost."""
    multiplicity, log_decay, dt, rates, _ = dynamics
    if log_decay is not None:
        decays = Decays.of_logs(log_decay)
    else:
        assert dt is not None
        assert rates is not None
        decays = Decays(dt, rates)
    found = layer_exponents(
        sublayer.layer, sublayer.kind, decays, multiplicity=multiplicity
    )
    if dt is None:
        return found, []
    return with_time_steps(found, dt), suspicions_of(dt, rates, stored)
