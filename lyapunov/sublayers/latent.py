"""Latents: fewer channels that queries, keys or values are made of (DeepSeek-V2's MLA).

arXiv 2405.04434, section 2.1: what the latent's width leaves over of its projection is
a part of the key that all heads share.
"""

import equinox as eqx
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import Get
from .mlp import weight_of
from .norm import Norm, norm_of, normalise


class Latent(eqx.Module):
    """A projection to fewer channels, and the norm of the leading ones."""

    down: Weight
    """(rank + shared, width)."""
    bias: Float[Array, " rows"] | None
    norm: Norm
    """Over rank channels."""


def latent_of(get: Get, name: str, epsilon: float) -> Latent | None:
    """Put a latent together from stored parameters; None where there is none."""
    down = weight_of(get, name)
    if down is None:
        return None
    norm = norm_of(get, f"{name}_norm", epsilon, False)
    return Latent(down, get(f"{name}_bias"), norm)


def latent(at: AbstractArithmetic, x, p: Latent | None, rank: int, site: str):
    """The normalised latent (seq, rank) of an input, and what is left beside it.

    **Returns:** the input itself, and None, where there is no latent.
    """
    if p is None:
        return x, None
    low = at.store(site, at.matmul(x, p.down, p.bias))
    return normalise(at, low[..., :rank], p.norm, f"{site}_norm"), low[..., rank:]
