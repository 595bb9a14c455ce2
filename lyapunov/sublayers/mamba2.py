"""What a Mamba-2 sublayer computes (mamba_ssm, transformers and its descendants).

The middle is a recurrence over tokens (decode, exact arithmetic) or its chunked form
(`ssd`): one function in exact arithmetic, two in rounded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..recurrences.mamba2 import head_scan
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    as_stored,
    convolution,
    within,
)
from .convolution import SITES, convolved
from .norm import Norm, front, norm_of, scaled
from .ranks import over_ranks, rank_sites
from .sites import FRONT, TOKEN
from .ssd import chunked_scan
from .token_blocks import in_token_blocks, tokens_at_once


class Mamba2Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Channels of x, z and y are head-major, (heads x head_dim) = d_inner; B and C are
    group-major, (groups x d_state). The conv's channels are x's, B's and C's:
    d_inner + 2 groups d_state.
    """

    norm: Norm | None
    in_proj: Weight
    """(2 d_inner + 2 groups d_state + heads, d_model), rows z, x, B, C, dt."""
    in_proj_bias: Float[Array, " rows"] | None
    conv_weight: Float[Array, "conv_channels d_conv"]
    conv_bias: Float[Array, " conv_channels"]
    dt_bias: Float[Array, " heads"]
    A_log: Float[Array, " heads"]
    D: Float[Array, " d_inner"]
    """One a head, repeated, or one a channel."""
    gate_norm: Float[Array, " d_inner"] | None
    """Weight of the gated norm; None: the gate alone."""
    out_proj: Weight
    """(d_model, d_inner)."""
    out_proj_bias: Float[Array, " d_model"] | None
    gate_norm_epsilon: float = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    norm_groups: int = eqx.field(static=True)
    """Groups of channels that the gated norm normalises apart."""
    norm_before_gate: bool = eqx.field(static=True)
    dt_limit: tuple[float, float] = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    in_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the mixer's input (Falcon-H1)."""
    row_multipliers: tuple[float, ...] | None = eqx.field(static=True, default=None)
    """Of z, x, B, C and dt as in_proj puts them out (Falcon-H1)."""
    out_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the output, before it joins the residual."""
    in_front: Float[Array, " heads"] | None = None
    """No larger than the sum of dt A over another text's tokens in the first one's
    chunk, of a text that is packed behind them (`ssd.chunked_scan`)."""

    def initial_state(self) -> "Mamba2State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba2State(eqx.Module):
    """What a decode step carries: the last d_conv - 1 inputs of the conv, and h."""

    window: Any
    """(d_conv - 1, d_inner + 2 groups d_state)."""
    state: Any
    """(d_state, d_inner)."""


def sizes(p: Mamba2Parameters) -> tuple[int, int, int]:
    """d_inner, d_state, heads."""
    d_inner = p.out_proj.matrix.shape[1]
    d_state = (p.conv_weight.shape[0] - d_inner) // (2 * p.groups)
    return d_inner, d_state, p.A_log.shape[0]


def initial_state(p: Mamba2Parameters) -> Mamba2State:
    """Zeros, as at the start of a text."""
    d_inner, d_state, _ = sizes(p)
    return Mamba2State(
        window=jnp.zeros((p.conv_weight.shape[1] - 1, p.conv_weight.shape[0])),
        state=jnp.zeros((d_state, d_inner)),
    )


def mamba2(at: AbstractArithmetic, residual, p: Mamba2Parameters, start: Mamba2State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    widest, chunk = p.in_proj.matrix.shape[0], at.form.chunk or p.chunk
    within = at.form.grid is not None and at.form.grid % chunk
    if at.form.chunks_at_once or at.form.calls or within or p.in_front is not None:
        # what overflows reaches every token, earlier ones as well; and of several
        # calls chunks begin with each, of one that goes on in the middle of one
        return _mamba2(at, residual, p, start)
    return in_token_blocks(
        at, _mamba2, residual, p, start, widest=widest, multiple=chunk
    )


def _mamba2(at: AbstractArithmetic, residual, p: Mamba2Parameters, start: Mamba2State):
    x = front(at, residual, p.norm)
    out, after = mamba2_mixer(at, x, p, start)
    out = at.store("out", out)
    return scaled(at, out, p.out_multiplier, "out_scaled"), after


def mamba2_mixer(at: AbstractArithmetic, x, p: Mamba2Parameters, start: Mamba2State):
    """The mixer on a normalised input (seq, d_model)."""
    d_inner, d_state, heads = sizes(p)
    wide = p.groups * d_state

    x = scaled(at, x, p.in_multiplier, "in_scaled")
    x = at.store("in_operand", x)
    zxbcdt = at.store("xz", at.matmul(x, p.in_proj, p.in_proj_bias))
    if p.row_multipliers is not None:
        rows = jnp.repeat(
            jnp.asarray(p.row_multipliers),
            jnp.asarray([d_inner, d_inner, wide, wide, heads]),
            total_repeat_length=zxbcdt.shape[-1],
        )
        rows = at.store("row_multipliers", at.fixed(rows))
        zxbcdt = at.store("xz_scaled", at.multiply(zxbcdt, rows))
    z, dt = zxbcdt[..., :d_inner], zxbcdt[..., -heads:]
    u, window = convolved(
        at, start.window, zxbcdt[..., d_inner:-heads], p.conv_weight, p.conv_bias
    )
    u = at.silu(at.store("conv_sum", u))
    u = at.store("conv", at.store("conv_in_window", u))
    x = u[..., :d_inner]
    B = at.view(_grouped(p.groups), u[..., d_inner : d_inner + wide])
    C = at.view(_grouped(p.groups), u[..., d_inner + wide :])

    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    dt = at.store("dt_clipped", at.clip(dt, *p.dt_limit))
    at.observe("dt", dt)
    A = at.negate(at.exp(p.A_log))

    if at.form.chunked:
        y, state = chunked_scan(
            at, dt, x, B, C, A, p.D, start.state, at.form.chunk or p.chunk, p.in_front
        )
    else:
        owner = jnp.arange(d_inner) // (d_inner // heads)
        y, state = head_scan(
            at, dt[..., owner], x, B, C, A[..., owner], p.D, start.state
        )
    y = at.store("scan_output", y)

    if p.gate_norm is None:
        y = at.multiply(y, at.store("silu_z", at.silu(z)))
    elif p.norm_before_gate:
        y = at.multiply(_norm_by_group(at, y, p), at.silu(z))
    else:
        y = _norm_by_group(at, at.multiply(y, at.silu(z)), p)
    y = at.store("gated", y)
    y = at.store("out_operand", y)
    out = over_ranks(at, y, p.out_proj, p.out_proj_bias, "out")
    return out, Mamba2State(window=window, state=state)


def _grouped(groups: int):
    return lambda a: a.reshape(*a.shape[:-1], groups, -1)


def _norm_by_group(at: AbstractArithmetic, y, p: Mamba2Parameters):
    apart = at.view(_grouped(p.norm_groups), y)
    hat = at.rms_normalise(apart, p.gate_norm_epsilon)
    hat = at.store("gate_norm_hat", at.view(lambda a: a.reshape(y.shape), hat))
    return at.multiply(hat, p.gate_norm, alone=at.stores("gate_norm_hat"))


@final
@dataclass(frozen=True)
class Mamba2Sizes(AbstractSublayer):
    """One Mamba-2 mixer with the norm before it.

    **Arguments:**

    - `heads`: d_inner / head_dim; each has one dt and one decay.
    - `groups`: heads of a group share B and C.
    - `chunk`: tokens of a chunk in the chunked form.
    - `dt_limit`: dt is clipped to it after softplus.
    - `transformers_dt_limit`: to which transformers clips it instead when it reads a
      whole sequence (Nemotron-H, Zamba2); None: to `dt_limit`.
    - `gate_norm`: whether the gated output is normalised; in `norm_groups` groups of
      channels, before or after the gate.
    - `in_multiplier`, `row_multipliers`, `out_multiplier`: of the input, of z, x, B, C
      and dt, and of the output (Falcon-H1, Granite).
    - `out_bias`: whether out_proj has a bias; `proj_bias` where not given.
    - `norm_centred`: whether the norm in front is a LayerNorm.
    - `norm_front`: whether there is one.
    - `beside`: reads what the sublayer before it read, not what that one wrote.
    """

    d_model: int
    d_inner: int
    d_state: int
    heads: int
    groups: int
    d_conv: int
    chunk: int
    norm_epsilon: float
    gate_norm_epsilon: float
    dt_limit: tuple[float, float] = (0.0, math.inf)
    gate_norm: bool = True
    norm_groups: int = 1
    norm_before_gate: bool = False
    conv_bias: bool = True
    proj_bias: bool = False
    out_bias: bool | None = None
    norm_centred: bool = False
    norm_front: bool = True
    in_multiplier: float = 1.0
    row_multipliers: tuple[float, ...] | None = None
    out_multiplier: float = 1.0
    beside: bool = False
    transformers_dt_limit: tuple[float, float] | None = None

    kind: ClassVar = "mamba2"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(mamba2)
    sites: ClassVar = (
        *FRONT, "in_scaled", "in_operand",
        "xz", "row_multipliers", "xz_scaled", *SITES, "conv_sum",
        "conv_in_window", "conv", "dt_biased", "softplus", "dt_clipped", "x_operand",
        "C_operand", "B_scaled", "B_operand", "chunk_cached", "chunk_state",
        "CB_decayed", *TOKEN, "scan_output", "silu_z", "gate_norm_hat", "gated",
        "out_operand", *rank_sites("out"), "out", "out_scaled",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "mamba2",
        "mixers",
        projections="in_proj out_proj",
        biases="in_proj_bias out_proj_bias",
        recurrence="A_log dt_bias D",
        conv="conv_weight conv_bias",
        norms="norm norm_bias gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs, and h."""
        inputs = "xz" if self.row_multipliers is None else "xz_scaled"
        return (
            HandedOn("window", "window", (inputs,)),
            HandedOn("state", "state", ("state",)),
        )

    def parameters(self, get: Get) -> Mamba2Parameters:
        """Put the flow's parameters together from stored ones."""
        D: Any = get("D")
        if D.size != self.d_inner:
            D = jnp.repeat(D, self.d_inner // self.heads)
        return Mamba2Parameters(
            norm=norm_of(get, "norm", self.norm_epsilon, self.norm_centred)
            if self.norm_front
            else None,
            in_proj=Weight(get("in_proj")),
            in_proj_bias=get("in_proj_bias"),
            **convolution(get),
            dt_bias=get("dt_bias"),
            A_log=get("A_log"),
            D=D,
            gate_norm=get("gate_norm"),
            out_proj=Weight(get("out_proj")),
            out_proj_bias=get("out_proj_bias"),
            gate_norm_epsilon=self.gate_norm_epsilon,
            groups=self.groups,
            norm_groups=self.norm_groups,
            norm_before_gate=self.norm_before_gate,
            dt_limit=self.dt_limit,
            chunk=self.chunk,
            in_multiplier=self.in_multiplier,
            row_multipliers=self.row_multipliers,
            out_multiplier=self.out_multiplier,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        mixed = self.d_inner + 2 * self.groups * self.d_state
        rows = 2 * self.d_inner + mixed + self.heads
        projected = rows - self.d_inner
        at_once = batch * tokens_at_once(projected, self.chunk, batch)
        return Counts(
            weights=self.d_model * rows + mixed * self.d_conv,
            channels=mixed,
            scores=0,
            states=self.d_inner * self.d_state,
            # Granite-4-H's widths: 32 in T2; 39 of T0 and T1 at once, a copy of the
            # weights taken off
            arrays=44,
            at_once=at_once,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a head."""
        dt = np.asarray(observed["dt"], np.float64)
        A_log = raw["A_log"].astype(np.float64)
        used = {"A_log": A_log, "dt_limit": self.dt_limit, "per_head": True}
        return Dynamics(
            self.d_inner // self.heads * self.d_state,
            None,
            dt,
            -np.exp(A_log).reshape(dt.shape[-1], -1),
            as_stored(raw, "dt_bias", "D") | used,
        )
