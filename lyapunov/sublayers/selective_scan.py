"""The scan of Mamba-1 alone, as `selective_scan_fn` is called: no projection, no
convolution.

What a token brings is one row: u, dt, B and C of every group, and z where there is a
gate, side by side, as whoever calls the scan has made them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic
from ..recurrences.mamba1 import selective_scan
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    as_stored,
    within,
)
from .sites import TOKEN
from .token_blocks import in_token_blocks, tokens_at_once


class ScanParameters(eqx.Module):
    """One scan."""

    A_log: Float[Array, "channels d_state"]
    """log(-A)."""
    D: Float[Array, " channels"]
    dt_bias: Float[Array, " channels"] | None
    groups: int = eqx.field(static=True)
    """Neighbouring channels of a group share B and C."""
    softplus: bool = eqx.field(static=True)
    gated: bool = eqx.field(static=True)

    def initial_state(self) -> "ScanState":
        """What is carried before the first token of a text."""
        return ScanState(jnp.zeros(self.A_log.shape[::-1]))


class ScanState(eqx.Module):
    """What one call hands to the next."""

    state: Any
    """(d_state, channels)."""


def scan(at: AbstractArithmetic, rows, p: ScanParameters, start: ScanState):
    """One scan over a sequence.

    **Arguments:**

    - `rows`: (seq, width), what each token brings.
    - `start`: the state before the first token.

    **Returns:** y, gated where it is, (seq, channels), and the state behind the last
    token.
    """
    return in_token_blocks(at, _scan, rows, p, start, widest=rows.shape[-1])


def _scan(at: AbstractArithmetic, rows, p: ScanParameters, start: ScanState):
    channels, d_state = p.A_log.shape
    wide, width = p.groups * d_state, channels // p.groups
    sizes = [channels, channels, wide, wide, *[channels] * p.gated]
    ends = np.cumsum([0, *sizes])
    u, dt, B, C, *z = (rows[..., begin:end] for begin, end in pairwise(ends))
    if p.dt_bias is not None:
        dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    if p.softplus:
        dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)
    A = at.negate(at.exp(p.A_log.T))
    parts = []
    for group in range(p.groups):
        own = slice(group * width, (group + 1) * width)
        shared = slice(group * d_state, (group + 1) * d_state)
        parts.append(
            selective_scan(
                at, dt[..., own], u[..., own], B[..., shared], C[..., shared],
                A[..., own], p.D[own], start.state[..., own],
            )
        )  # fmt: skip
    y, state = (at.join(each, axis=-1) for each in zip(*parts, strict=True))
    if p.gated:
        y = at.multiply(y, at.store("silu_z", at.silu(z[0])))
    return at.store("gated", y), ScanState(state)


@final
@dataclass(frozen=True)
class SelectiveScanSizes(AbstractSublayer):
    """One scan of Mamba-1 without anything around it.

    **Arguments:**

    - `channels`, `d_state`: each channel has so many states.
    - `groups`: neighbouring channels that share B and C.
    - `softplus`: whether dt goes through it; a bias comes before.
    - `gated`: whether z is among what a token brings.
    - `dt_biased`: whether dt has a bias.
    """

    channels: int
    d_state: int
    groups: int = 1
    softplus: bool = True
    gated: bool = False
    dt_biased: bool = False

    kind: ClassVar = "selective_scan"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    aside: ClassVar = True
    norm_front: ClassVar = False
    flow: ClassVar = staticmethod(scan)
    sites: ClassVar = ("dt_biased", "softplus", *TOKEN, "silu_z", "gated")
    weight_groups: ClassVar = within(
        "selective_scan", "mixers", recurrence="A_log dt_bias D"
    )

    @property
    def d_model(self) -> int:
        """Width of what a token brings."""
        both = (2 + self.gated) * self.channels
        return both + 2 * self.groups * self.d_state

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The state."""
        return (HandedOn("state", "state", ("state",)),)

    def parameters(self, get: Get) -> ScanParameters:
        """Put the flow's parameters together from stored ones."""
        return ScanParameters(
            A_log=get("A_log"),
            D=get("D"),
            dt_bias=get("dt_bias") if self.dt_biased else None,
            groups=self.groups,
            softplus=self.softplus,
            gated=self.gated,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        states = self.channels * self.d_state
        at_once = batch * tokens_at_once(self.d_model, 1, batch)
        return Counts(states, self.d_model, scores=0, states=states, at_once=at_once)

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a channel and state."""
        dt = np.asarray(observed["dt"], np.float64)
        A_log = raw["A_log"].astype(np.float64)
        named = ("dt_bias", "D") if self.dt_biased else ("D",)
        used = as_stored(raw, *named) | {"A_log": A_log}
        return Dynamics(1, None, dt, -np.exp(A_log), used)
