"""Exact arithmetic with a free offset at every stored site.

Differentiating through the offsets gives the adjoint and tangent of a flow with
respect to its own roundings.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._interface import AbstractJaxArithmetic


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
    """

    def __init__(
        self,
        offsets: dict[str, Float[Array, "..."]],
        scan_offsets: dict[str, Float[Array, "..."]] | None = None,
        *,
        in_scan: bool = False,
        chunked: bool = False,
    ):
        self.records = {}
        self.scan_records = {}
        self.repeats: dict[str, tuple[str, ...]] = {}
        self.observed = {}
        self._offsets = offsets
        self._scan_offsets = scan_offsets or {}
        self._in_scan = in_scan
        self.chunked = chunked
        self._stored: list[tuple[str, Array]] = []

    def stores(self, site):
        """Whether the site has an offset."""
        return site in self._offsets or site in self._scan_offsets

    def store(self, site, x):
        """`x` plus the site's offset."""
        offsets = self._scan_offsets if self._in_scan else self._offsets
        if site not in offsets:
            return x
        self.records[site] = x
        after = x + offsets[site]
        self.repeats[site] = tuple(s for s, stored in self._stored if stored is x)
        self._stored.append((site, after))
        return after

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
