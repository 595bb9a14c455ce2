"""Exact arithmetic with a free offset at every stored site.

Differentiating through the offsets gives the adjoint and tangent of a flow with
respect to its own roundings.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._arrays import AbstractJaxArithmetic
from ._row_blocks import emptied, gauged


class Perturbed(AbstractJaxArithmetic):
    """fp64, with `offsets[site]` added where the site is stored.

    `records` gets the values before the offset, whose magnitudes bound the rounding;
    `scan_records` the same of sites inside a scan, (tokens, ...). `repeats` names for
    a site the earlier ones that stored the very same tensor.

    **Arguments:**

    - `offsets`: of sites outside scans.
    - `scan_offsets`: of sites inside, (tokens, ...), or a scalar for all tokens. A
      scan of a flow is taken to run once, over all channels.
    - `chunked`: run a recurrence that has a chunked form in it.
    - `gauges`: of sites, (sizes, 2). Where rows go in blocks, which hold no offset of
      all rows, a site has its gauge instead (see `gauged`), and is put into
      `in_blocks`. Without gauges rows go at once.
    - `sizes`: `(site, x)` to the arrays that each gauge is for, shaped as x.
    """

    def __init__(
        self,
        offsets: dict[str, Float[Array, "..."]],
        scan_offsets: dict[str, Float[Array, "..."]] | None = None,
        *,
        in_scan: bool = False,
        chunked: bool = False,
        gauges: dict[str, Float[Array, "sizes 2"]] | None = None,
        sizes: Callable[[str, Array], tuple[Array, ...]] = lambda site, x: (),
    ):
        self.records = {}
        self.scan_records = {}
        self.in_blocks: set[str] = set()
        self.repeats: dict[str, tuple[str, ...]] = {}
        self.observed = {}
        self._offsets = offsets
        self._scan_offsets = scan_offsets or {}
        self._in_scan = in_scan
        self.chunked = chunked
        self._stored: list[tuple[str, Array]] = []
        self._gauges = gauges or {}
        self._sizes = sizes
        self._in_block = False

    def stores(self, site):
        """Whether the site has an offset or a gauge."""
        return any(
            site in of for of in (self._offsets, self._scan_offsets, self._gauges)
        )

    def store(self, site, x, *, angle=False):
        """`x` plus the site's offset."""
        if self._in_block:
            return self._gauged(site, x)
        offsets = self._scan_offsets if self._in_scan else self._offsets
        if site not in offsets:
            return x
        self.records[site] = x
        after = x + offsets[site]
        self.repeats[site] = tuple(s for s, stored in self._stored if stored is x)
        self._stored.append((site, after))
        return after

    def _gauged(self, site, x):
        if site not in self._gauges:
            return x
        sizes = jax.lax.stop_gradient(self._sizes(site, x))
        after = gauged(x, self._gauges[site], sizes)
        self.repeats[site] = tuple(s for s, stored in self._stored if stored is x)
        self._stored.append((site, after))
        self.in_blocks.add(site)
        return after

    def in_row_blocks(self, body, x, rows):
        """At once without gauges: offsets are held for all rows."""
        return super().in_row_blocks(body, x, rows if self._gauges else x.shape[0])

    def _inside_block(self, key):
        # the names of what it stores go where the caller finds them
        return emptied(self, _in_block=True, _stored=[])

    def _settle(self, x):
        return x

    def advance(self, state, a, b):
        """a state + b."""
        return a * state + b

    def _carry(self, x):
        return jnp.asarray(x, jnp.float64)

    def _inside_scan(self, key):
        return Perturbed(self._offsets, self._scan_offsets, in_scan=True)

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body; backward, each token is computed anew.

        So a reverse pass holds the states of all tokens, and nothing else of that
        size.
        """
        tokens = jax.tree.leaves(inputs)[0].shape[0]
        per_token = {
            site: offset if jnp.ndim(offset) else jnp.broadcast_to(offset, (tokens,))
            for site, offset in self._scan_offsets.items()
        }
        repeats = {}

        def one(state, given):
            x, offsets = given
            inside = Perturbed(self._offsets, offsets, in_scan=True)
            state, output = body(inside, state, x)
            repeats.update(inside.repeats)
            return state, (output, inside.records)

        # a scan keeps its steps apart by itself
        one = jax.checkpoint(one, prevent_cse=False)
        state, (outputs, records) = jax.lax.scan(one, state, (inputs, per_token))
        self.scan_records.update(records)
        self.repeats.update(repeats)
        return state, outputs
