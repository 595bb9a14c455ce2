"""Rules of linear recurrences, in a loop or in a kernel.

What they cost is mostly fp64 operations for each token, channel and state. So they are
written in fused multiply-adds, and what all channels share at a token, or all states of
a channel, is found once.
"""

import jax.numpy as jnp

from .._arrays import along_states
from .._bounded_values import (
    SAFETY,
    Bounded,
    BoundedState,
    DriveRow,
    ReadOutRow,
    lift,
    where_known,
)
from .._in_kernels import exponential, multiply_add
from .declared import Declared, operand, unless_overflow


# exp(-88), rounded up, with the declared error of any exponential on top.
EXP_MINUS_88 = 6.1e-39 * 1.01


def grown_by(declared: Declared, roundings: int):
    """(1 + u)^roundings - 1."""
    if declared.growths is not None and roundings in declared.growths:
        return declared.growths[roundings]
    return jnp.expm1(roundings * declared.model.unit)


def _fused(declared: Declared, x, y, z):
    """x y + z; in a compiled kernel with one rounding, else however XLA does it."""
    return multiply_add(x, y, z, compiled=declared.compiled)


def decay(declared: Declared, dt, A) -> Bounded:
    """exp(dt A), at most 1 in every execution since its argument is <= 0.

    expm1(e) <= e (1 + e) for e <= 1. Beyond, both values are at most 1; and they
    are flushed where dt |A| - e > 88, since exp(-88) < 2^-126. A product beyond
    fp32 is -inf, whose exponential is the 0 that it stands for; a factor that is no
    number leaves e none.
    """
    if not isinstance(A, Bounded):
        # one that is no number shows in e: nothing to ask at every token
        A = Bounded(A, jnp.zeros_like(A))
    dt, A = operand(declared, dt), operand(declared, A)
    model = declared.model
    size = jnp.abs(A.value)
    # what dt |A| and the product by log2(e) in front of the exponential lose
    coefficient = A.error + (model.unit + model.exp_argument) * (size + A.error)
    exponent = dt.value * size
    if declared.growths is None:
        value = jnp.exp(-exponent)
    else:
        value = exponential(-exponent, compiled=declared.compiled)
    error = _fused(declared, dt.magnitude, coefficient, size * dt.error)
    spread = _fused(declared, error, error, error)
    relative = model.exp_relative
    near = _fused(declared, spread, 1.0 + relative, relative)
    near = _fused(declared, value, near, model.underflow)
    far = jnp.where(exponent - error > 88.0, EXP_MINUS_88, 1.0)
    bound = jnp.where(error <= 1.0, near, far)
    return Bounded(value, where_known(jnp.isfinite(error), bound))


def initial_state(declared: Declared, state) -> BoundedState:
    """An exact or bounded initial state; a carrier of a scan that goes on is itself."""
    if isinstance(state, BoundedState):
        return state
    state = lift(state)
    mass = jnp.max(state.magnitude, axis=0)
    return BoundedState(state.value, state.error, state.magnitude, mass)


def advance(declared: Declared, state, a, b) -> BoundedState:
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
    magnitude = high * (1.0 + declared.model.unit) * state.magnitude + b.magnitude
    mass = state.mass + jnp.max(b.magnitude, axis=0)
    error = b.error + _flushed_until_now(declared, mass)
    return _advanced(declared, state, a, high, b.value, error, magnitude, mass)


def step(declared: Declared, state, dt, drive, B, A) -> BoundedState:
    """`advance` with exp(dt A) and drive B, the rule of `multiply` written out.

    With m = (|d| + e_d) (|B| + e_B) the drive of a state is at most m (1 + u) and
    what underflows, the largest of a channel's that of the largest |B| + e_B.
    """
    unit, underflow = declared.model.unit, declared.model.underflow
    B = drive_row(declared, B)
    drive = operand(declared, drive)
    a = declared.decay(dt[None, :], A)
    high = at_most_one(a.value + a.error)
    most = drive.magnitude * B.largest
    most = unless_overflow(declared, most, most * (1.0 + unit) + underflow)
    mass = state.mass + most
    # an overflow in one state of a channel leaves none of its states bounded
    lost = underflow + _flushed_until_now(declared, mass)
    size = jnp.abs(B.value)[:, None]
    error = drive.magnitude * B.error[:, None]
    m = _fused(declared, drive.magnitude, size, error)
    error = _fused(declared, drive.error, size, _fused(declared, unit, m, error + lost))
    magnitude = _fused(declared, high, state.magnitude, m)
    magnitude = _fused(declared, 1.0 + unit, magnitude, underflow)
    value = drive.value * B.value[:, None]
    return _advanced(declared, state, a, high, value, error, magnitude, mass)


