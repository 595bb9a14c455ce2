"""A format at every stored site: the emulator.

Casts and elementwise operations of IEEE formats are the hardware's own, bit for bit
on identical inputs. Where an implementation leaves the order of a sum or the last
bits of an exponential open, the emulator is one member of the declared set.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..formats import (
    FormatNumbers,
    StateNumbers,
    is_state_numbers,
    round_state,
    round_to,
)
from ._arrays import AbstractJaxArithmetic
from ._form import WHOLE, Form
from ._interface import ScanKernel
from ._row_blocks import emptied


class Rounded(AbstractJaxArithmetic):
    """Emulate an execution.

    **Arguments:**

    - `sites`: the format of each stored site. A site that is not named keeps its
      value in the inner format.
    - `inner`: None for fp32, which runs natively (CPU XLA flushes fp32 subnormals,
      as the CUDA kernels do); otherwise the numbers of a format, and every operation
      is done in fp64 and rounded to it.
    - `key`: for a state that is rounded stochastically; without one it is rounded to
      nearest.
    - `form`: in which a recurrence runs.

    `records` gets every stored tensor outside scans.
    """

    def __init__(
        self,
        sites: dict[str, FormatNumbers | StateNumbers],
        inner: FormatNumbers | None = None,
        *,
        key: Array | None = None,
        in_scan: bool = False,
        in_kernel: bool = False,
        form: Form = WHOLE,
    ):
        self.records = {}
        self.observed = {}
        self._sites = sites
        self._inner = inner
        self._key = key
        self._in_scan = in_scan
        self._in_kernel = in_kernel
        self.form = form

    def stores(self, site):
        """Whether the execution names this site."""
        return site in self._sites

    def store(self, site, x, *, angle=False):
        """Round to the site's format."""
        if site not in self._sites:
            return x
        stored = round_state(jnp.asarray(x, jnp.float64), self._sites[site], self._key)
        if self._in_scan:
            return stored
        after = self._carry(stored)
        # what is carried on holds a number of every format without a scale
        scaled = is_state_numbers(self._sites[site])
        self.records[site] = stored if scaled else after
        return after

    def may_store(self, site, x, *, rescaled=False):
        """Round to the site's format."""
        if site not in self._sites:
            return x
        wide = jnp.asarray(x, jnp.float64)
        return self._carry(round_state(wide, self._sites[site], self._key))

    def reached(self, x, through):
        """NaN where something of `through` is no number."""
        return jnp.where(jnp.all(jnp.isfinite(through), axis=-1), x, jnp.nan)

    def _settle(self, x):
        return x if self._inner is None else round_to(x, self._inner)

    def advance(self, state, a, b):
        """a state + b; around a native fp32 the state keeps fp64 between stores.

        A parallel scan has fewer additions on a term's way than a sequential one, so
        rounding to fp32 at every token would leave the declared depth.
        """
        after = jnp.asarray(a, jnp.float64) * state + b
        return after if self._inner is None else round_to(after, self._inner)

    def _carry(self, x):
        return jnp.asarray(x, jnp.float32 if self._inner is None else jnp.float64)

    def kernel(self, terms):
        """One that stores nothing, where the inner format is native.

        With stores inside a scan there is no kernel.
        """
        if self._inner is not None:
            return None
        inside = lambda numbers, *, compiled=False: Rounded(
            {}, in_scan=True, in_kernel=True
        )
        return ScanKernel(numbers=(), inside=inside)

    def _token_keys(self, tokens):
        draws = any(
            is_state_numbers(numbers) and numbers.stochastic
            for numbers in self._sites.values()
        )
        if self._key is None or not draws:
            return None
        return jax.random.split(self._key, tokens)

    def _inside_block(self, key):
        return emptied(self, _key=self._key if key is None else key)

    def _inside_scan(self, key):
        return Rounded(
            self._sites,
            self._inner,
            key=key,
            in_scan=True,
            form=self.form,
        )
