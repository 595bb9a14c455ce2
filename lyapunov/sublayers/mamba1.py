"""What a Mamba-1 sublayer computes, in the order of mamba_ssm and transformers.

The two implementations differ in which of the named sites they store and in what
format; that is the execution's business, not the flow's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..recurrences.mamba1 import selective_scan
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    as_stored,
    convolution,
    with_biases,
    within,
)
from .convolution import SITES, convolved
from .norm import Norm, front, norm_of, normalise, with_bias
from .ranks import over_ranks, rank_sites
from .sites import FRONT, TOKEN
from .token_blocks import in_token_blocks, tokens_at_once


class Mamba1Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Norm | None
    in_proj: Weight
    """(2 d_inner, d_model), rows x then z."""
    in_proj_bias: Float[Array, " xz_channels"] | None
    """2 d_inner of them."""
    conv_weight: Float[Array, "d_inner d_conv"]
    conv_bias: Float[Array, " d_inner"]
    x_proj: Weight | tuple[Weight, ...]
    """(dt_rank + 2 d_state, d_inner), rows dt, B, C. Several where the channels fall
    into heads, each with its own B and C (Zamba): (rows, d_inner / heads) each."""
    dt_proj: Weight | tuple[Weight, ...]
    """(d_inner, dt_rank); one a head, (d_inner / heads, dt_rank), as for `x_proj`."""
    dt_bias: Float[Array, " d_inner"]
    A_log: Float[Array, "d_inner d_state"]
    D: Float[Array, " d_inner"]
    out_proj: Weight
    """(d_model, d_inner)."""
    out_proj_bias: Float[Array, " d_model"] | None
    dt_norm: Norm | None = None
    """Over the dt_rank rows that dt is made of (Falcon Mamba, Jamba)."""
    B_norm: Norm | None = None
    C_norm: Norm | None = None

    def initial_state(self) -> "Mamba1State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba1State(eqx.Module):
    """What a decode step carries: the last d_conv - 1 inputs of the conv, and h."""

    window: Any
    """(d_conv - 1, d_inner)."""
    state: Any
    """(d_state, d_inner)."""


def initial_state(p: Mamba1Parameters) -> Mamba1State:
    """Zeros, as at the start of a text."""
    d_inner, d_state = p.A_log.shape
    return Mamba1State(
        window=jnp.zeros((p.conv_weight.shape[1] - 1, d_inner)),
        state=jnp.zeros((d_state, d_inner)),
    )


def mamba1(at: AbstractArithmetic, residual, p: Mamba1Parameters, start: Mamba1State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    widest = p.in_proj.matrix.shape[0]
    return in_token_blocks(at, _mamba1, residual, p, start, widest=widest)


def _mamba1(at: AbstractArithmetic, residual, p: Mamba1Parameters, start: Mamba1State):
    d_inner, d_state = p.A_log.shape
    x_proj, dt_proj = _of_heads(p.x_proj), _of_heads(p.dt_proj)
    rank, width = dt_proj[0].matrix.shape[1], d_inner // len(x_proj)

    x = front(at, residual, p.norm)
    x = at.store("in_operand", x)
    xz = with_bias(at, x, p.in_proj, p.in_proj_bias, "xz")
    u, z = xz[..., :d_inner], xz[..., d_inner:]

    u, window = convolved(at, start.window, u, p.conv_weight, p.conv_bias)
    u = at.silu(at.store("conv_sum", u))
    u = at.store("conv", at.store("conv_in_window", u))

    channels = [slice(i * width, (i + 1) * width) for i in range(len(x_proj))]
    low = at.join(
        [
            over_ranks(at, u[..., own], w, None, "x_proj")
            for own, w in zip(channels, x_proj, strict=True)
        ],
        axis=-1,
    )
    low = at.store("x_proj", low)
    per_head = [_parted(at, low, i, rank, d_state, p) for i in range(len(x_proj))]
    dt = at.join(
        [at.matmul(dt, w) for (dt, _, _), w in zip(per_head, dt_proj, strict=True)],
        axis=-1,
    )
    dt = at.store("dt", dt)
    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)

    A = at.negate(at.exp(p.A_log.T))
    scanned = [
        selective_scan(
            at, dt[..., own], u[..., own], B, C, A[..., own], p.D[own],
            start.state[..., own],
        )
        for own, (_, B, C) in zip(channels, per_head, strict=True)
    ]  # fmt: skip
    y, state = (at.join(parts, axis=-1) for parts in zip(*scanned, strict=True))

    gate = at.store("silu_z", at.silu(z))
    y = at.store("gated", at.multiply(y, gate))
    y = at.store("out_operand", y)
    # one token transposed is contiguous, and rounded once with its bias
    apart = residual.shape[0] > 1
    if at.form.ranks > 1:
        out = over_ranks(at, y, p.out_proj, p.out_proj_bias, "out")
        return at.store("out", out), Mamba1State(window=window, state=state)
    out = with_bias(at, y, p.out_proj, p.out_proj_bias, "out", apart)
    return out, Mamba1State(window=window, state=state)


def _of_heads(weights: Weight | tuple[Weight, ...]) -> tuple[Weight, ...]:
    return weights if isinstance(weights, tuple) else (weights,)


def _parted(at, low, head: int, rank: int, d_state: int, p: Mamba1Parameters):
    """What a head's dt is made of, its B and its C, normalised where the model does."""
    first = head * (rank + 2 * d_state)
    dt = low[..., first : first + rank]
    B = low[..., first + rank : first + rank + d_state]
    C = low[..., first + rank + d_state : first + rank + 2 * d_state]
    return (
        normalise(at, dt, p.dt_norm, "dt_norm"),
        normalise(at, B, p.B_norm, "B_norm"),
        normalise(at, C, p.C_norm, "C_norm"),
    )


