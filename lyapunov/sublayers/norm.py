"""Norms in front of sublayers, behind them and before the head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import AbstractSublayer, Counts, Get, HandedOn, within
from .sites import FRONT
from .token_blocks import in_token_blocks, tokens_at_once


class Norm(eqx.Module):
    """RMSNorm or LayerNorm over the last axis, with whatever weights it has."""

    weight: Float[Array, " width"] | None
    bias: Float[Array, " width"] | None
    epsilon: float = eqx.field(static=True)
    centred: bool = eqx.field(static=True, default=False)
    """True for LayerNorm, which removes the mean."""
    offset: float = eqx.field(static=True, default=0.0)
    """What weights are stored less: 1 where they are stored around 0 (Qwen3-Next)."""


def norm_of(
    get: Get, name: str, epsilon: float, centred: bool, offset: float = 0.0
) -> Norm:
    """Put a norm together from stored parameters."""
    return Norm(get(name), get(f"{name}_bias"), epsilon, centred, offset)


def normalise(at: AbstractArithmetic, x, p: Norm | None, site: str = "norm"):
    """The normalised input (..., width), stored at `site`; None: the input itself."""
    if p is None:
        return x
    hat = (at.layer_normalise if p.centred else at.rms_normalise)(x, p.epsilon)
    hat = at.store(f"{site}_hat", hat)
    alone = at.stores(f"{site}_hat")
    if (weight := p.weight) is not None:
        if p.offset:
            offset = jnp.full(weight.shape, p.offset)
            weight = at.add(weight, offset, alone=True)
        hat = at.multiply(hat, weight, alone=alone and p.bias is None)
    if p.bias is not None:
        hat = at.add(hat, p.bias)
    return at.store(site, hat)


def front(at: AbstractArithmetic, residual, norm: Norm | None):
    """What a mixer reads: its input normalised, or as it is where a mixer stands alone.

    **Arguments:**

    - `residual`: (seq, d_model).
    - `norm`: None where whoever calls the mixer has normalised, or nobody does.
    """
    x = at.store("norm_input", residual)
    return at.store("norm", x) if norm is None else normalise(at, x, norm)


def with_bias(
    at: AbstractArithmetic, x, weight: Weight, bias, site: str, apart: bool = True
):
    """x W^T + bias, stored at `site`.

    `apart`: programs that store the product first, as `{site}_product`, do so here.
    """
    if bias is None or not apart or not at.stores(f"{site}_product"):
        return at.store(site, at.matmul(x, weight, bias))
    product = at.store(f"{site}_product", at.matmul(x, weight))
    return at.store(site, at.add(product, bias, alone=True))


def scaled(at: AbstractArithmetic, x, multiplier: float, site: str):
    """x times a constant of the model, stored at `site`; x itself where it is 1."""
    if multiplier == 1.0:
        return x
    return at.store(site, at.multiply(x, at.fixed(multiplier)))


class NormParameters(eqx.Module):
    """A norm in the stream."""

    norm: Norm
    keeps: float = eqx.field(static=True, default=0.0)

    def initial_state(self):
        """Nothing is carried."""
        return


def norm(at: AbstractArithmetic, residual, p: NormParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""

    def block(at, residual, p, start):
        out = normalise(at, at.store("norm_input", residual), p.norm)
        return at.store("out", out), start

    widest = residual.shape[-1]
    return in_token_blocks(at, block, residual, p, start, widest=widest)


@final
@dataclass(frozen=True)
class NormSizes(AbstractSublayer):
    """A norm that stands in the stream: what is behind it reads, and is added to, what
    it puts out (MiniMax)."""

    d_model: int
    norm_epsilon: float
    keeps: float = 0.0

    kind: ClassVar = "norm"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(norm)
    sites: ClassVar = (*FRONT, "out")
    weight_groups: ClassVar = within(norms="norm")

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """Nothing: every token goes through alone."""
        return ()

    def parameters(self, get: Get) -> NormParameters:
        """Put the flow's parameters together from stored ones."""
        own = Norm(get("norm"), None, self.norm_epsilon)
        return NormParameters(own, self.keeps)

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count activations: there is no matrix."""
        del length
        at_once = batch * tokens_at_once(self.d_model, 1, batch)
        return Counts(0, self.d_model, scores=0, states=0, at_once=at_once)

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return "no exponent: no state"
