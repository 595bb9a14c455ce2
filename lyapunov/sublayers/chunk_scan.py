"""The scan of Mamba-2 alone, as `mamba_chunk_scan_combined` is called.

What a token brings is one row: x of every head, dt, B and C of every group, and z where
there is a gate, side by side, as whoever calls the scan has made them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic
from ..recurrences.mamba2 import head_scan
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    as_stored,
    within,
)
from .selective_scan import ScanState
from .sites import TOKEN
from .ssd import chunked_scan
from .token_blocks import in_token_blocks, tokens_at_once


class ChunkScanParameters(eqx.Module):
    """One scan; channels are head-major."""

    A_log: Float[Array, " heads"]
    """log(-A)."""
    D: Float[Array, " channels"]
    dt_bias: Float[Array, " heads"] | None
    d_state: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    softplus: bool = eqx.field(static=True)
    gated: bool = eqx.field(static=True)
    dt_limit: tuple[float, float] = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    def initial_state(self) -> ScanState:
        """What is carried before the first token of a text."""
        return ScanState(jnp.zeros((self.d_state, self.D.shape[0])))


def scan(at: AbstractArithmetic, rows, p: ChunkScanParameters, start: ScanState):
    """One scan over a sequence.

    **Arguments:**

    - `rows`: (seq, width), what each token brings.
    - `start`: the state before the first token.

    **Returns:** y, gated where it is, (seq, channels), and the state behind the last
    token.
    """
    chunk = at.form.chunk or p.chunk
    inside = at.form.grid is not None and at.form.grid % chunk
    if at.form.chunks_at_once or at.form.calls or inside:
        return _scan(at, rows, p, start)
    widest = rows.shape[-1]
    return in_token_blocks(at, _scan, rows, p, start, widest=widest, multiple=chunk)


def _scan(at: AbstractArithmetic, rows, p: ChunkScanParameters, start: ScanState):
    channels, heads = p.D.shape[0], p.A_log.shape[0]
    wide = p.groups * p.d_state
    ends = np.cumsum([0, channels, heads, wide, wide, *[channels] * p.gated])
    x, dt, B, C, *z = (rows[..., begin:end] for begin, end in pairwise(ends))
    grouped = lambda a: a.reshape(*a.shape[:-1], p.groups, -1)
    B, C = at.view(grouped, B), at.view(grouped, C)
    if p.dt_bias is not None:
        dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    if p.softplus:
        dt = at.store("softplus", at.softplus(dt))
    dt = at.store("dt_clipped", at.clip(dt, *p.dt_limit))
    at.observe("dt", dt)
    A = at.negate(at.exp(p.A_log))
    if at.form.chunked:
        chunk = at.form.chunk or p.chunk
        y, state = chunked_scan(at, dt, x, B, C, A, p.D, start.state, chunk)
    else:
        owner = jnp.arange(channels) // (channels // heads)
        y, state = head_scan(
            at, dt[..., owner], x, B, C, A[..., owner], p.D, start.state
        )
    if p.gated:
        # inside the kernel, which stores the product alone
        y = at.multiply(y, at.store("silu_z", at.silu(z[0])))
        return at.store("gated", y), ScanState(state)
    return at.store("scan_output", y), ScanState(state)


@final
@dataclass(frozen=True)
class ChunkScanSizes(AbstractSublayer):
    """One scan of Mamba-2 without anything around it.

    **Arguments:**

    - `heads`, `head_dim`, `groups`, `chunk`, `dt_limit`: as in `Mamba2Sizes`.
    - `softplus`: whether dt goes through it; a bias comes before.
    - `gated`: whether z is among what a token brings.
    - `dt_biased`: whether dt has a bias.
    """

    heads: int
    head_dim: int
    d_state: int
    chunk: int
    groups: int = 1
    softplus: bool = True
    gated: bool = False
    dt_biased: bool = False
    dt_limit: tuple[float, float] = (0.0, math.inf)

    kind: ClassVar = "chunk_scan"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    aside: ClassVar = True
    norm_front: ClassVar = False
    flow: ClassVar = staticmethod(scan)
    sites: ClassVar = (
        "dt_biased", "softplus", "dt_clipped", "x_operand", "C_operand", "B_scaled",
        "B_operand", "chunk_cached", "chunk_state", "CB_decayed", *TOKEN,
        "scan_output", "silu_z", "gated",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "chunk_scan", "mixers", recurrence="A_log dt_bias D"
    )

    @property
    def channels(self) -> int:
        """Of x, of all heads."""
        return self.heads * self.head_dim

    @property
    def d_model(self) -> int:
        """Width of what a token brings."""
        wide = self.groups * self.d_state
        return (1 + self.gated) * self.channels + self.heads + 2 * wide

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The state."""
        return (HandedOn("state", "state", ("state",)),)

    def parameters(self, get: Get) -> ChunkScanParameters:
        """Put the flow's parameters together from stored ones."""
        D: Any = get("D")
        if D.size != self.channels:
            D = jnp.repeat(D, self.head_dim)
        return ChunkScanParameters(
            A_log=get("A_log"),
            D=D,
            dt_bias=get("dt_bias") if self.dt_biased else None,
            d_state=self.d_state,
            groups=self.groups,
            softplus=self.softplus,
            gated=self.gated,
            dt_limit=self.dt_limit,
            chunk=self.chunk,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count activations and states: there is no matrix."""
        del length
        at_once = batch * tokens_at_once(self.d_model, self.chunk, batch)
        states = self.channels * self.d_state
        return Counts(0, self.d_model, scores=0, states=states, at_once=at_once)

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a head."""
        dt = np.asarray(observed["dt"], np.float64)
        A_log = raw["A_log"].astype(np.float64)
        named = ("dt_bias", "D") if self.dt_biased else ("D",)
        used = {"A_log": A_log, "dt_limit": self.dt_limit, "per_head": True}
        return Dynamics(
            self.head_dim * self.d_state,
            None,
            dt,
            -np.exp(A_log).reshape(dt.shape[-1], -1),
            as_stored(raw, *named) | used,
        )
