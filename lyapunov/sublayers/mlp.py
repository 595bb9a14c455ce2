"""Feed-forward sublayers, plain and gated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Get,
    HandedOn,
    with_biases,
    within,
)
from .norm import Norm, norm_of, normalise, scaled
from .sites import BEHIND, FRONT, GELU_NEW
from .token_blocks import in_token_blocks, tokens_at_once


NO_STATE = "no exponent: no state"

FEED_FORWARD = (
    "up_operand",
    "up_shared", "up_low", "up_own", "up", "gate_shared", "gate_low", "gate_own",
    "gate", "gate_scaled", *(f"activated_{part}" for part in GELU_NEW), "activated",
    "hidden", "down_operand", "down",
)  # fmt: skip
"""Sites between the norms of an MLP."""

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "gelu_new", "relu_squared")


def activate(at: AbstractArithmetic, x, name: str, site: str):
    """Compute the activation of that name and store it at the site.

    `gelu_new` is `gelu_tanh` written out in operations, of which each may be stored.
    """
    if name == "silu":
        return at.store(site, at.silu(x))
    if name == "relu_squared":
        return at.store(site, at.relu_squared(x))
    if name == "gelu_new" and at.stores(f"{site}_cube"):
        return at.store(site, _gelu_new(at, x, site))
    return at.store(site, at.gelu(x, tanh=name != "gelu"))


def _gelu_new(at: AbstractArithmetic, x, site: str):
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), an operation at a time."""
    kept = at.stores(f"{site}_square")
    square = at.store(f"{site}_square", at.multiply(x, x, alone=kept))
    cube = at.store(f"{site}_cube", at.multiply(square, x, alone=kept))
    cubic = at.multiply(cube, at.fixed(0.044715), alone=True)
    total = at.add(x, at.store(f"{site}_cubic", cubic), alone=True)
    total = at.store(f"{site}_sum", total)
    argument = at.multiply(total, at.fixed(math.sqrt(2 / math.pi)), alone=True)
    tanh = at.tanh(at.store(f"{site}_argument", argument))
    tanh = at.store(f"{site}_tanh", tanh)
    whole = at.store(f"{site}_whole", at.add(tanh, at.fixed(1.0), alone=True))
    half = at.store(f"{site}_half", at.multiply(x, at.fixed(0.5), alone=True))
    return at.multiply(half, whole, alone=True)


class LowRank(eqx.Module):
    """A product of two matrices that is added to a shared one (Zamba2's adapters)."""

    down: Weight
    """(rank, width)."""
    up: Weight
    """(rows, rank)."""


def weight_of(get: Get, name: str) -> Weight | None:
    """A matrix that a model may do without."""
    matrix = get(name)
    return None if matrix is None else Weight(matrix)


def adapter_of(get: Get, name: str) -> LowRank | None:
    """A layer's own addition to a shared matrix, where it has one."""
    down, up = (weight_of(get, f"{name}_adapter_{way}") for way in ("down", "up"))
    return None if down is None or up is None else LowRank(down, up)


def projected(
    at: AbstractArithmetic, x, weight: Weight, bias, adapter: LowRank | None, site: str
):
    """x W^T + bias, and what the adapter adds, stored at `site`."""
    y = at.matmul(x, weight, bias)
    if adapter is not None:
        y = at.store(f"{site}_shared", y)
        low = at.store(f"{site}_low", at.matmul(x, adapter.down))
        y = at.add(y, at.store(f"{site}_own", at.matmul(low, adapter.up)))
    return at.store(site, y)


def around(sizes: Any, get: Get) -> dict[str, Any]:
    """Norms in front of and behind a sublayer, and the multiplier of its output."""
    how = sizes.norm_epsilon, sizes.norm_centred, sizes.norm_offset
    make = lambda name: norm_of(get, name, *how)
    return {
        "norm": make("norm") if sizes.norm_front else None,
        "norm_behind": make("norm_behind") if sizes.norm_behind else None,
        "out_multiplier": sizes.out_multiplier,
        "keeps": sizes.keeps,
    }


