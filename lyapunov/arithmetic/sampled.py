"""Exact arithmetic with random roundings: one draw of what an execution may lose.

A rounding to nearest is taken to be uniform within half a spacing and independent of
all others. For rounding to nearest that is a model and no theorem (Higham and Mary
2019, SIAM J. Sci. Comput. 41(5), section 2); where it fails, as it does for constant
inputs under a 16-bit state, calibration has to show it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..formats import (
    FormatNumbers,
    StateNumbers,
    is_held,
    is_state_numbers,
    round_state,
    state_error_bound,
)
from ._arrays import AbstractJaxArithmetic
from ._form import WHOLE, Form
from ._row_blocks import emptied
from .rules.declared import written_out


KEYS_AT_ONCE = 16


class Sampled(AbstractJaxArithmetic):
    """fp64, with a random offset of the rounding's size at every stored site.

    No offset where nothing is rounded: where the value is a number of the format, and
    where a tensor is stored again in a format that it was stored in before. Where a
    state is rounded stochastically it is so here.

    **Arguments:**

    - `sites`: the format of each stored site.
    - `key`: for the draws; the same key gives the same draws.
    - `sign`: 1, or -1 for the opposite offsets of the same key.
    - `inner`: numbers of a format that every operation is rounded to as well; None
      where that does not show beside the stores.
    - `inner_sums`: as well what is rounded on the way of a sum: sums of products, and
      of a recurrence's state. Of n products it is taken to be sqrt(n) roundings of
      their root sum of squares.
    - `form`: in which a recurrence runs.
    """

    def __init__(
        self,
        sites: dict[str, FormatNumbers | StateNumbers],
        key: Array,
        sign: Float[Array, ""] | float = 1.0,
        *,
        inner: FormatNumbers | None = None,
        inner_sums: bool = False,
        form: Form = WHOLE,
    ):
        self.records = {}
        self.observed = {}
        self._sites = sites
        self._key = key
        self._sign = sign
        self._inner = inner
        self._inner_sums = inner_sums
        self.form = form
        self._draws = 0
        self._stored: list[tuple[Any, FormatNumbers | StateNumbers]] = []

    def stores(self, site):
        """Whether the execution names this site."""
        return site in self._sites

    def store(self, site, x, *, angle=False):
        """`x` plus what rounding it may have moved it by."""
        return self._round(x, self._sites[site]) if site in self._sites else x

    def may_store(self, site, x, *, rescaled=False):
        """As `store`."""
        return self.store(site, x)

    def _round(self, x, numbers):
        if is_state_numbers(numbers) and numbers.stochastic:
            offset = round_state(x, numbers, self._next_key()) - x
        else:
            offset = self._draw(x.shape) * jnp.where(
                is_held(x, numbers),
                0.0,
                state_error_bound(jnp.abs(x), numbers),
            )
        after = x + self._sign * offset * rounds_again(x, numbers, self._stored)
        self._stored.append((after, numbers))
        return after

    def _draw(self, shape):
        # one word a draw: 2^-24 of an offset's size is nothing here
        draw = jax.random.uniform(
            self._next_key(), shape, jnp.float32, minval=-1.0, maxval=1.0
        )
        # else every reader of what is stored would draw again
        return jnp.asarray(written_out(draw), jnp.float64)

    def _next_key(self):
        # several at once: to make a key takes a program as much as to draw with it
        block, place = divmod(self._draws, KEYS_AT_ONCE)
        if place == 0:
            block_key = jax.random.fold_in(self._key, block)
            self._keys = jax.random.split(block_key, KEYS_AT_ONCE)
        self._draws += 1
        return self._keys[place]

    def _settle(self, x):
        return x if self._inner is None else self._round(x, self._inner)

    def advance(self, state, a, b):
        """a state + b, rounded where sums are."""
        after = a * state + b
        return self._settle(after) if self._inner_sums else after

    def matmul(self, x, weight, bias=None):
        """The sum, with the roundings on its way where sums have some."""
        product = super().matmul(x, weight, bias)
        if self._inner is None or not self._inner_sums:
            return product
        terms = weight.matrix.shape[-1]
        square = jnp.matmul(x**2, (weight.matrix**2).T, precision="highest")
        size = self._inner.unit * (terms * square) ** 0.5
        return product + self._draw(product.shape) * size

    def _carry(self, x):
        return jnp.asarray(x, jnp.float64)

    def _token_keys(self, tokens):
        return jax.random.split(self._next_key(), tokens)

    def _inside_block(self, key):
        return emptied(self, _key=key, _draws=0, _stored=[])

    def _inside_scan(self, key):
        assert key is not None
        return Sampled(
            self._sites,
            key,
            self._sign,
            inner=self._inner,
            inner_sums=self._inner_sums,
            form=self.form,
        )


def rounds_again(x, numbers, stored) -> Float[Array, ""]:
    """0 where `x` is a stored tensor whose numbers this format holds, else 1.

    **Arguments:**

    - `stored`: (tensor, numbers of its format) of the stores so far; told by identity.
    """
    again = jnp.ones(())
    for tensor, before in stored:
        if tensor is x:
            again = jnp.where(holds_numbers_of(numbers, before), 0.0, again)
    return again


def holds_numbers_of(
    numbers: FormatNumbers | StateNumbers, before: FormatNumbers | StateNumbers
) -> Bool[Array, ""]:
    """Whether every finite number of the format `before` is one of `numbers`."""
    if is_state_numbers(numbers) or is_state_numbers(before):
        return jnp.asarray(False)
    return (
        (numbers.shift <= before.shift)
        & (numbers.smallest <= before.smallest)
        & (numbers.largest >= before.largest)
    )
