"""Exact arithmetic with a free offset at every stored site.

Differentiating through the offsets gives the adjoint and tangent of a flow with
respect to its own roundings.
"""

import jax.numpy as jnp

from ._interface import AbstractJaxArithmetic


class Perturbed(AbstractJaxArithmetic):
    """fp64, with `offsets[site]` added where the site is stored.

    `records` gets the values before the offset, whose magnitudes bound the rounding.
    """

    def __init__(self, offsets: dict, *, in_scan: bool = False):
        self.records = {}
        self.observed = {}
        self._offsets = offsets
        self._in_scan = in_scan

    def stores(self, site):
        """Whether the site has an offset."""
        return site in self._offsets

    def store(self, site, x):
        """`x` plus the site's offset."""
        if self._in_scan or site not in self._offsets:
            return x
        self.records[site] = x
        return x + self._offsets[site]

    def _settle(self, x):
        return x

    def advance(self, state, a, b):
        """a state + b."""
        return a * state + b

    def _carry(self, x):
        return jnp.asarray(x, jnp.float64)

    def _inside_scan(self, key):
        return Perturbed(self._offsets, in_scan=True)
