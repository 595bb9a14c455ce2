"""Values with certified errors: the interpreter behind T0, T1 and perturbation bounds.

A value v carries e >= 0, elementwise, and n, the L2 norm over the last axis, such
that every execution of the declared kind computes some v' with |v' - v| <= e and
||v' - v|| <= n at every token. v is the exact result, computed in fp64.

Sources: the standard model of floating-point arithmetic (Higham 2002, section 2.2)
in Rump's ufp form for stores; running error analysis (Higham, section 3.3); for the
scan, a lemma of our own that holds in every bracketing, see `_bounded_scan.py`.

One file in spite of its length: the rules lean on each other and are audited together.

What the bounds themselves lose in fp64 is `SAFETY`'s. Behind a value that may be an
infinity or a NaN, or an operation that may overflow, the error is inf, unless a rule
says why not.
"""

import jax
import jax.numpy as jnp
from jax.lax import DotAlgorithmPreset
from jaxtyping import Array, Float, Int

from .._devices import has_gpu
from ..formats import (
    FP32,
    LEAST_ROW,
    FormatNumbers,
    integer_ends,
    integer_scales,
    is_state_numbers,
    round_state,
    round_to,
    rounding_error_bound,
    state_error_bound,
    state_scale,
)
from ._bounded_blocks import BlockRules
from ._bounded_scan import ScanRules
from ._bounded_values import (
    SAFETY,
    Bounded,
    BoundedState,
    RoundingModel,
    constant,
    lift,
    where_known,
)
from ._interface import AbstractArithmetic


# An fp64 value with T chained operations is off by T 2^-53 of its magnitude, its
# fp32 error at least 2^-24: this share covers sequences of 2^12 tokens and sums of as
# many terms sixteen times over.
FP64_SHARE_OF_ERROR = 2.0**-13

# For T0, where what comes in has no error, products |W| |x| are formed up to this many
# weights; beyond it row norms are enough, which cost one reduction.
ELEMENTWISE_LIMIT = 2**18

# What stays below this, roundings left out, does not overflow in fp32, whose largest
# number is almost twice that.
NO_OVERFLOW = 2.0**127

# Of a mean square and epsilon that fp32 holds as a normal number.
LEAST_ROOT = 2.0**-63

# sup |silu'| = 1.09984 at x = 2.3994; sup |silu''| = 1/2 at 0.
SILU_SLOPE = 1.0999
SILU_CURVATURE = 0.5


