"""Short convolutions between two gates, as LFM2 computes them.

After `Lfm2ShortConv` of transformers 5.24. A window of the last inputs is all that a
token finds of those before it: the Jacobian of so many tokens is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Get,
    HandedOn,
    convolution,
    with_biases,
    within,
)
from .norm import Norm, norm_of, normalise
from .sites import FRONT
from .token_blocks import in_token_blocks, tokens_at_once


ONLY_A_WINDOW = "no exponent: a window of a few tokens, whose exponents are all -inf"


class ShortConvParameters(eqx.Module):
    """One sublayer: the norm and the convolution after it."""

    norm: Norm
    in_proj: Weight
    """(3 d_model, d_model): the gate in front, that behind, and what is gated."""
    in_proj_bias: Float[Array, " channels"] | None
    conv_weight: Float[Array, "d_model d_conv"]
    conv_bias: Float[Array, " d_model"]
    out_proj: Weight
    out_proj_bias: Float[Array, " d_model"] | None

    def initial_state(self) -> "Window":
        """What is carried before the first token of a text."""
        channels, taps = self.conv_weight.shape
        return Window(jnp.zeros((taps - 1, channels)))


class Window(eqx.Module):
    """What a call needs of the one before it."""

    window: Any
    """(d_conv - 1, d_model), the last inputs of the convolution."""


def short_conv(at: AbstractArithmetic, residual, p: ShortConvParameters, start: Window):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the stream before the norm.

    **Returns:** the output (seq, d_model), and the window behind the last token.
    """
    widest = p.in_proj.matrix.shape[0]
    return in_token_blocks(at, _short_conv, residual, p, start, widest=widest)


def _short_conv(
    at: AbstractArithmetic, residual, p: ShortConvParameters, start: Window
):
    x = normalise(at, at.store("norm_input", residual), p.norm)
    channels = p.conv_weight.shape[0]
    given = at.store("xz", at.matmul(x, p.in_proj, p.in_proj_bias))
    before, behind = given[..., :channels], given[..., channels : 2 * channels]
    inputs = at.multiply(before, given[..., 2 * channels :], alone=at.stores("xz"))
    inputs = at.store("conv_input", inputs)
    padded = at.join([start.window, inputs])
    mixed = at.store("conv", at.causal_conv(padded, p.conv_weight, p.conv_bias))
    y = at.store("gated", at.multiply(behind, mixed, alone=at.stores("conv")))
    out = at.store("out", at.matmul(y, p.out_proj, p.out_proj_bias))
    return out, Window(padded[residual.shape[0] :])


@final
@dataclass(frozen=True)
class ShortConvSizes(AbstractSublayer):
    """One short convolution with the norm before it.

    **Arguments:**

    - `d_conv`: taps of the convolution.
    """

    d_model: int
    d_conv: int
    norm_epsilon: float

    kind: ClassVar = "short_conv"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(short_conv)
    sites: ClassVar = (*FRONT, "xz", "conv_input", "conv", "gated", "out")
    weight_groups: ClassVar = within(
        "short_conv",
        projections="in_proj out_proj",
        biases="in_proj_bias out_proj_bias",
        norms=with_biases("norm"),
        conv="conv_weight conv_bias",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs."""
        return (HandedOn("window", "window", ("conv_input",)),)

    def parameters(self, get: Get) -> ShortConvParameters:
        """Put the flow's parameters together from stored ones."""
        return ShortConvParameters(
            norm=norm_of(get, "norm", self.norm_epsilon, False),
            in_proj=Weight(get("in_proj")),
            in_proj_bias=get("in_proj_bias"),
            **convolution(get),
            out_proj=Weight(get("out_proj")),
            out_proj_bias=get("out_proj_bias"),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations."""
        del length
        wide = 3 * self.d_model
        return Counts(
            weights=self.d_model * (wide + self.d_model + self.d_conv),
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
