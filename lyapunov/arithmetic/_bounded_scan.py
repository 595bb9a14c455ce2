"""Rules of the bounded interpreter for linear recurrences, in a loop or in a kernel.

What they cost is mostly fp64 operations for each token, channel and state. So they are
written in fused multiply-adds, and what all channels share at a token, or all states of
a channel, is found once. The model and the other rules are those of `bounded.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._bounded_values import (
    SAFETY,
    Bounded,
    BoundedState,
    DriveRow,
    ReadOutRow,
    RoundingModel,
    lift,
    where_known,
)
from ._interface import along_states


# exp(-88), rounded up, with the declared error of any exponential on top.
EXP_MINUS_88 = 6.1e-39 * 1.01


class ScanRules:
    """To be mixed into `BoundedArithmetic`, whose attributes it reads."""

    _model: Any
    _scan_depth: int
    _operand: Any
    _unless_overflow: Any
    _inside_scan: Callable
    _growths: dict[int, Array] | None
    _compiled: bool

    def _growth(self, roundings: int):
        """(1 + u)^roundings - 1."""
        if self._growths is not None and roundings in self._growths:
            return self._growths[roundings]
        return jnp.expm1(roundings * self._model.unit)

    def _fused(self, x, y, z):
        """x y + z; in a compiled kernel with one rounding, else however XLA does it."""
        return multiply_add(x, y, z) if self._compiled else x * y + z

    def decay(self, dt, A):
        """exp(dt A), at most 1 in every execution since its argument is <= 0.

        expm1(e) <= e (1 + e) for e <= 1. Beyond, both values are at most 1; and they
        are flushed where dt |A| - e > 88, since exp(-88) < 2^-126. A product beyond
        fp32 is -inf, whose exponential is the 0 that it stands for; a factor that is no
        number leaves e none.
        """
        if not isinstance(A, Bounded):
            # one that is no number shows in e: nothing to ask at every token
            A = Bounded(A, jnp.zeros_like(A))
        dt, A = self._operand(dt), self._operand(A)
        model = self._model
        size = jnp.abs(A.value)
        # what dt |A| and the product by log2(e) in front of the exponential lose
        coefficient = A.error + (model.unit + model.exp_argument) * (size + A.error)
        exponent = dt.value * size
        value = jnp.exp(-exponent)
        error = self._fused(dt.magnitude, coefficient, size * dt.error)
        spread = self._fused(error, error, error)
        relative = model.exp_relative
        near = self._fused(spread, 1.0 + relative, relative)
        near = at_most_one(self._fused(value, near, model.underflow))
        far = jnp.where(exponent - error > 88.0, EXP_MINUS_88, 1.0)
        bound = jnp.where(error <= 1.0, near, far)
        return Bounded(value, where_known(jnp.isfinite(error), bound))

    def initial_state(self, state):
        """An exact or bounded initial state."""
        state = lift(state)
        mass = jnp.max(state.magnitude, axis=0)
        return BoundedState(state.value, state.error, state.magnitude, mass)

    def advance(self, state, a, b):
        r"""One step of $h_t = a_t h_{t-1} + b_t$, for every bracketing of the scan.

        Propagated: $p_t = \hat a_t p_{t-1} + e_{a,t} |h_{t-1}| + e_{b,t}$ with
        $\hat a = a + e_a$. Rounding (scan lemma): in any bracketing term s takes part
        in t - s multiplications and at most D additions, so
        $|\delta h_t| \le (1+u)^D P_t - S_t$ with $P = scan(\hat a (1+u), |b| + e_b)$
        and $S = scan(\hat a, |b| + e_b)$. $Q = P - S$ is advanced without
        cancellation, $Q_t = \hat a_t (Q_{t-1} + u P_{t-1})$; p and Q share their
        decay, so `excess` holds p + Q.
        """
        a, b = lift(a), lift(b)
        # a comes from `decay`: at most 1 in every execution
        high = at_most_one(a.value + a.error)
        magnitude = high * (1.0 + self._model.unit) * state.magnitude + b.magnitude
        mass = state.mass + jnp.max(b.magnitude, axis=0)
        error = b.error + self._lost(mass)
        return self._advanced(state, a, high, b.value, error, magnitude, mass)

    def step(self, state, dt, drive, B, A):
        """`advance` with exp(dt A) and drive B, the rule of `multiply` written out.

        With m = (|d| + e_d) (|B| + e_B) the drive of a state is at most m (1 + u) and
        what underflows, the largest of a channel's that of the largest |B| + e_B.
        """
        unit, underflow = self._model.unit, self._model.underflow
        B = self.drive_row(B)
        drive = self._operand(drive)
        a = self.decay(dt[None, :], A)
        high = at_most_one(a.value + a.error)
        most = drive.magnitude * B.largest
        most = self._unless_overflow(most, most * (1.0 + unit) + underflow)
        mass = state.mass + most
        # an overflow in one state of a channel leaves none of its states bounded
        lost = underflow + self._lost(mass)
        size = jnp.abs(B.value)[:, None]
        error = drive.magnitude * B.error[:, None]
        m = self._fused(drive.magnitude, size, error)
        error = self._fused(drive.error, size, self._fused(unit, m, error + lost))
        magnitude = self._fused(high, state.magnitude, m)
        magnitude = self._fused(1.0 + unit, magnitude, underflow)
        value = drive.value * B.value[:, None]
        return self._advanced(state, a, high, value, error, magnitude, mass)

    def _lost(self, mass):
        """A flushed product of decays loses at most 2^-126 of any P until now.

        And (1 + u)^T < 2.
        """
        return 2.0 * self._model.underflow * (1.0 + mass)

    def _advanced(self, state, a, high, value, error, magnitude, mass):
        error = self._fused(a.error, jnp.abs(state.value), error)
        before = self._fused(self._model.unit, state.magnitude, state.excess)
        return BoundedState(
            self._fused(a.value, state.value, value),
            self._fused(high, before, error),
            magnitude,
            mass,
        )

    def drive_row(self, B):
        """B with what is flushed of it, and the largest |B| + e at a token."""
        if isinstance(B, DriveRow):
            return B
        B = self._operand(B)
        return DriveRow(B.value, B.error, jnp.max(B.magnitude, axis=-1))

    def read_out_row(self, c):
        """c with what multiplies values and errors of a state: see `contract`."""
        if isinstance(c, ReadOutRow):
            return c
        c = self._operand(c)
        growth = self._growth(c.shape[-1] + 1)
        size = c.magnitude
        return ReadOutRow(
            c.value,
            growth * size + c.error,
            (1.0 + growth) * size,
            jnp.sum(size, axis=-1),
        )

    def contract(self, state, c, start=None):
        """start + c state: at most terms + 1 roundings a term, any order.

        With e the state's error and g the growth of the sum
        (e + g (|h| + e)) (|c| + e_c) + |h| e_c, sorted by |h| and e.
        """
        c = self.read_out_row(c)
        state = state if isinstance(state, BoundedState) else lift(state)
        terms = state.value.shape[0]
        growth = self._growth(terms + 1)
        size = jnp.abs(state.value)
        # products and partial sums that are flushed
        flushed = self._model.underflow * (2 * (terms + 1) + c.total)
        if isinstance(state, BoundedState):
            most = state.mass
            levels, lost = self._scan_growth(state)
            own = self._fused(levels, state.magnitude, state.excess)
            flushed = flushed + (1.0 + growth) * c.total * lost
        else:
            most, own = jnp.max(state.magnitude, axis=0), state.error
        if self._growths is None:
            value = c.value @ state.value
            error = c.of_value @ size + c.of_error @ own
        else:
            value = along_states(c.value[:, None] * state.value)
            of_error = c.of_error[:, None] * own
            error = along_states(self._fused(c.of_value[:, None], size, of_error))
        # products, partial sums and the state itself
        most = jnp.maximum(c.total, 1.0) * most
        if start is not None:
            start = lift(start)
            value = value + start.value
            error = self._fused(growth, start.magnitude, error + start.error)
            most = most + start.magnitude
        flushed = self._unless_overflow(most, flushed)
        return Bounded(value, (error + flushed) * SAFETY)

    def _scan_growth(self, state: BoundedState):
        """(share of P, lost to underflow) that the scan's additions cost at a token."""
        # at one token a tree may flush once a level, too
        levels = self._scan_depth + 1
        return self._growth(levels), levels * self._lost(state.mass)

    def _scan_rounding(self, state: BoundedState):
        growth, lost = self._scan_growth(state)
        return growth * state.magnitude + lost

    def finish(self, state):
        """The rounding that `advance` leaves out is added."""
        if not isinstance(state, BoundedState):
            return state
        error = state.excess + self._scan_rounding(state)
        # partial sums of any bracketing stay within the mass
        error = self._unless_overflow(state.mass, error)
        return Bounded(state.value, error * SAFETY)

    def scan(self, body, state, inputs):
        """`jax.lax.scan` of the body with its errors, one token at a time."""

        def one(state, x):
            return body(self._inside_scan(self._model), state, x)

        state, outputs = jax.lax.scan(one, state, inputs)
        return self.finish(state), outputs

    def scan_numbers(self, terms):
        """The inner arithmetic's, and what its sums grow by."""
        depths = (terms + 1, self._scan_depth + 1)
        return (*self._model, *(self._growth(depth) for depth in depths))

    def within(self, numbers, terms, *, compiled=False):
        """The same rules, with numbers that a kernel has read."""
        *model, of_sum, of_scan = numbers
        growths = {terms + 1: of_sum, self._scan_depth + 1: of_scan}
        return self._inside_scan(RoundingModel(*model), growths, compiled)


def at_most_one(x):
    """min(x, 1), and NaN of NaN: on a GPU a comparison and a choice."""
    return jnp.where(x > 1.0, 1.0, x)


def multiply_add(x, y, z) -> Array:
    """x y + z with one rounding, inside a Triton kernel.

    What compiles these kernels does not fuse a product with the sum behind it.
    """
    from jax.experimental.pallas import triton

    shape = jnp.broadcast_shapes(*(jnp.shape(part) for part in (x, y, z)))
    wide = [jnp.broadcast_to(jnp.asarray(part), shape) for part in (x, y, z)]
    (found,) = triton.elementwise_inline_asm(
        "fma.rn.f64 $0, $1, $2, $3;",
        args=wide,
        constraints="=d,d,d,d",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float64)],
    )
    return found
