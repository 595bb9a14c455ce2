"""Rules of the bounded interpreter for chunked scans, attention and MLPs.

Moves of entries, masks, running sums, products of two values, softmax and what else a
Transformer's sublayers compute. The model and the other rules are those of
`bounded.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..formats import rounding_error_bound
from ._bounded_values import SAFETY, Bounded, lift, where_known
from ._row_blocks import emptied, over_blocks


# sup |gelu'| = 1.12890 at sqrt(2); sup |gelu''| = 2 phi(0) = 0.79789 at 0. The
# approximation by tanh stays within 0.0005 of slope and 0.004 of curvature.
GELU_SLOPE = 1.13
GELU_CURVATURE = 0.803

# Nonnegative terms that add up to more are not all flushed to 0 in an execution.
LEAST_SUM = 2.0**-100


class BlockRules:
    """To be mixed into `BoundedArithmetic`, whose attributes it reads."""

    records: dict[str, Any]
    _model: Any
    _sites: Any
    _anchors: Any
    store: Any
    _scan_depth: int
    _accumulation_depth: Any
    _reduction_depth: Any
    _settle: Any
    _operand: Any
    _unless_overflow: Any
    rms_normalise: Any

    def in_row_blocks(self, body, x, rows):
        """One block after another; of a trace's anchors each takes its own rows."""
        x = lift(x)
        if rows >= x.shape[0]:
            return body(self, x, jnp.arange(x.shape[0]))

        def make(_):
            inside: Any = emptied(self)
            return inside, lambda: self._kept(inside.records)

        def of_these(at, block, places):
            at._rows = places
            return body(at, block, places)

        output, kept = over_blocks(make, of_these, x, rows)
        self.records.update(kept)
        return output

    def _kept(self, records):
        """What stays of a block's records; arrays whose second axis are its rows."""
        return records

    def carry(self, x):
        """A value with its error; a constant has none."""
        x = lift(x)
        return Bounded(x.value, x.error)

    def view(self, f, x):
        """Entries and their errors move together."""
        x = lift(x)
        return Bounded(f(x.value), f(x.error))

    def clip(self, x, low, high):
        """Clipping brings two numbers closer together, never further apart.

        What may be NaN stays so: an error that is not finite stays as it is.
        """
        x = lift(x)
        return Bounded(jnp.clip(x.value, low, high), x.error, x.norm)

    def mask(self, x, keep):
        """Kept entries keep their errors; the others are 0 in every execution.

        But for what may be no number: executions that multiply by the mask, or by
        exponentials of -inf, make NaN of it.
        """
        x = lift(x)
        return Bounded(x.value * keep, where_known(x.known, x.error * keep))

    def reached(self, x, through):
        """No bound where 0 times an infinity or a NaN may have been added."""
        x = lift(x)
        known = jnp.all(lift(through).known, axis=-1)
        return Bounded(x.value, where_known(known, x.error))

    def cumsum(self, x, *, serial=False):
        """Errors add up; a term goes through at most `scan_depth` additions."""
        x = self._operand(x)
        levels = x.shape[0] - 1
        if not serial:
            levels = min(self._scan_depth + 1, levels)
        growth = jnp.expm1(levels * self._model.unit)
        total = jnp.cumsum(x.magnitude, axis=0)
        error = jnp.cumsum(x.error, axis=0) + growth * total
        flushed = 2.0 * x.shape[0] * self._model.underflow
        flushed = self._unless_overflow(total, flushed)
        return Bounded(jnp.cumsum(x.value, axis=0), (error + flushed) * SAFETY)

    def fading(self, x):
        """exp(min(v, 0)) is 1-Lipschitz in v, at most 1, and its slope is its value.

        |exp(v') - exp(v)| <= exp(v) expm1(e), and at most 1 since both lie in [0, 1]
        for every v' that is a number; inf - inf, of sums that overflowed, is none.
        """
        x = lift(x)
        exponent = jnp.minimum(x.value, 0.0)
        value = jnp.exp(exponent)
        model = self._model
        relative = model.exp_relative + model.exp_argument * (
            jnp.abs(exponent) + x.error
        )
        spread = value * jnp.expm1(jnp.minimum(x.error, 700.0))
        error = spread * (1.0 + relative) + relative * value + model.underflow
        error = jnp.minimum(error, 1.0) * SAFETY
        return Bounded(value, where_known(x.known, error))

    def einsum(self, subscripts, x, y, start=None):
        """Product rule elementwise; the sum as in `matmul`.

        What the accumulator begins with goes through all additions.
        """
        x, y = self._operand(x), self._operand(y)
        inputs, output = subscripts.split("->")
        first, second = inputs.split(",")
        sizes = dict(zip(first + second, (*x.shape, *y.shape), strict=True))
        terms = 1
        for letter in set(first + second) - set(output):
            terms *= sizes[letter]
        terms += start is not None
        product = lambda a, b: jnp.einsum(subscripts, a, b, precision="highest")
        value = product(x.value, y.value)
        error = product(jnp.abs(x.value), y.error) + product(x.error, y.magnitude)
        summed = product(x.magnitude, y.magnitude)
        if start is not None:
            start = lift(start)
            value, error = value + start.value, error + start.error
            summed = summed + start.magnitude
        depth = self._accumulation_depth(terms)
        summing = jnp.expm1(depth * self._model.accumulator_unit) * summed
        # partial sums may overflow where all of them together cancel
        flushed = self._unless_overflow(summed, 2.0 * terms * self._model.underflow)
        settled = self._settle(value, (error + summing + flushed) * SAFETY)
        return Bounded(settled.value, settled.error)

    # ---- what Transformers compute

    def gelu(self, x, *, tanh=False):
        """The smaller of slope and curvature at v, and the global slope."""
        x = lift(x)
        function = lambda v: jax.nn.gelu(v, approximate=tanh)
        value, slope = jax.jvp(function, (x.value,), (jnp.ones_like(x.value),))
        steepest = jnp.minimum(
            jnp.abs(slope) + GELU_CURVATURE / 2 * x.error, GELU_SLOPE
        )
        error = steepest * x.error
        # left of 0 the factor 1 + erf(x) cancels: its error is relative to 1
        rounding = self._model.silu_relative * x.magnitude + self._model.underflow
        rounding = self._unless_overflow(x.magnitude, rounding)
        norm = jnp.max(steepest, axis=-1) * x.norm + jnp.linalg.norm(rounding, axis=-1)
        return Bounded(value, where_known(x.known, error + rounding), norm)

    def relu_squared(self, x):
        """|max(v', 0)^2 - max(v, 0)^2| <= e (2 max(v, 0) + e)."""
        x = lift(x)
        positive = jnp.maximum(x.value, 0.0)
        error = x.error * (2.0 * positive + x.error)
        return self._settle(positive**2, where_known(x.known, error))

    def fixed(self, value):
        """Off by one rounding, unless fp32 holds it."""
        value = jnp.asarray(value, jnp.float64)
        held = value == jnp.asarray(jnp.asarray(value, jnp.float32), jnp.float64)
        unit = jnp.where(held, 0.0, self._model.unit)
        size = jnp.abs(value)
        # what fp32 holds did not overflow
        error = jnp.where(held, 0.0, self._unless_overflow(size, unit * size))
        return Bounded(value, where_known(jnp.isfinite(value), error))

    def turns(self, angle, roundings):
        """Both are 1-Lipschitz in the angle; at most 2 apart, of angles that exist."""
        angle = lift(angle)
        off = angle.error + jnp.expm1(roundings * self._model.unit) * angle.magnitude

        def bound(function):
            value = function(angle.value)
            own = self._model.exp_relative * (jnp.abs(value) + off)
            own = own + self._model.turn_absolute
            error = jnp.minimum(off, 2.0) + own + self._model.underflow
            return Bounded(value, where_known(jnp.isfinite(off), error * SAFETY))

        return bound(jnp.cos), bound(jnp.sin)

    def wrap(self, angle):
        """Off by what 2 pi loses in fp32, once a turn, and by rounding.

        A share 2^-25 of 2 pi; a division, a product and a difference of a magnitude
        that the angle has. Executions may stand a turn away from the value, at 2 pi
        where it is next to 0: the sum and the wrap that follow count that magnitude
        here.
        """
        angle = lift(angle)
        unit = self._model.unit
        turn = 2.0 * jnp.pi
        own = 4.0 * unit * (angle.magnitude + 3.0 * turn) + 4.0 * self._model.underflow
        error = (angle.error + own) * SAFETY
        return Bounded(jnp.mod(angle.value, turn), error)

    def store_angle(self, site, angle):
        """As `store`; executions that may stand a turn away round that number."""
        if site not in self._sites:
            return angle
        angle = lift(angle)
        turn = 2.0 * jnp.pi
        above = angle.value <= angle.error
        below = angle.value + angle.error >= turn
        anchor = self._anchors.get(site)
        if anchor is not None:
            # what was stored says on which turn it stands: of those there may be, the
            # nearest (with an error above pi all of them may be)
            off = anchor - angle.value
            up = above & (jnp.abs(off - turn) < jnp.abs(off))
            down = below & (jnp.abs(off + turn) < jnp.abs(off))
            shift = jnp.where(up, turn, jnp.where(down, -turn, 0.0))
            return self.store(site, Bounded(angle.value + shift, angle.error))
        stored = self.store(site, angle)
        rounding = rounding_error_bound(turn + angle.error, self._sites[site])
        astray = above | below
        error = (angle.error + rounding) * SAFETY
        return Bounded(
            jnp.where(astray, angle.value, stored.value),
            jnp.where(astray, error, stored.error),
        )

    def tanh(self, x):
        """2 sigmoid(2 x) - 1, whose ends are those of the sigmoid's interval.

        Results of numbers are at most 2 apart; of NaN there is none.
        """
        x = lift(x)
        value = jnp.tanh(x.value)
        share = -jnp.expm1(-2.0 * x.error)
        above = jax.nn.sigmoid(2.0 * (x.value + x.error)) * jax.nn.sigmoid(
            -2.0 * x.value
        )
        below = jax.nn.sigmoid(2.0 * x.value) * jax.nn.sigmoid(
            2.0 * (x.error - x.value)
        )
        error = 2.0 * share * jnp.maximum(above, below)
        model = self._model
        relative = jnp.maximum(model.tanh_relative, model.exp_relative)
        rounding = relative * (jnp.abs(value) + error) + model.underflow
        return Bounded(value, where_known(x.known, (error + rounding) * SAFETY))

    # ---- what routers of experts compute

    def sigmoid(self, x):
        """s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for the sigmoid s, increasing.

        So the interval's ends are the farthest, and nothing cancels. That is of
        numbers; of NaN there is no result in [0, 1].
        """
        x = lift(x)
        value = jax.nn.sigmoid(x.value)
        share = -jnp.expm1(-x.error)
        above = jax.nn.sigmoid(x.value + x.error) * jax.nn.sigmoid(-x.value)
        below = value * jax.nn.sigmoid(x.error - x.value)
        error = share * jnp.maximum(above, below)
        model = self._model
        relative = model.silu_relative + model.silu_argument * x.magnitude
        rounding = relative * (value + error) + 129.0 * model.underflow
        return Bounded(value, where_known(x.known, (error + rounding) * SAFETY))

    def largest(self, x, count):
        """The reference's choice; 1 off where an execution may choose otherwise.

        An entry is chosen for sure where fewer than `count` others reach its lower
        end, and is not for sure where `count` others stay above its upper end. Where
        NaN stands in an order no implementation says: a row that may have one has no
        bound.
        """
        x = lift(x)
        _, places = jax.lax.top_k(x.value, count)
        value = jnp.sum(jax.nn.one_hot(places, x.shape[-1]), axis=-2)
        low, high = x.value - x.error, x.value + x.error
        others = 1.0 - jnp.eye(x.shape[-1])
        reach = (high[..., None, :] >= low[..., :, None]) * others
        above = (low[..., None, :] > high[..., :, None]) * others
        chosen = jnp.sum(reach, axis=-1) < count
        left = jnp.sum(above, axis=-1) >= count
        known = jnp.all(x.known, axis=-1, keepdims=True)
        return Bounded(value, where_known(known, jnp.where(chosen | left, 0.0, 1.0)))

    def shares(self, x, floor: float = 0.0):
        r"""$y'_i - y_i = (d_i (1 - y_i) - y_i \sum_{j \ne i} d_j) / s'$, |d| <= e.

        s is the sum with the floor: an exact number beside the terms, so that the same
        holds of it. s' is the sum in an execution, at least s less the sum of all
        errors; the floor costs it a rounding of its own and one more sum. At most 1
        apart, both being shares of a sum of nonnegative terms: of numbers, that is, and
        of a sum in fp32's range. (An execution's terms are not all 0: where they are
        the scores of other entries than here, these are of the size of s.)
        """
        x = lift(x)
        total = jnp.sum(x.value, axis=-1, keepdims=True) + floor
        off = jnp.sum(x.error, axis=-1, keepdims=True)
        value = x.value / total
        left = total - off
        spread = x.error * (1.0 - value) + value * (off - x.error)
        spread = spread / jnp.where(left > 0, left, 1.0)
        error = jnp.where(left > 0, spread, 1.0)
        depth = self._reduction_depth(x.shape[-1]) + (4 if floor else 2)
        growth = jnp.expm1(depth * self._model.unit)
        rounding = growth * (value + error) + self._model.underflow
        rounding = self._unless_overflow(total + off, rounding)
        error = (jnp.minimum(error, 1.0) + rounding) * SAFETY
        known = jnp.all(x.known, axis=-1, keepdims=True) & (total > LEAST_SUM)
        return Bounded(value, where_known(known, error))

    def softmax(self, x, keep):
        r"""$p'_i / p_i = e^{d_i} / \sum_j p_j e^{d_j}$ with |d| <= e.

        Between $e^{-e_i} / (1 + \sum p_j (e^{e_j} - 1))$ and
        $e^{e_i} / (1 - \sum p_j (1 - e^{-e_j}))$; at most 1 apart.

        One entry of a row that may be no number makes NaN of all of it: inf - inf is
        the shift by the largest, and the sum is everyone's. A masked one, too, since
        executions add -inf, or their lowest number, to what they computed there. So a
        finite difference to the largest may become -inf, and its exponential 0; a mask
        of -inf is exact.
        """
        x = lift(x)
        value = jax.nn.softmax(jnp.where(keep > 0, x.value, -jnp.inf), axis=-1)
        e = jnp.where(keep > 0, jnp.minimum(x.error, 300.0), 0.0)
        more = jnp.sum(value * jnp.expm1(e), axis=-1, keepdims=True)
        less = jnp.sum(-value * jnp.expm1(-e), axis=-1, keepdims=True)
        above = (jnp.expm1(e) + less) / jnp.maximum(1.0 - less, 1e-300)
        below = (more - jnp.expm1(-e)) / (1.0 + more)
        error = value * jnp.maximum(above, below)
        # the difference to the largest entry, exp, the sum, the division; an online
        # softmax rescales once a block, which the depth covers
        model = self._model
        magnitude = jnp.where(keep > 0, x.magnitude, 0.0)
        reach = 2.0 * jnp.max(magnitude, axis=-1, keepdims=True)
        depth = self._reduction_depth(value.shape[-1]) + 4
        relative = 2.0 * (
            model.exp_relative + (model.unit + model.exp_argument) * reach
        ) + jnp.expm1(depth * model.unit)
        rounding = jnp.expm1(jnp.minimum(relative, 300.0)) * (value + error)
        flushed = (2.0 + value.shape[-1]) * model.underflow * (keep > 0)
        total = jnp.minimum(error + rounding + flushed, 1.0) * (keep > 0)
        legal = x.known | ((x.value == -jnp.inf) & (keep == 0) & (x.error == 0))
        known = jnp.all(legal, axis=-1, keepdims=True)
        return Bounded(value, where_known(known, total * SAFETY))

    def layer_normalise(self, x, epsilon):
        """As `rms_normalise`, on x - mean: removing the mean is a projection.

        Where the sum may overflow, or the difference to a mean that did, there is none.
        """
        x = lift(x)
        size = x.shape[-1]
        model = self._model
        mean = jnp.mean(x.value, axis=-1, keepdims=True)
        value = x.value - mean
        depth = self._reduction_depth(size) + 3
        lost = jnp.expm1(depth * model.unit) * jnp.mean(
            x.magnitude, axis=-1, keepdims=True
        )
        largest_sum = jnp.sum(x.magnitude, axis=-1, keepdims=True)
        lost = self._unless_overflow(largest_sum, lost)
        subtraction = lost + model.unit * (jnp.abs(value) + x.error + lost)
        error = x.error + jnp.mean(x.error, axis=-1, keepdims=True) + subtraction
        norm = x.norm + jnp.linalg.norm(subtraction, axis=-1)
        return self.rms_normalise(Bounded(value, error, norm), epsilon)
