"""The exponents of one sublayer of a check, or the reason why it has none."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..exponents import (
    HINT,
    Decays,
    StoredParameters,
    adds_nothing,
    at_initialisation,
    layer_exponents,
    perturbation_growth,
    suspects,
    suspicions_of,
    with_time_steps,
)
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
    """Find the exponents of a recurrence on a record; else the reason for none.

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
    if sublayer.kind not in DYNAMICS:
        raise TypeError(f"exponents of {sublayer.kind} are not found here")
    dynamics = DYNAMICS[sublayer.kind](
        model.config.sublayers[sublayer.layer],
        model.raw_parameters(sublayer.layer),
        record.observed,
    )
    found = layer_exponents(
        sublayer.layer,
        sublayer.kind,
        dynamics.decays,
        multiplicity=dynamics.multiplicity,
    )
    stored = dynamics.stored._replace(stored_dtype=model.layout.dtype)
    lost = suspicions_of(dynamics.dt, dynamics.A, stored)
    return dataclasses.replace(
        with_time_steps(found, dynamics.dt),
        max_abs_state=float(jnp.max(record.observed["state"])),
        max_abs_output=largest,
        suspicions=[str(one) for one in lost],
        suspects=suspects(lost),
    )


class Dynamics(NamedTuple):
    """What the decays of a sublayer are on the tokens, and what they are made of."""

    decays: Decays
    dt: Float[np.ndarray, "batch seq channels"]
    A: Float[np.ndarray, "channels states"]
    """The rates: log decays are dt A."""
    multiplicity: int
    """Coordinates of the state that share a decay."""
    stored: StoredParameters


def _mamba1(sizes, raw: Mapping[str, np.ndarray], observed) -> Dynamics:
    """One decay a channel and state."""
    del sizes
    dt = np.asarray(observed["dt"], np.float64)
    # heads one after the other, as the flow puts them
    A_log = raw["A_log"].astype(np.float64).reshape(dt.shape[-1], -1)
    A = -np.exp(A_log)
    return Dynamics(Decays(dt, A), dt, A, 1, _stored(raw)._replace(A_log=A_log))


def _mamba2(sizes, raw: Mapping[str, np.ndarray], observed) -> Dynamics:
    """One decay a head."""
    dt = np.asarray(observed["dt"], np.float64)
    A_log = raw["A_log"].astype(np.float64)
    A = -np.exp(A_log).reshape(dt.shape[-1], -1)
    stored = _stored(raw)._replace(A_log=A_log, dt_limit=sizes.dt_limit, per_head=True)
    return Dynamics(Decays(dt, A), dt, A, _a_head(sizes), stored)


def _mamba3(sizes, raw: Mapping[str, np.ndarray], observed) -> Dynamics:
    """One log decay a head, of a rate that depends on the token.

    The angle's exponent, 0 whatever the weights, and those of the last key and value,
    -inf, are not counted (see `recurrences.mamba3`).
    """
    dt = np.asarray(observed["dt"], np.float64)
    log_decay = np.asarray(observed["log_decay"], np.float64)
    # the rate that gives each head its exponent
    A = (log_decay.mean(axis=(0, 1)) / dt.mean(axis=(0, 1)))[:, None]
    ones = {name: raw[name] for name in ("B_bias", "C_bias")}
    stored = _stored(raw)._replace(ones=ones, per_head=True)
    return Dynamics(Decays.of_logs(log_decay), dt, A, _a_head(sizes), stored)


DYNAMICS = {"mamba1": _mamba1, "mamba2": _mamba2, "mamba3": _mamba3}
"""By kind of sublayer, all that have a recurrence."""


def _stored(raw: Mapping[str, np.ndarray]) -> StoredParameters:
    """What all of them store."""
    bias, skip = (raw[name].astype(np.float64).ravel() for name in ("dt_bias", "D"))
    return StoredParameters(dt_bias=bias, D=skip)


def _a_head(sizes) -> int:
    """Coordinates of the state in a head."""
    return sizes.d_inner // sizes.heads * sizes.d_state
