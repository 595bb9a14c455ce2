"""What the bounded interpreter carries, and what it is told of the arithmetic."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


# All bounds are sums and products of nonnegative fp64 numbers, each off by 2^-53 of
# itself at most, so that one of n chained operations is at least (1 - 2^-53)^n of what
# it stands for. (1 + 2^-53)^(8e6) < 1 + 1e-9: eight million of them are covered.
SAFETY = 1.0 + 1e-9


class RoundingModel(NamedTuple):
    """What an execution promises about its inner arithmetic. All zero: none.

    Relative errors are of the result; `*_argument` multiplies |argument| and stands
    for a rounded product in front of the exponential (x log2(e)).
    """

    unit: Float[Array, ""]
    """Unit roundoff of one inner operation."""
    underflow: Float[Array, ""]
    """Most that one inner operation loses to underflow (flush to zero)."""
    accumulator_unit: Float[Array, ""]
    """Unit of one addition inside a matrix product."""
    exp_relative: Float[Array, ""]
    exp_argument: Float[Array, ""]
    softplus_relative: Float[Array, ""]
    softplus_argument: Float[Array, ""]
    softplus_absolute: Float[Array, ""]
    silu_relative: Float[Array, ""]
    silu_argument: Float[Array, ""]
    rsqrt_relative: Float[Array, ""]
    tanh_relative: Float[Array, ""]
    silu_size: Float[Array, ""]
    """Of |x|: what a gate through an approximate tanh is off by."""
    turn_absolute: Float[Array, ""]
    """Of cosine and sine."""
    operand_normal: Float[Array, ""]
    """Smallest normal operand of a matrix product on tensor cores, else 0: products are
    aligned by exponents there, and a subnormal operand has that of this number."""

    @classmethod
    def none(cls) -> "RoundingModel":
        """Exact arithmetic: what is bounded is then the inputs' error alone."""
        return cls(*(jnp.zeros((), jnp.float64) for _ in cls._fields))


class Bounded(eqx.Module):
    """A value with its elementwise error and the L2 norm of that error.

    Where an execution may have an infinity or a NaN the error is not finite, nor is the
    norm of a vector that has such an entry.
    """

    value: Float[Array, "*shape"]
    error: Float[Array, "*shape"]
    norm: Float[Array, "*tokens"]

    def __init__(self, value, error, norm=None):
        own = jnp.linalg.norm(error, axis=-1) if error.ndim else jnp.abs(error)
        self.value = value
        self.error = error
        if norm is not None:
            own = jnp.where(jnp.isfinite(own), jnp.minimum(norm, own), own)
        self.norm = own

    def __getitem__(self, index) -> "Bounded":
        # A slice of the last axis keeps the norm as a bound: a part is no longer
        # than the whole. Any other indexing starts from the elementwise error.
        keeps = (
            isinstance(index, tuple)
            and len(index) == 2
            and index[0] is Ellipsis
            and isinstance(index[1], slice)
        )
        return Bounded(
            self.value[index], self.error[index], self.norm if keeps else None
        )

    @property
    def shape(self):
        """Shape of the value."""
        return self.value.shape

    @property
    def magnitude(self) -> Float[Array, "*shape"]:
        """The largest magnitude that an execution can have here."""
        return jnp.abs(self.value) + self.error

    @property
    def known(self) -> Bool[Array, "*shape"]:
        """Where every execution has a number, neither an infinity nor a NaN."""
        return jnp.isfinite(self.magnitude)


class BoundedState(eqx.Module):
    """The state of a linear recurrence inside a scan; see `advance`."""

    value: Float[Array, "*state"]
    excess: Float[Array, "*state"]
    """p + Q: what came in through a and b, and the products of the scan lemma."""
    magnitude: Float[Array, "*state"]
    """P, the scan of magnitudes."""
    mass: Float[Array, " d_inner"]
    """At least P at any token so far, by channel: what a flushed product may lose."""

    def __getitem__(self, index) -> "BoundedState":
        return BoundedState(
            self.value[index],
            self.excess[index],
            self.magnitude[index],
            self.mass[index[-1]] if isinstance(index, tuple) else self.mass,
        )


class DriveRow(eqx.Module):
    """B at a token, or at all of them, with what all channels share of it."""

    value: Float[Array, "*seq d_state"]
    error: Float[Array, "*seq d_state"]
    """With what reading a subnormal as 0 changes."""
    largest: Float[Array, "*seq"]
    """Largest magnitude that an execution can have."""


class ReadOutRow(eqx.Module):
    """C at a token, or at all of them, with what all channels share of it."""

    value: Float[Array, "*seq d_state"]
    of_value: Float[Array, "*seq d_state"]
    """What the error grows by with a state's magnitude."""
    of_error: Float[Array, "*seq d_state"]
    """The same with a state's error."""
    total: Float[Array, "*seq"]
    """Sum of the largest magnitudes."""


def constant(x) -> Bounded:
    """A value that every execution has exactly; unbounded where it is no number."""
    x = jnp.asarray(x, jnp.float64)
    return Bounded(x, where_known(jnp.isfinite(x), jnp.zeros_like(x)))


def where_known(known: Bool[Array, "..."], error: Float[Array, "..."]):
    """The error where all that it was found from are numbers, else inf.

    A rule that clips an error, since its function's results lie in an interval, would
    otherwise call NaN a member of that interval.
    """
    return jnp.where(known, error, jnp.inf)


def lift(x) -> Bounded:
    """A value as it is, anything else as exact."""
    return x if isinstance(x, Bounded) else constant(x)
