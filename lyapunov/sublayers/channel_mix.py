"""What channel mixing of RWKV-4 computes: an MLP of this token and the one before.

After `RwkvFeedForward` of transformers 5.24.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import AbstractSublayer, Counts, Get, HandedOn, with_biases, within
from .norm import Norm, norm_of, normalise
from .short_conv import ONLY_A_WINDOW
from .sites import FRONT
from .token_blocks import in_token_blocks, tokens_at_once
from .token_shift import MIXED, Before, token_shift


class ChannelMixParameters(eqx.Module):
    """One sublayer: the norm and the MLP after it."""

    norm: Norm
    mix: tuple[Float[Array, " d_model"], ...]
    """The present token's share in what keys and receptances are made of."""
    up: Weight
    """(d_hidden, d_model)."""
    r_proj: Weight
    """(d_model, d_model)."""
    down: Weight

    def initial_state(self) -> Before:
        """What is carried before the first token of a text."""
        return Before.zeros(self.mix)


def channel_mix(
    at: AbstractArithmetic, residual, p: ChannelMixParameters, start: Before
):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    widest = max(p.up.matrix.shape[0], 2 * p.mix[0].shape[0])
    return in_token_blocks(at, _channel_mix, residual, p, start, widest=widest)


def _channel_mix(
    at: AbstractArithmetic, residual, p: ChannelMixParameters, start: Before
):
    x = normalise(at, at.store("norm_input", residual), p.norm)
    mixed, window = token_shift(at, x, start.window, p.mix)
    receptance = at.store("receptance_logit", at.matmul(mixed[:, 1], p.r_proj))
    receptance = at.store("receptance", at.sigmoid(receptance))
    up = at.store("up", at.matmul(mixed[:, 0], p.up))
    hidden = at.store("activated", at.relu_squared(up))
    down = at.store("down", at.matmul(hidden, p.down))
    out = at.multiply(receptance, down, alone=at.stores("down"))
    return at.store("out", out), Before(window)


@final
@dataclass(frozen=True)
class ChannelMixSizes(AbstractSublayer):
    """One channel mixing with the norm before it.

    **Arguments:**

    - `halvings`: as of `Rwkv4Sizes`.
    """

    d_model: int
    d_hidden: int
    norm_epsilon: float
    halvings: int = 0

    kind: ClassVar = "channel_mix"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(channel_mix)
    sites: ClassVar = (
        *FRONT, *MIXED, "receptance_logit", "receptance", "up", "activated", "down",
        "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "channel_mix",
        "mlp",
        projections="up r_proj down",
        recurrence="mix_k mix_r",
        norms=with_biases("norm"),
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """What was normalised last."""
        return (HandedOn("window", "window", ("norm",)),)

    def parameters(self, get: Get) -> ChannelMixParameters:
        """Put the flow's parameters together from stored ones."""
        return ChannelMixParameters(
            norm=norm_of(get, "norm", self.norm_epsilon, True),
            mix=tuple(get(f"mix_{name}") for name in "kr"),
            up=Weight(get("up")),
            r_proj=Weight(get("r_proj")),
            down=Weight(get("down")),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations."""
        del length
        wide = max(self.d_hidden, 2 * self.d_model)
        return Counts(
            weights=self.d_model * (2 * self.d_hidden + self.d_model),
            channels=wide,
            scores=0,
            states=0,
            at_once=batch * tokens_at_once(wide, 1, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return ONLY_A_WINDOW
