"""The mixture of a token with the one before it, channel by channel (RWKV)."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic


MIXED = ("mix_rest", "mixed_own", "mixed_before", "mixed")
"""Its sites: 1 - mix, both products and their sum."""


class Before(eqx.Module):
    """What a call needs of the one before it."""

    window: Any
    """(1, d_model), what was normalised last."""

    @staticmethod
    def zeros(mix) -> "Before":
        """As at the start of a text."""
        return Before(jnp.zeros((1, mix[0].shape[0])))


def token_shift(at: AbstractArithmetic, x, window, mix):
    """mix x + (1 - mix) x of the token before, and the window behind the last token.

    **Arguments:**

    - `x`: (seq, d_model). `window`: (1, d_model).
    - `mix`: (d_model) each.

    **Returns:** (seq, mixtures, d_model), and (1, d_model).
    """
    first = lambda a: a[None]
    shares = at.join([at.view(first, one) for one in mix])
    padded = at.join([window, x])
    both = lambda a: a[:, None, :]
    own, before = at.view(both, x), at.view(both, padded[: x.shape[0]])
    stored = at.stores("mixed_own")
    rest = at.add(at.negate(shares), jnp.ones(shares.shape), alone=stored)
    rest = at.store("mix_rest", rest)
    own = at.store("mixed_own", at.multiply(own, shares, alone=stored))
    before = at.store("mixed_before", at.multiply(before, rest, alone=stored))
    mixed = at.store("mixed", at.add(own, before, alone=stored))
    return mixed, padded[x.shape[0] :]