class MlpParameters(eqx.Module):
    """One sublayer: the norm and the MLP after it."""

    norm: Norm | None
    up: Weight
    """(d_hidden, d_model)."""
    up_bias: Float[Array, " d_hidden"] | None
    gate: Weight | None
    """(d_hidden, d_model); None: no gate, the activation is on `up`."""
    gate_bias: Float[Array, " d_hidden"] | None
    down: Weight
    """(d_model, d_hidden)."""
    down_bias: Float[Array, " d_model"] | None
    activation: str = eqx.field(static=True)
    gate_multiplier: float = eqx.field(static=True, default=1.0)
    down_multiplier: float = eqx.field(static=True, default=1.0)
    out_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the output, before it joins the residual (Granite)."""
    keeps: float = eqx.field(static=True, default=1.0)
    """Of the stream that is read, before the output joins it (MiniMax)."""
    norm_behind: Norm | None = None
    """Of the output (OLMo 2)."""
    up_adapter: LowRank | None = None
    gate_adapter: LowRank | None = None

    def initial_state(self):
        """Nothing is carried."""
        return


def mlp(at: AbstractArithmetic, residual, p: MlpParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    widest = p.up.matrix.shape[0]
    return in_token_blocks(at, _mlp, residual, p, start, widest=widest)


def _mlp(at: AbstractArithmetic, residual, p: MlpParameters, start):
    x = normalise(at, at.store("norm_input", residual), p.norm)
    out = at.store("out", feed_forward(at, x, p))
    out = normalise(at, out, p.norm_behind, "norm_behind")
    return scaled(at, out, p.out_multiplier, "out_scaled"), start


def feed_forward(at: AbstractArithmetic, x, p: MlpParameters):
    """The MLP on a normalised input."""
    x = at.store("up_operand", x)
    up = projected(at, x, p.up, p.up_bias, p.up_adapter, "up")
    if p.gate is None:
        hidden = activate(at, up, p.activation, "activated")
    else:
        gate = projected(at, x, p.gate, p.gate_bias, p.gate_adapter, "gate")
        gate = scaled(at, gate, p.gate_multiplier, "gate_scaled")
        gate = activate(at, gate, p.activation, "activated")
        hidden = at.store("hidden", at.multiply(up, gate, alone=at.stores("activated")))
    hidden = at.store("down_operand", hidden)
    out = at.matmul(hidden, p.down, p.down_bias)
    if p.down_multiplier != 1.0:
        out = at.multiply(at.store("down", out), at.fixed(p.down_multiplier))
    return out


@final
@dataclass(frozen=True)
class MlpSizes(AbstractSublayer):
    """One MLP with the norm before it; names as for `AttentionSizes`.

    **Arguments:**

    - `gated`: whether a second projection is activated and multiplies the first.
    """

    d_model: int
    d_hidden: int
    activation: str
    gated: bool
    norm_epsilon: float
    norm_centred: bool = False
    norm_offset: float = 0.0
    norm_front: bool = True
    norm_behind: bool = False
    gate_multiplier: float = 1.0
    down_multiplier: float = 1.0
    out_multiplier: float = 1.0
    keeps: float = 1.0
    beside: bool = False

    kind: ClassVar = "mlp"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(mlp)
    sites: ClassVar = (*FRONT, *FEED_FORWARD, *BEHIND)
    weight_groups: ClassVar = within(
        "mlp",
        projections="up gate down up_adapter_down up_adapter_up gate_adapter_down"
        " gate_adapter_up",
        biases="up_bias gate_bias down_bias",
        norms=with_biases("norm", "norm_behind"),
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """Nothing: every token goes through alone."""
        return ()

    @property
    def projections(self) -> int:
        """How many matrices there are."""
        return 3 if self.gated else 2

    def parameters(self, get: Get) -> MlpParameters:
        """Put the flow's parameters together from stored ones."""
        return MlpParameters(
            up=Weight(get("up")),
            up_bias=get("up_bias"),
            gate=weight_of(get, "gate"),
            gate_bias=get("gate_bias"),
            down=Weight(get("down")),
            down_bias=get("down_bias"),
            activation=self.activation,
            gate_multiplier=self.gate_multiplier,
            down_multiplier=self.down_multiplier,
            up_adapter=adapter_of(get, "up"),
            gate_adapter=adapter_of(get, "gate"),
            **around(self, get),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations."""
        at_once = batch * tokens_at_once(self.d_hidden, 1, batch)
        whole = at_once >= batch * length
        return Counts(
            weights=self.projections * self.d_model * self.d_hidden,
            channels=self.d_hidden,
            scores=0,
            states=0,
            # Granite-4-H's widths, a copy of the weights taken off: 20 of T0 and T1 at
            # once and 6 streams, 12 in blocks and 4
            arrays=22 if whole else 14,
            streams=6 if whole else 4,
            at_once=at_once,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return NO_STATE
