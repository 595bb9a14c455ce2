"""Exact arithmetic with a free offset at every stored site.

Differentiating through the offsets gives the adjoint and tangent of a flow with
respect to its own roundings.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._arrays import AbstractJaxArithmetic
from ._form import WHOLE, Form
from ._row_blocks import emptied, gauged, over_blocks


STATES_AT_ONCE = 2**26
"""Entries of a scan's states that a reverse pass holds: 512 MiB. Of more, it holds one
block of tokens, and computes the others anew from the state in front of them."""


class Perturbed(AbstractJaxArithmetic):
    """fp64, with `offsets[site]` added where the site is stored outside a scan.

    `records` gets the values before the offset, whose magnitudes bound the rounding.
    `repeats` names for a site, of those that are stored, the earlier ones that stored
    the very same tensor.

    **Arguments:**

    - `offsets`: of sites outside scans.
    - `form`: in which a recurrence runs.
    - `gauges`: of sites, (sizes, 2), in place of offsets (see `gauged`), in scans and
      blocks of rows as well, which hold no offset of all rows.
    - `sizes`: `(site, x)` to the arrays that each gauge is for, shaped as x.
    """

    def __init__(
        self,
        offsets: dict[str, Float[Array, "..."]],
        *,
        form: Form = WHOLE,
        gauges: dict[str, Float[Array, "sizes 2"]] | None = None,
        sizes: Callable[[str, Array], tuple[Array, ...]] = lambda site, x: (),
    ):
        self.records = {}
        self.repeats: dict[str, tuple[str, ...]] = {}
        self.observed = {}
        self._offsets = offsets
        self.form = form
        self._stored: list[tuple[Array, str]] = []
        self._gauges = gauges or {}
        self._sizes = sizes
        self._in_scan = False

    def stores(self, site):
        """Whether the site has an offset or a gauge."""
        return site in self._offsets or site in self._gauges

    def store(self, site, x, *, angle=False):
        """`x` plus the site's offset, or under its gauge."""
        if site in self._gauges:
            sizes = jax.lax.stop_gradient(self._sizes(site, x))
            after = gauged(x, self._gauges[site], sizes)
        elif site in self._offsets and not self._in_scan:
            self.records[site] = x
            after = x + self._offsets[site]
        else:
            return x
        self.repeats[site] = tuple(s for stored, s in self._stored if stored is x)
        self._stored.append((after, site))
        return after

    def in_row_blocks(self, body, state, x, rows, *, pairs=False):
        """At once where there are offsets: they are held for all rows."""
        if self._offsets:
            return body(self, state, x)
        return super().in_row_blocks(body, state, x, rows, pairs=pairs)

    def _inside_block(self, key):
        # the names of what it stores go where the caller finds them
        return emptied(self, _stored=[])

    def _settle(self, x):
        return x

    def advance(self, state, a, b):
        """a state + b."""
        return a * state + b

    def _carry(self, x):
        return jnp.asarray(x, jnp.float64)

    def _inside_scan(self, key):
        return emptied(self, _stored=[], _in_scan=True)

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body; backward, each token is computed anew.

        So a reverse pass holds the states of all tokens, or of a block of them, and
        nothing else of that size.
        """

        def one(state, x):
            return body(self._inside_scan(None), state, x)

        # a scan keeps its steps apart by itself
        one = jax.checkpoint(one, prevent_cse=False)
        tokens = jax.tree.leaves(inputs)[0].shape[0]
        if tokens * sum(a.size for a in jax.tree.leaves(state)) <= STATES_AT_ONCE:
            return jax.lax.scan(one, state, inputs)
        make = lambda key, places: (self, dict)
        some = lambda at, state, x: jax.lax.scan(one, state, x)
        state, outputs, _ = over_blocks(
            make, some, state, inputs, math.isqrt(tokens - 1) + 1
        )
        return state, outputs