class BoundedArithmetic(BlockRules, ScanRules, AbstractArithmetic):
    """Interpret a flow with certified errors.

    **Arguments:**

    - `sites`: the format of each stored site.
    - `model`: the inner arithmetic.
    - `accumulation_depth`: terms of a matrix product -> most additions that a term
      goes through.
    - `reduction_depth`: the same for a norm's sum.
    - `scan_depth`: most additions that a term of the scan goes through, over the
      whole sequence.
    - `anchors`: stored tensors of a trace. Where a site has one, the bound of the
      operation that ends there is put into `records` and the flow goes on from the
      trace's own value without error: this is T0.
    - `centred`: follow the executions themselves, which compute nearly exactly between
      stores and round there: the value is the middle of what they may have stored, the
      errors are distances from it, not from exact arithmetic. They hold what the
      execution leaves open: orders of sums, last bits of exponentials, and values
      close enough to a rounding tie to fall on the other side.
    - `chunked`: run a recurrence that has a chunked form in it.
    - `chunks_at_once`: hand states on in that form as `AbstractArithmetic` says.
    """

    channel_block = 512

    def __init__(
        self,
        sites: dict[str, FormatNumbers],
        model: RoundingModel,
        *,
        accumulation_depth=lambda terms: terms,
        reduction_depth=lambda terms: terms,
        scan_depth: int = 0,
        anchors: dict[str, Float[Array, "..."]] | None = None,
        centred: bool = False,
        in_scan: bool = False,
        chunked: bool = False,
        chunks_at_once: bool = False,
        growths: dict[int, Float[Array, ""]] | None = None,
        compiled: bool = False,
    ):
        self.records = {}
        self.observed = {}
        self._sites = sites
        self._model = model
        self._accumulation_depth = accumulation_depth
        self._reduction_depth = reduction_depth
        self._scan_depth = scan_depth
        self._anchors = anchors or {}
        self._centred = centred
        self._in_scan = in_scan
        self.chunked = chunked
        self.chunks_at_once = chunks_at_once
        # what is given once to a kernel, which would find it again at every token
        self._growths = growths
        self._compiled = compiled
        # of anchors, those of the block of rows that is being gone through
        self._rows: Int[Array, " rows"] | None = None

    def _apart(self, x: Bounded) -> Bounded:
        """`written_out`, where norms have to be found with every value."""
        return x if self._anchors or self._in_scan else written_out(x)

    # ---- stores

    def stores(self, site):
        """Whether the execution names this site."""
        return site in self._sites

    def store(self, site, x):
        """Round to the site's format.

        Rounding is monotone: whatever an execution computed in [v - e, v + e], it
        stored between round(v - e) and round(v + e).
        """
        if site not in self._sites:
            return x
        numbers = self._sites[site]
        if isinstance(x, BoundedState):
            return self._store_state(x, numbers)
        x = lift(x)
        if is_state_numbers(numbers):
            mass = jnp.max(x.magnitude, axis=0)
            state = BoundedState(x.value, x.error, x.magnitude, mass)
            stored = self._store_state(state, numbers)
            return Bounded(stored.value, stored.excess)
        if site in self._anchors and not self._in_scan:
            # v itself is off by fp64's own errors, which matter where it happens to
            # lie next to a stored number
            error = self._interval(x, x.value, numbers)
            error = error + x.error * FP64_SHARE_OF_ERROR
            # what reads the anchor waits: XLA would join it to what is before
            anchor = self._anchors[site]
            if self._rows is not None:
                anchor = anchor[:, self._rows]
            value, error, anchor = written_out((x.value, error, anchor))
            self.records[site] = Bounded(value, error)
            return constant(anchor)
        if not self._centred:
            rounding = rounding_error_bound(x.magnitude, numbers)
            norm = x.norm + jnp.linalg.norm(rounding, axis=-1)
            return Bounded(x.value, (x.error + rounding) * SAFETY, norm * SAFETY)
        value, error, flips = self._middle(x, numbers)
        norm = x.norm + jnp.linalg.norm(flips, axis=-1)
        return self._apart(Bounded(value, error, norm * SAFETY))

    def may_store(self, site, x):
        """Off by as much as a store moves, wherever the value goes."""
        if site not in self._sites:
            return x
        x = lift(x)
        rounding = rounding_error_bound(x.magnitude, self._sites[site])
        norm = x.norm + jnp.linalg.norm(rounding, axis=-1)
        return Bounded(x.value, (x.error + rounding) * SAFETY, norm * SAFETY)

    def _ends(self, x, numbers):
        """What the ends of [v - e, v + e] are stored as."""
        # fp64's own errors in v are far below fp32's in e
        error = x.error * (1.0 + FP64_SHARE_OF_ERROR)
        return round_to(x.value - error, numbers), round_to(x.value + error, numbers)

    def _middle(self, x, numbers):
        """The middle c of all that may be stored, and how far it reaches.

        Half the distance of the outermost stored numbers, where following the one that
        v itself is rounded to would cost all of it: over several stores in a row, each
        of which few values can cross, that is a factor of two at every store.

        **Returns:** c, the largest |round(v') - c|, and g with
        |round(v') - c| <= |v' - v| + g: no more than half a spacing on either side.
        """
        low, high = self._ends(x, numbers)
        middle = 0.5 * low + 0.5 * high
        # around a possible overflow nothing is bounded, but the centre stays a number
        value = jnp.where(jnp.isfinite(middle), middle, x.value)
        error = jnp.maximum(jnp.abs(high - value), jnp.abs(value - low)) * SAFETY
        half = rounding_error_bound(x.magnitude, numbers)
        return value, error, jnp.minimum(error, half + jnp.abs(value - x.value))

    def _interval(self, x, centre, numbers):
        """The largest distance from `centre` to a stored member of [v - e, v + e]."""
        low, high = self._ends(x, numbers)
        return jnp.maximum(jnp.abs(high - centre), jnp.abs(centre - low))

    def _store_state(self, x: BoundedState, numbers) -> BoundedState:
        """A store of the state, which may have a scale or be stochastic.

        Around a stochastic store there is no centre to follow: its mean is the state
        itself, and it moves by one spacing at most.
        """
        value, error = x.value, x.excess + self._scan_rounding(x)
        rounding = state_error_bound(jnp.abs(value) + error, numbers)
        if not is_state_numbers(numbers):
            if self._centred:
                value, error, _ = self._middle(Bounded(x.value, error), numbers)
            else:
                error = error + rounding
        elif self._centred and not numbers.stochastic:
            value, error = self._under_a_scale(x.value, error, rounding, numbers)
        else:
            error = error + rounding
        error = error * SAFETY
        # What follows starts from one stored number: its additions count anew.
        return BoundedState(value, error, jnp.abs(value) + error, x.mass)

    def _under_a_scale(self, exact, error, rounding, numbers):
        """Monotone rounding where the channel's scale is known, else its worst.

        A power of two is known where both ends of the channel's largest have the same;
        that of integers lies between theirs.
        """
        size, fmt = jnp.abs(exact), numbers.format
        value = round_state(exact, numbers)
        least = jnp.max(jnp.maximum(size - error, 0.0), axis=0)
        most = jnp.max(size + error, axis=0)
        if numbers.integer:
            wide = error * (1.0 + FP64_SHARE_OF_ERROR)
            scales = integer_scales(least, most, fmt)
            low, high = integer_ends(exact - wide, exact + wide, scales, fmt)
            interval = jnp.maximum(jnp.abs(high - value), jnp.abs(value - low))
            known = least >= LEAST_ROW
        else:
            scale = state_scale(most, fmt)
            interval = scale * self._interval(
                Bounded(exact / scale, error / scale), value / scale, fmt
            )
            known = state_scale(least, fmt) == scale
        free = error + rounding + jnp.abs(value - exact)
        # a channel whose scale may come from what is no number is without any
        known = known & jnp.isfinite(most)
        value = jnp.where(jnp.isfinite(value), value, exact)
        return value, jnp.where(known, jnp.fmin(interval, free), free)

    # ---- one rounding an operation

    def _settle(self, value, error, norm=None) -> Bounded:
        unit, underflow = self._model.unit, self._model.underflow
        magnitude = jnp.abs(value) + error
        rounding = self._unless_overflow(magnitude, unit * magnitude + underflow)
        if norm is not None:
            norm = norm + jnp.linalg.norm(rounding, axis=-1)
        return Bounded(value, error + rounding, norm)

    def _unless_overflow(self, magnitude, rounding):
        """inf where fp32 may overflow on the way: nothing is bounded then."""
        # `unit` 0 stands for exact arithmetic
        beyond = (magnitude > NO_OVERFLOW) & (self._model.unit > 0)
        return jnp.where(beyond, jnp.inf, rounding)

    def _relative(self, value, error, relative) -> Bounded:
        """A function evaluated with a relative error on top of the propagated one."""
        magnitude = jnp.abs(value) + error
        rounding = relative * magnitude + self._model.underflow
        return Bounded(value, error + self._unless_overflow(magnitude, rounding))

    def _operand(self, x) -> Bounded:
        """An operand as the arithmetic reads it: subnormal ones may count as 0."""
        x = lift(x)
        return Bounded(
            x.value,
            x.error + self._model.underflow,
            x.norm + x.shape[-1] ** 0.5 * self._model.underflow if x.shape else None,
        )

    def _alone(self, value, error, norm, flushed) -> Bounded:
        """One IEEE operation in fp32: rounding is monotone, as in `store`.

        `flushed` is what reading subnormal operands as 0, or flushing the result, may
        change.
        """
        if not self._centred:
            flushed = jnp.broadcast_to(flushed, error.shape)
            if norm is not None:
                norm = norm + jnp.linalg.norm(flushed, axis=-1)
            return self._settle(value, error + flushed, norm)
        exact = Bounded(value, error + flushed)
        middle, interval, flips = self._middle(exact, FP32.numbers())
        # `unit` 0 stands for exact arithmetic
        rounds = self._model.unit > 0
        if norm is not None:
            flips = jnp.where(rounds, flips + flushed, 0.0)
            norm = (norm + jnp.linalg.norm(flips, axis=-1)) * SAFETY
        value = jnp.where(rounds, middle, value)
        return Bounded(value, jnp.where(rounds, interval, error), norm)

    def add(self, x, y, *, alone=False):
        """x + y."""
        x, y = lift(x), lift(y)
        value, error = x.value + y.value, x.error + y.error
        norm = x.norm + y.norm if x.value.shape == y.value.shape else None
        if not alone:
            # reading a subnormal operand as 0
            flushed = jnp.full(error.shape, 2.0 * self._model.underflow)
            if norm is not None:
                norm = norm + jnp.linalg.norm(flushed, axis=-1)
            return self._settle(value, error + flushed, norm)
        # what fp64 itself lost of the sum (Knuth's TwoSum)
        other = value - x.value
        lost = jnp.abs((x.value - (value - other)) + (y.value - other))
        flushed = 3.0 * self._may_flush(x, y, Bounded(value, error))
        if norm is not None:
            norm = norm + jnp.linalg.norm(lost, axis=-1)
        return self._alone(value, error + lost, norm, flushed)

    def multiply(self, x, y, *, alone=False):
        """x y. In L2: max |x| n_y + (max |y| + max e_y) n_x, if shapes allow.

        Alone, the product of two numbers of at most 24 bits is exact in fp64.
        """
        if not alone:
            x, y = self._operand(x), self._operand(y)
        x, y = lift(x), lift(y)
        error = x.magnitude * y.error + x.error * jnp.abs(y.value)
        norm = None
        if x.value.ndim >= y.value.ndim and x.shape[-1:] == y.shape[-1:]:
            norm = _largest(jnp.abs(x.value)) * y.norm + _largest(y.magnitude) * x.norm
        value = x.value * y.value
        if not alone:
            return self._settle(value, error, norm)
        scale = 1.0 + x.magnitude + y.magnitude
        flushed = self._may_flush(x, y, Bounded(value, error)) * scale
        return self._alone(value, error, norm, flushed)

    def _may_flush(self, *values: Bounded):
        """2^-126 where an operand or the result may be subnormal, 0 elsewhere."""
        threshold = 2.0 * self._model.underflow
        small = jnp.asarray(False)
        for x in values:
            least = jnp.abs(x.value) - x.error
            small = small | ((least < threshold) & (x.magnitude > 0.0))
        return jnp.where(small, self._model.underflow, 0.0)

    def negate(self, x):
        """-x."""
        x = lift(x)
        return Bounded(-x.value, x.error, x.norm)

    # ---- functions

    def exp(self, x):
        """|exp(v') - exp(v)| <= exp(v) expm1(e), then the declared error."""
        x = lift(x)
        value = jnp.exp(x.value)
        relative = self._model.exp_relative + self._model.exp_argument * x.magnitude
        return self._relative(value, value * jnp.expm1(x.error), relative)

    def softplus(self, x):
        """Slope sigmoid, increasing: at most sigmoid(v + e) on the interval."""
        x = lift(x)
        value = jax.nn.softplus(x.value)
        model = self._model
        error = jax.nn.sigmoid(x.value + x.error) * x.error
        # |d softplus| = sigmoid |d x| and sigmoid <= softplus / log 2 below 0: the
        # rounded product inside exp() costs argument |x| sigmoid(x).
        size = x.magnitude
        argument = model.softplus_argument * size * jax.nn.sigmoid(x.value + x.error)
        settled = self._relative(value, error, model.softplus_relative)
        error = settled.error + argument + model.softplus_absolute
        return self._apart(Bounded(value, error))

    def silu(self, x):
        """The smaller of slope and curvature at v, and the global slope."""
        x = lift(x)
        value = jax.nn.silu(x.value)
        sigmoid = jax.nn.sigmoid(x.value)
        slope = jnp.abs(sigmoid * (1.0 + x.value * (1.0 - sigmoid)))
        steepest = jnp.minimum(slope + SILU_CURVATURE / 2 * x.error, SILU_SLOPE)
        error = steepest * x.error
        relative = self._model.silu_relative + self._model.silu_argument * x.magnitude
        # div.approx returns 0 for denominators beyond 2^126, where |silu| < 2^-119.
        rounding = relative * (jnp.abs(value) + error) + 129.0 * self._model.underflow
        rounding = rounding + self._model.silu_size * x.magnitude
        norm = _largest(steepest) * x.norm + jnp.linalg.norm(rounding, axis=-1)
        return self._apart(Bounded(value, error + rounding, norm))

    def rms_normalise(self, x, epsilon):
        """r = sqrt(mean x^2 + eps) is 1-Lipschitz in x / sqrt(n).

        Elementwise e / r_lo + |v| dr / (r r_lo); in L2 at most n / r_lo, because
        the Jacobian of x / r has norm at most 1 / r. And no vector, normalised, is
        longer than sqrt(n).
        """
        x = self._operand(x)
        size = x.shape[-1]
        radius = jnp.sqrt(jnp.mean(x.value**2, axis=-1, keepdims=True) + epsilon)
        spread = (x.norm / size**0.5)[..., None]
        low = jnp.maximum(radius - spread, epsilon**0.5)
        value = x.value / radius
        error = x.error / low + jnp.abs(x.value) * spread / (radius * low)
        norm = x.norm / low[..., 0]
        # where the root may be of 0 its inverse is inf, and inf times 0 is no number
        known = jnp.isfinite(x.norm) & (low[..., 0] >= LEAST_ROOT)
        most = jnp.abs(value) + size**0.5
        error = where_known(known[..., None], jnp.minimum(error, most))
        most = jnp.linalg.norm(value, axis=-1) + size**0.5
        norm = where_known(known, jnp.minimum(norm, most))
        # A relative error d of the mean (its squares, its sum, its division, epsilon
        # added) makes 1 / sqrt(1 - d) of the factor; the product with x rounds again.
        unit = self._model.unit
        mean = jnp.expm1((self._reduction_depth(size) + 3) * unit)
        root = -0.5 * jnp.log1p(-jnp.minimum(mean, 1.0))
        relative = jnp.expm1(root + self._model.rsqrt_relative + unit)
        rounding = relative * (jnp.abs(value) + error) + self._model.underflow
        squares = size * (radius + spread) ** 2
        rounding = self._unless_overflow(squares, rounding)
        norm = norm + jnp.linalg.norm(rounding, axis=-1)
        return Bounded(value, (error + rounding) * SAFETY, norm * SAFETY)

    # ---- sums

    def matmul(self, x, weight, bias=None):
        """Smaller of elementwise sums, row norms and the operator norm.

        |dy_i| <= |W_i| e and <= ||W_i|| n; ||dy|| <= ||W|| n. The sum itself: depth
        additions of unit u on terms whose magnitudes add up to |W_i| (|v| + e), at
        most ||W_i|| (||v|| + n); the rows of it to at most ||W||_F (||v|| + n).
        """
        x = lift(x)
        x = self._operand(Bounded(written_out(x.value), x.error, x.norm))
        matrix = weight.matrix
        rows = jnp.linalg.norm(matrix, axis=-1)
        terms = matrix.shape[-1] + (bias is not None)
        depth = self._accumulation_depth(terms)
        growth = jnp.expm1(depth * self._model.accumulator_unit)
        length = jnp.linalg.norm(x.value, axis=-1) + x.norm
        # products and sums that are flushed, weights that are read as 0
        flushed = self._model.underflow * (2 * terms + terms**0.5 * length[..., None])
        error = rows * (x.norm + growth * length)[..., None]
        if matrix.size <= ELEMENTWISE_LIMIT or not self._anchors:
            each = x.error + growth * x.magnitude
            error = jnp.minimum(error, sum_of_magnitudes(each, matrix))
        value = jnp.matmul(x.value, matrix.T, precision="highest")
        most = rows * length[..., None]
        # an unknown operator norm is inf, and inf times an error of 0 is no number
        by_norm = jnp.where(x.norm == 0, 0.0, weight.operator_norm * x.norm)
        by_norm = by_norm + growth * jnp.linalg.norm(rows) * length
        if bias is not None:
            value = value + bias
            flushed = flushed + growth * jnp.abs(bias)
            most = most + jnp.abs(bias)
        through = jnp.minimum(jnp.linalg.norm(error, axis=-1), by_norm)
        flushed = self._unless_overflow(most, flushed)
        settled = self._settle(value, (error + flushed) * SAFETY)
        own = jnp.linalg.norm(settled.error - error, axis=-1)
        return Bounded(value, settled.error, (through + own) * SAFETY)

    def join(self, parts, axis=0):
        """The parts one after another."""
        if len(parts) == 1:
            return lift(parts[0])
        lifted = [lift(part) for part in parts]
        norm = None if axis else jnp.concatenate([part.norm for part in lifted])
        return Bounded(
            jnp.concatenate([part.value for part in lifted], axis=axis),
            jnp.concatenate([part.error for part in lifted], axis=axis),
            norm,
        )

    def causal_conv(self, x, weight, bias):
        """Four taps and a bias, in any order: width + 1 roundings a term at most."""
        x, weight, bias = (self._operand(v) for v in (x, weight, bias))
        taps = weight.shape[1]
        seq = x.shape[0] - taps + 1
        value = jnp.broadcast_to(bias.value, (seq, *bias.shape))
        error = jnp.broadcast_to(bias.error, value.shape)
        size = jnp.abs(value) + error
        # in L2 a tap of largest weight w passes on at most w of the norm
        norm = jnp.broadcast_to(bias.norm, (seq,))
        largest = _largest(jnp.abs(x.value))
        for tap in range(taps):
            v, e = x.value[tap : tap + seq], x.error[tap : tap + seq]
            n = x.norm[tap : tap + seq]
            norm = norm + (
                _largest(jnp.abs(weight.value[:, tap]) + weight.error[:, tap]) * n
                + largest[tap : tap + seq] * jnp.linalg.norm(weight.error[:, tap])
            )
            w, d = weight.value[:, tap], weight.error[:, tap]
            value = value + v * w
            error = error + jnp.abs(v) * d + jnp.abs(w) * e + e * d
            size = size + (jnp.abs(v) + e) * (jnp.abs(w) + d)
        growth = jnp.expm1((taps + 1) * self._model.unit)
        rounding = growth * size + (2 * taps) * self._model.underflow
        rounding = self._unless_overflow(size, rounding)
        norm = norm + jnp.linalg.norm(rounding, axis=-1)
        error = (error + rounding) * SAFETY
        return self._apart(Bounded(value, error, norm * SAFETY))

    def _inside_scan(
        self, model: RoundingModel, growths=None, compiled: bool = False
    ) -> "BoundedArithmetic":
        return BoundedArithmetic(
            self._sites,
            model,
            accumulation_depth=self._accumulation_depth,
            reduction_depth=self._reduction_depth,
            scan_depth=self._scan_depth,
            centred=self._centred,
            in_scan=True,
            chunks_at_once=self.chunks_at_once,
            growths=growths,
            compiled=compiled,
        )


