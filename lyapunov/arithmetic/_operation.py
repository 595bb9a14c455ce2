"""Operations that are given to an interpreter: what each does with one."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ArgumentError, UsageError
from ._bounded_values import SAFETY, Bounded, lift, where_known
from .rules.declared import Declared


class AbstractOperation(abc.ABC):
    """What `AbstractArithmetic.apply` takes: a function, read by each interpreter."""

    @abc.abstractmethod
    def on_arrays(self, carry: Callable, settle: Callable, *operands: Any) -> Array:
        """The result as arrays hold it.

        **Arguments:**

        - `carry`: a number in the interpreter's own dtype.
        - `settle`: a result rounded to its inner format.
        """

    @abc.abstractmethod
    def with_errors(self, declared: Declared, *operands: Bounded) -> Bounded:
        """The result with its certified error."""

    @abc.abstractmethod
    def in_symbols(self, *operands: np.ndarray) -> np.ndarray:
        """The result as SymPy expressions, in NumPy arrays of objects."""


@dataclasses.dataclass(frozen=True)
class Operation(AbstractOperation):
    r"""Add an operation to the arithmetic: a function, and a bound of what it loses.

    **Arguments:**

    - `exact`: the function of real numbers, on fp64 arrays, in terms that JAX can trace
      and differentiate. It returns one array.
    - `bounded`: its rule, `(declared, *operands) -> Bounded`. Of operands with
      $|x' - x| \le e$ it returns `exact`'s value and an error, which no result of a
      declared execution exceeds: for every x' within e, in the arithmetic that
      `declared.model` describes. As emulators compute in fp64 and round once, it has
      to allow for one rounding, `declared.model.unit`, at least; a sum along a row for
      `declared.reduction_depth(terms)` additions.
    - `name`: for messages; that of `exact` where none is given.
    - `symbolic`: the same on NumPy arrays of SymPy expressions, if it has a formula.

    Interpreters read the pair so: `Exact` runs `exact`; `Rounded` and `Sampled` run it
    and round the result to the inner format, once; `Perturbed` runs it, so that
    adjoints and tangents are JAX's own of `exact`; those with errors run `bounded`;
    `Symbolic` runs `symbolic`, and refuses an operation that has none.

    Two faults of a rule are made good: what fp64 itself loses of the bound (`SAFETY`),
    and an operand that may be an infinity or a NaN, whose error is not finite: wherever
    `exact` makes NaN of a NaN there is no bound. That an error is large enough nobody
    but a test can say: hold it, one-sided, to the function in many digits at operands
    moved by their errors, and see that it is not far above.

    For example the arc tangent, whose slope is at most $1 / (1 + t^2)$ with t the
    smallest magnitude in $[x - e, x + e]$, and whose results are within 2 ulp of the
    true ones, as the CUDA programming guide says of atanf; so within 4 units:

        >>> import jax.numpy as jnp
        >>> from lyapunov.arithmetic import Bounded, Exact, Operation
        >>> def arctan_bound(declared, x):
        ...     least = jnp.maximum(jnp.abs(x.value) - x.error, 0.0)
        ...     value, error = jnp.arctan(x.value), x.error / (1.0 + least**2)
        ...     own = 4.0 * declared.model.unit * (jnp.abs(value) + error)
        ...     return Bounded(value, error + own + declared.model.underflow)
        >>> arctan = Operation(exact=jnp.arctan, bounded=arctan_bound)
        >>> float(Exact().apply(arctan, jnp.asarray(1.0, jnp.float32)))
        0.7853981633974483

    In a flow it is `at.apply(arctan, x)`.
    """

    exact: Callable[..., Array]
    bounded: Callable[..., Bounded]
    name: str = ""
    symbolic: Callable[..., Any] | None = None

    def __post_init__(self):
        for role in ("exact", "bounded"):
            if not callable(getattr(self, role)):
                raise ArgumentError(
                    f"{role} of an operation must be a function and is "
                    f"{getattr(self, role)!r}",
                    hint="Operation(exact=f, bounded=rule)",
                )
        if not self.name:
            name = getattr(self.exact, "__name__", repr(self.exact))
            object.__setattr__(self, "name", name)

    def on_arrays(self, carry, settle, *operands):
        """`exact` in fp64, rounded to the inner format once."""
        wide = (jnp.asarray(x, jnp.float64) for x in operands)
        return settle(carry(self._result(*wide)))

    def with_errors(self, declared, *operands):
        """`bounded`, and inf where `exact` makes NaN of an operand that may be none."""
        lifted = [lift(x) for x in operands]
        found = self.bounded(declared, *lifted)
        if not isinstance(found, Bounded):
            raise UsageError(
                f"bounded of operation {self.name!r} returned {type(found).__name__}",
                hint="return lyapunov.arithmetic.Bounded(value, error)",
            )
        unknown = self._result(*(jnp.where(x.known, x.value, jnp.nan) for x in lifted))
        if found.value.shape != unknown.shape or found.error.shape != unknown.shape:
            raise UsageError(
                f"bounded of operation {self.name!r} has a value of shape "
                f"{found.value.shape} with an error of shape {found.error.shape}, and "
                f"exact one of shape {unknown.shape}",
                hint="the same shape for all three",
            )
        known = ~jnp.isnan(unknown) & jnp.isfinite(found.value) & (found.error >= 0.0)
        error = where_known(known, found.error * SAFETY)
        return Bounded(found.value, error, found.norm * SAFETY)

    def in_symbols(self, *operands):
        """`symbolic`, where there is one."""
        if self.symbolic is None:
            raise UsageError(
                f"operation {self.name!r} has no formula to write down",
                hint="Operation(..., symbolic=f), of NumPy arrays of expressions",
            )
        return np.asarray(self.symbolic(*operands), dtype=object)

    def _result(self, *operands: Float[Array, "..."]) -> Array:
        found = self.exact(*operands)
        if not isinstance(found, jax.Array | np.ndarray | np.generic):
            raise UsageError(
                f"exact of operation {self.name!r} returned {type(found).__name__}",
                hint="one array; two results are two operations",
            )
        return jnp.asarray(found)