@final
@dataclass(frozen=True)
class Mamba1Sizes(AbstractSublayer):
    """One Mamba-1 mixer with the norm before it.

    **Arguments:**

    - `d_model`: width of the residual.
    - `d_inner`: channels of the recurrence, `expand * d_model`.
    - `d_state`: states per channel.
    - `d_conv`: taps of the causal convolution, the present token included.
    - `dt_rank`: rank of the projection that makes dt.
    - `norm_epsilon`: added to the mean square in the norm in front.
    - `conv_bias`: whether the convolution has a bias.
    - `proj_bias`: whether in_proj and out_proj have a bias.
    - `heads`: parts of the channels with a dt, B and C of their own (Zamba).
    - `mixer_norm_epsilon`: of RMS norms over what dt is made of, over B and over C,
        where the model has them (Falcon Mamba, Jamba).
    - `norm_centred`: whether the norm in front is a LayerNorm.
    - `norm_front`: whether there is one.
    """

    d_model: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    norm_epsilon: float
    conv_bias: bool = True
    proj_bias: bool = False
    heads: int = 1
    mixer_norm_epsilon: float | None = None
    norm_centred: bool = False
    norm_front: bool = True

    kind: ClassVar = "mamba1"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(mamba1)
    sites: ClassVar = (
        *FRONT, "in_operand",
        "xz_product", "xz", *SITES, "conv_sum", "conv_in_window", "conv",
        *rank_sites("x_proj"), "x_proj", "dt_norm_hat",
        "dt_norm", "B_norm_hat", "B_norm", "C_norm_hat", "C_norm", "dt", "dt_biased",
        "softplus", *TOKEN, "silu_z", "gated", "out_operand", "out_product",
        *rank_sites("out"), "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "mamba1",
        "mixers",
        projections="in_proj x_proj dt_proj out_proj",
        biases="in_proj_bias out_proj_bias",
        recurrence="A_log dt_bias D",
        conv="conv_weight conv_bias",
        norms=with_biases("norm", "dt_norm", "B_norm", "C_norm"),
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs, and h."""
        return (
            HandedOn("window", "window", ("xz",)),
            HandedOn("state", "state", ("state",)),
        )

    def parameters(self, get: Get) -> Mamba1Parameters:
        """Put the flow's parameters together from stored ones."""
        norms: dict[str, Any] = {}
        if self.mixer_norm_epsilon is not None:
            norms: dict[str, Any] = {
                name: norm_of(get, name, self.mixer_norm_epsilon, False)
                for name in ("dt_norm", "B_norm", "C_norm")
            }
        x_proj, dt_proj = get("x_proj"), get("dt_proj")
        alone = self.heads == 1
        return Mamba1Parameters(
            norm=norm_of(get, "norm", self.norm_epsilon, self.norm_centred)
            if self.norm_front
            else None,
            in_proj=Weight(get("in_proj")),
            in_proj_bias=get("in_proj_bias"),
            **convolution(get),
            x_proj=Weight(x_proj) if alone else tuple(Weight(w) for w in x_proj),
            dt_proj=Weight(dt_proj) if alone else tuple(Weight(w) for w in dt_proj),
            dt_bias=get("dt_bias"),
            A_log=get("A_log"),
            D=get("D"),
            out_proj=Weight(get("out_proj")),
            out_proj_bias=get("out_proj_bias"),
            **norms,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        at_once = batch * tokens_at_once(2 * self.d_inner, 1, batch)
        rows = 3 * self.d_model + 2 * self.dt_rank + self.d_conv
        return Counts(
            # B, C and A_log
            weights=self.d_inner * (rows + 3 * self.d_state),
            channels=self.d_inner,
            scores=0,
            states=self.d_inner * self.d_state,
            at_once=at_once,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a channel and state."""
        dt = np.asarray(observed["dt"], np.float64)
        # heads one after the other, as the flow puts them
        A_log = raw["A_log"].astype(np.float64).reshape(dt.shape[-1], -1)
        used = as_stored(raw, "dt_bias", "D") | {"A_log": A_log}
        return Dynamics(1, None, dt, -np.exp(A_log), used)