def _flushed_until_now(declared: Declared, mass):
    """A flushed product of decays loses at most 2^-126 of any P until now.

    And (1 + u)^T < 2.
    """
    return 2.0 * declared.model.underflow * (1.0 + mass)


def _advanced(declared: Declared, state, a, high, value, error, magnitude, mass):
    error = _fused(declared, a.error, jnp.abs(state.value), error)
    before = _fused(declared, declared.model.unit, state.magnitude, state.excess)
    return BoundedState(
        _fused(declared, a.value, state.value, value),
        _fused(declared, high, before, error),
        magnitude,
        mass,
    )


def drive_row(declared: Declared, B) -> DriveRow:
    """B with what is flushed of it, and the largest |B| + e at a token."""
    if isinstance(B, DriveRow):
        return B
    B = operand(declared, B)
    return DriveRow(B.value, B.error, jnp.max(B.magnitude, axis=-1))


def read_out_row(declared: Declared, c) -> ReadOutRow:
    """c with what multiplies values and errors of a state: see `contract`."""
    if isinstance(c, ReadOutRow):
        return c
    c = operand(declared, c)
    growth = grown_by(declared, c.shape[-1] + 1)
    size = c.magnitude
    return ReadOutRow(
        c.value,
        growth * size + c.error,
        (1.0 + growth) * size,
        jnp.sum(size, axis=-1),
    )


def contract(declared: Declared, state, c, start=None) -> Bounded:
    """start + c state: at most terms + 1 roundings a term, any order.

    With e the state's error and g the growth of the sum
    (e + g (|h| + e)) (|c| + e_c) + |h| e_c, sorted by |h| and e.
    """
    c = read_out_row(declared, c)
    state = state if isinstance(state, BoundedState) else lift(state)
    terms = state.value.shape[0]
    growth = grown_by(declared, terms + 1)
    size = jnp.abs(state.value)
    # products and partial sums that are flushed
    flushed = declared.model.underflow * (2 * (terms + 1) + c.total)
    if isinstance(state, BoundedState):
        most = state.mass
        levels, lost = _growth_of_scan(declared, state)
        own = _fused(declared, levels, state.magnitude, state.excess)
        flushed = flushed + (1.0 + growth) * c.total * lost
    else:
        most, own = jnp.max(state.magnitude, axis=0), state.error
    if declared.growths is None:
        value = c.value @ state.value
        error = c.of_value @ size + c.of_error @ own
    else:
        value = along_states(c.value[:, None] * state.value)
        of_error = c.of_error[:, None] * own
        error = along_states(_fused(declared, c.of_value[:, None], size, of_error))
    # products, partial sums and the state itself
    most = jnp.maximum(c.total, 1.0) * most
    if start is not None:
        start = lift(start)
        value = value + start.value
        error = _fused(declared, growth, start.magnitude, error + start.error)
        most = most + start.magnitude
    flushed = unless_overflow(declared, most, flushed)
    return Bounded(value, (error + flushed) * SAFETY)


def _growth_of_scan(declared: Declared, state: BoundedState):
    """(share of P, lost to underflow) that the scan's additions cost at a token."""
    # at one token a tree may flush once a level, too
    levels = declared.scan_depth + 1
    return grown_by(declared, levels), levels * _flushed_until_now(declared, state.mass)


def scan_rounding(declared: Declared, state: BoundedState):
    """What the additions of a scan cost its state: (1 + u)^D - 1 of P, at most."""
    growth, lost = _growth_of_scan(declared, state)
    return growth * state.magnitude + lost


def finish(declared: Declared, state):
    """The rounding that `advance` leaves out is added."""
    if not isinstance(state, BoundedState):
        return state
    error = state.excess + scan_rounding(declared, state)
    # partial sums of any bracketing stay within the mass
    error = unless_overflow(declared, state.mass, error)
    return Bounded(state.value, error * SAFETY)


def at_most_one(x):
    """min(x, 1), and NaN of NaN: on a GPU a comparison and a choice."""
    return jnp.where(x > 1.0, 1.0, x)
