"""fp64 without rounding sites: the reference, up to its own 2^-53."""

import jax.numpy as jnp

from ..formats import unit_in_first_place
from ._arrays import AbstractJaxArithmetic
from ._interface import ScanKernel


class Exact(AbstractJaxArithmetic):
    """Every operation in fp64; a store changes nothing.

    Tensors that the flow shows with `observe` are kept whole outside a scan; inside
    one, their largest magnitude at each token is.

    **Arguments:**

    - `state_units`: unit roundoffs u of state formats. Inside a scan the share of
      updates b with 0 < |b| <= u ufp(h), too small to move a state h held in that
      format, is observed for each as `stagnation`.
    - `state_smallest`: smallest normal numbers of the same formats. For each the sum of
      squared spacings at the states, and what subnormals add to it over an unlimited
      exponent, are observed as `underflow`.
    - `state_steps`: of the same formats, the distance of two numbers over the largest
      of a channel, which a state is held in steps of; 0, or none given, where formats
      have an exponent. Half of it, too, is too small to move a state.
    - `observes`: False where nobody reads `observed`.
    """

    def __init__(
        self,
        *,
        state_units: tuple[float, ...] = (),
        state_smallest: tuple[float, ...] = (),
        state_steps: tuple[float, ...] = (),
        in_scan: bool = False,
        in_kernel: bool = False,
        observes: bool = True,
    ):
        self.records = {}
        self.observed = {}
        self._state_units = state_units
        self._state_smallest = state_smallest
        self._state_steps = state_steps or (0.0,) * len(state_units)
        self._in_scan = in_scan
        self._in_kernel = in_kernel
        self._observes = observes

    def stores(self, site):
        """Never: nothing is rounded on the way."""
        return False

    def store(self, site, x, *, angle=False):
        """`x` itself."""
        return x

    def observe(self, name, x):
        """Keep the value, or inside a scan its largest magnitude."""
        if self._observes:
            self.observed[name] = jnp.max(jnp.abs(x)) if self._in_scan else x

    def advance(self, state, a, b):
        """a state + b."""
        after = a * state + b
        self._look_at(after, b)
        return after

    def updated(self, kept, drive):
        """kept + drive."""
        after = kept + drive
        self._look_at(*(jnp.moveaxis(x, -1, 0) for x in (after, drive)))
        return after

    def _look_at(self, after, b):
        """What formats would do to a state, (states of a channel, ...), after b."""
        if self._state_units:
            place, size = unit_in_first_place(after), jnp.abs(b)
            most = jnp.max(jnp.abs(after), axis=0)
            halves = [
                step / 2 * most if step else unit * place
                for unit, step in zip(self._state_units, self._state_steps, strict=True)
            ]
            self.observed["stagnation"] = jnp.stack(
                [jnp.mean((size > 0) & (size <= half)) for half in halves]
            )
        if self._state_smallest:
            place = unit_in_first_place(after)
            self.observed["underflow"] = jnp.stack(
                [
                    _squared_spacings(place, unit, smallest)
                    for unit, smallest in zip(
                        self._state_units, self._state_smallest, strict=True
                    )
                ]
            )

    def kernel(self, terms):
        """One that observes the largest at a token, not what formats would do."""
        if self._state_units or self._state_smallest:
            return None
        return ScanKernel(numbers=(), inside=self._in_one_kernel)

    def _in_one_kernel(self, numbers, *, compiled=False):
        return Exact(in_scan=True, in_kernel=True, observes=self._observes)

    def _settle(self, x):
        return x

    def _carry(self, x):
        return jnp.asarray(x, jnp.float64)

    def _inside_scan(self, key):
        return Exact(
            state_units=self._state_units,
            state_smallest=self._state_smallest,
            state_steps=self._state_steps,
            in_scan=True,
            observes=self._observes,
        )


def _squared_spacings(place, unit: float, smallest_normal: float):
    """Sum of squared spacings of a format at the states: (excess over free, total)."""
    free = 2.0 * unit * place
    spacing = jnp.where(place > 0, jnp.maximum(free, 2.0 * unit * smallest_normal), 0.0)
    return jnp.stack([jnp.sum(spacing**2 - free**2), jnp.sum(spacing**2)])
