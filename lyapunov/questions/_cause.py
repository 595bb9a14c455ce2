"""What binds a state's format: range, mantissa, stagnation, or the model.

Read off the reference trajectory, format by format, before anything is rounded: how far
the states reach, how many lie where the format's spacing no longer shrinks, how many
updates are too small to move the state that they are added to.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..formats import StateFormat, state_format_named


# An update of at most half a unit leaves a state held to nearest where it is. The share
# at which the findings warn.
STAGNATION = 0.05

# What causes less than half of the error is not what to change.
SHARE = 0.5


class StateFacts(NamedTuple):
    """One sublayer's states on the reference trajectory, for one format."""

    layer: int
    largest: float
    """Largest magnitude of a state."""
    underflow: float | None
    """Share of a store's squared error that an unlimited exponent would save."""
    stagnation: float | None
    """Share of updates of at most half a unit of the state that they move."""
    stored_every: int = 1
    """Tokens from one store of the state to the next."""


def state_facts(record, index: int = 0) -> StateFacts | None:
    """The facts that a reference record observed; None without a recurrent state.

    **Arguments:**

    - `record`: a `SublayerRecord` of `Reference(state_units, state_smallest)`.
    - `index`: of the format in those tuples.
    """
    observed = record.observed
    if "state" not in observed:
        return None
    lost, spacings = observed.get("stagnation"), observed.get("underflow")
    underflow = None
    if spacings is not None:
        by_token = np.asarray(spacings)[..., index, :]
        excess, total = by_token.reshape(-1, 2).sum(axis=0)
        underflow = float(excess / total) if total > 0 else 0.0
    return StateFacts(
        layer=record.layer,
        largest=float(np.max(np.asarray(observed["state"]))),
        underflow=underflow,
        stagnation=lost if lost is None else np.asarray(lost)[..., index].mean().item(),
    )


def state_cause(
    state_precision: str,
    facts: Sequence[StateFacts],
    *,
    moved: bool = True,
    state_share: float | None = None,
) -> str | None:
    """What limits a state held in this format, in a few words; None for fp32.

    Begins with `range`, `stagnation`, `mantissa` or `the model`.

    **Arguments:**

    - `facts`: of every sublayer with a state.
    - `moved`: whether any decision changed, ties apart.
    - `state_share`: share of the output's error, as a variance, that rounding the state
      causes; None where nobody knows.
    """
    if state_precision == "fp32" or not facts:
        return None
    form = state_format_named(state_precision)
    name = form.element
    variant = form if isinstance(form, StateFormat) else None
    scaled = variant is not None and variant.scaled
    stochastic = variant is not None and variant.stochastic
    if not scaled:
        worst = max(facts, key=lambda f: f.largest)
        if not worst.largest <= form.largest:
            return (
                f"range: states of layer {worst.layer} reach {worst.largest:.3g}, "
                f"{name} ends at {form.largest:g}"
            )
    if not moved:
        return "the model, not the precision: no decision changed"
    if state_share is not None and state_share < SHARE:
        return (
            "the model, not the precision of its state, which is "
            f"{state_share:.0%} of the error's variance"
        )
    if not scaled:
        layer, share = _largest(facts, "underflow")
        if _median(facts, "underflow") >= SHARE:
            return (
                f"range: up to {share:.0%} of the error of a store (layer {layer}) are "
                f"states below {form.smallest_normal:g}, {name}'s smallest normal"
            )
    integer = variant is not None and variant.integer
    unit = "step" if integer else "unit"
    layer, share = _largest(facts, "stagnation")
    if share >= STAGNATION and not stochastic:
        return (
            f"stagnation: {share:.0%} of the updates of layer {layer} are below half a "
            f"{unit} of {name}"
        )
    told = f"{form.significand_bits} bits of a state"
    if integer:
        told = f"{form.largest:.0f} steps up to the largest state of a channel"
    unknown = " (its share of the error is not known)" if state_share is None else ""
    return f"mantissa: {name} keeps {told}{unknown}"


def _largest(facts: Sequence[StateFacts], name: str) -> tuple[int, float]:
    known = [(getattr(f, name), f.layer) for f in facts]
    known = [(v, layer) for v, layer in known if v is not None and math.isfinite(v)]
    if not known:
        return -1, 0.0
    share, layer = max(known)
    return layer, share


def _median(facts: Sequence[StateFacts], name: str) -> float:
    known = [value for f in facts if (value := getattr(f, name)) is not None]
    return float(np.median(known)) if known else 0.0