def written_out(arrays):
    """Arrays, on a GPU kept in memory between what makes them and what reads them.

    XLA would join a chain of operations to the sums over channels behind it, and to
    other chains that read the same, in kernels that need more registers than there are.
    """
    return jax.lax.optimization_barrier(arrays) if has_gpu() else arrays


def sum_of_magnitudes(x: Float[Array, "... columns"], matrix):
    """|W| x for x >= 0, from above, in fp32: fp64 would cost twice as much.

    On a GPU in TF32: a bound's own sum need not be exact, and tensor cores are ten
    times as fast.
    """
    terms = matrix.shape[-1]
    size = jnp.abs(matrix)
    narrow = jnp.asarray(x, jnp.float32), jnp.asarray(size, jnp.float32)
    if has_gpu():
        found = jax.lax.platform_dependent(
            *narrow, cuda=_summed_in_tf32, default=_summed_in_fp32
        )
    else:
        found = _summed_in_fp32(*narrow)
    # operands and products below 2^-126 may count as 0
    total = jnp.sum(x, axis=-1, keepdims=True)
    flushed = 2.0**-125 * (jnp.sum(size, axis=-1) + total + terms)
    return found + jnp.where(total > 0, flushed, 0.0)


def _summed_in_fp32(x, size):
    found = jnp.matmul(x, size.T, precision="highest")
    return jnp.asarray(found, jnp.float64) * fp32_inflation(x.shape[-1])


def _summed_in_tf32(x, size):
    found = jnp.matmul(x, size.T, precision=DotAlgorithmPreset.TF32_TF32_F32)
    return jnp.asarray(found, jnp.float64) * tf32_inflation(x.shape[-1])


def fp32_inflation(terms: int) -> float:
    """Two casts, a product and the sum: a term within (1 - 2^-24)^(terms + 2)."""
    return 1.0 + (terms + 8) * 2.0**-23


def tf32_inflation(terms: int) -> float:
    """Bits cut off both operands, (1 - 2^-10)^2 of a term; and sums that truncate.

    Those lose a whole spacing, 2^-23, and as much again where terms are aligned to
    the largest of a block.
    """
    return 1.0 + 2.0**-9 + 2.0**-17 + (terms + 8) * 2.0**-21


def _largest(x):
    return jnp.max(x, axis=-1)
