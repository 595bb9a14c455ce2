r"""What changed parameters can do to one sublayer, in exact arithmetic.

Two weight sets W and W' on the same input. The bound knows W and the elementwise
distances $E = |W' - W|$ alone, so it holds for every weight set within them: any
rounding mode of a format, any signs. It is elementwise, with L2 norms beside it where
a matrix passes an error on.

For a projection, $W'x' - Wx = (W' - W) x + W' (x' - x)$, hence

- elementwise at most $E |x| + (|W| + E) e$,
- in L2 at most $\| E |x| \| + \min(\| (|W| + E) e \|, (\|W\|_2 + \|E\|_2) n)$,

where x' is within e of x, and within n in L2. The first term is attained: the box
holds a W' with any signs. What the sublayer adds to that is as in `arithmetic.rules`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._devices import side_by_side
from ..arithmetic import (
    SAFETY,
    AbstractBoundedArithmetic,
    Bounded,
    Exact,
    RoundingModel,
    Weight,
    where_known,
)
from ..arithmetic._programs import program
from ..sublayers.residual import sublayer
from ._norms import norms_of
from .floor import FLOOR_TOKENS, SIGN_ITERATIONS
from .local import REFERENCE_SHARE, finite_limit


# Below this a result in fp64 may have lost all its digits.
UNDERFLOW = 2.0**-1022


class BoundedParameter(Bounded):
    """A parameter that is an array: its value, and how far it may be changed."""

    @property
    def T(self) -> "BoundedParameter":
        """Rows and columns exchanged."""
        return _parameter(self.value.T, self.error.T)


def _parameter(value, error) -> BoundedParameter:
    return BoundedParameter(value, error, jnp.linalg.norm(error, axis=-1))


class BoundedWeight(Weight):
    """A matrix that multiplies activations, and how far each entry may be changed.

    `error_norm` is a certified upper bound of the largest singular value of `error`,
    and so of every change within it.
    """

    error: Float[Array, "rows columns"]
    error_norm: Float[Array, ""]

    def __init__(self, matrix, operator_norm, error, error_norm):
        super().__init__(matrix, operator_norm)
        self.error = error
        self.error_norm = jnp.asarray(error_norm, jnp.float64)


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)


@program
def difference(base: Any, changed: Any) -> Any:
    """W' - W of every parameter, in the base's structure; no operator norms."""

    def one(a, b):
        if _is_weight(a):
            return Weight(b.matrix - a.matrix, 0.0)
        return b - a

    return jax.tree.map(one, base, changed, is_leaf=_is_weight)


def within(base: Any, change: Any) -> Any:
    """Parameters that may lie anywhere within |change| of the base's.

    **Arguments:**

    - `base`: parameters of a sublayer in fp64.
    - `change`: of `difference`; only its magnitudes are used.
    """

    boxes = _boxes(base, change)
    leaves, structure = jax.tree.flatten(base, is_leaf=_is_weight)
    pairs = list(zip(leaves, structure.flatten_up_to(boxes), strict=True))
    weights = [(a.matrix, box) for a, box in pairs if _is_weight(a)]
    norms = iter(norms_of([matrix for both in weights for matrix in both]))

    def one(a, box):
        if not _is_weight(a):
            return box
        return BoundedWeight(a.matrix, next(norms), box, next(norms))

    return jax.tree.unflatten(structure, [one(a, box) for a, box in pairs])


@program
def _boxes(base, change):
    """Each parameter with its box; of a weight the box alone, whose norm is found
    outside of programs."""

    def one(a, d):
        if _is_weight(a):
            return jnp.abs(d.matrix) * SAFETY
        return _parameter(a, jnp.abs(d) * SAFETY)

    return jax.tree.map(one, base, change, is_leaf=_is_weight)


class ParameterArithmetic(AbstractBoundedArithmetic):
    """Interpret a flow exactly, with parameters from `within`."""

    def __init__(self):
        super().__init__({}, RoundingModel.none())

    def matmul(self, x, weight, bias=None):
        """x W^T + bias; see this module's head for the rule."""
        if not isinstance(weight, BoundedWeight):
            raise TypeError("a projection whose change is not known: use `within`")
        if not isinstance(x, Bounded):
            x = Bounded(x, jnp.zeros_like(x))
        largest = jnp.abs(weight.matrix) + weight.error
        changed = jnp.abs(x.value) @ weight.error.T
        rows = jnp.linalg.norm(largest, axis=-1)
        passed = jnp.minimum(x.error @ largest.T, rows * x.norm[..., None])
        norms = weight.operator_norm + weight.error_norm
        through = jnp.minimum(jnp.linalg.norm(passed, axis=-1), norms * x.norm)
        value = jnp.matmul(x.value, weight.matrix.T, precision="highest")
        error = changed + passed
        norm = jnp.linalg.norm(changed, axis=-1) + through
        if bias is not None:
            value = value + bias.value
            error = error + bias.error
            norm = norm + bias.norm
        return Bounded(value, error * SAFETY, norm * SAFETY)

    def decay(self, dt, A):
        r"""exp(dt A) with both uncertain, as an interval; s = dt |A|.

        The exponent falls by at most $|A| e_{dt} + dt\, e_A$, and by no more than s,
        since dt >= 0 and A <= 0 in every weight set.
        """
        size = jnp.abs(A.value)
        exponent = dt.value * size
        shift = size * dt.error + dt.value * A.error
        up = jnp.minimum(shift, exponent)
        down = shift + dt.error * A.error
        value = jnp.exp(-exponent)
        small = value * jnp.expm1(jnp.minimum(up, 1.0))
        rise = jnp.where(up <= 1.0, small, jnp.exp(up - exponent) - value)
        fall = -value * jnp.expm1(-down)
        error = jnp.maximum(rise, fall) * SAFETY
        error = error + jnp.where(shift > 0.0, UNDERFLOW, 0.0)
        return Bounded(value, where_known(dt.known & A.known, error))

    def _inside_scan(self):
        return ParameterArithmetic()


class SublayerChange(NamedTuple):
    """Measured and bounded effect of a change on a sublayer's output, by token."""

    measured_square: Float[Array, "batch seq"]
    bound_square: Float[Array, "batch seq"]
    measured_max: Float[Array, "batch seq"]
    violations: Int[Array, "batch seq"]
    """Channels measured above the bound, fp64's own error allowed for."""
    unbounded: Int[Array, "batch seq"]
    """Channels without a finite bound."""
    channels: int


def sublayer_change(flow, incoming, base, changed, start) -> SublayerChange:
    """|F(x; W') - F(x; W)|, measured in fp64 and bounded for all W' as far away.

    **Arguments:**

    - `flow`: such as `mamba1`.
    - `incoming`: (batch, seq, d_model), what enters the sublayer.
    - `base`, `changed`: its parameters in either weight set.
    - `start`: the state before the first token.

    **Returns:** squares of L2 norms at each token. A token's elements may exceed the
    bound by `REFERENCE_SHARE` of both outputs' norms, for fp64's own error.
    """
    box = within(base, difference(base, changed))
    return _sublayer_change(flow, incoming, base, changed, box, start)


def change_bound(flow, incoming, box, start) -> Bounded:
    """The output (seq, d_model) with its bound, for parameters from `within`."""
    return sublayer(ParameterArithmetic(), flow, incoming, box, start)[1]


@program
def _sublayer_change(flow, incoming, base, changed, box, start):
    def one(incoming):
        run = lambda p: sublayer(Exact(), flow, incoming, p, start)[1]
        return run(base), run(changed), change_bound(flow, incoming, box, start)

    before, after, bound = side_by_side(one)(incoming)
    apart = jnp.abs(after - before)
    own = jnp.linalg.norm(before, axis=-1) + jnp.linalg.norm(after, axis=-1)
    error = finite_limit(before, bound.error)
    norm = jnp.where(jnp.isnan(bound.norm), jnp.inf, bound.norm)
    held = apart <= error + REFERENCE_SHARE * own[..., None]
    return SublayerChange(
        measured_square=jnp.sum(apart**2, axis=-1),
        bound_square=norm**2,
        measured_max=jnp.max(apart, axis=-1),
        violations=jnp.sum(~held & jnp.isfinite(error), axis=-1),
        unbounded=jnp.sum(~jnp.isfinite(error), axis=-1),
        channels=apart.shape[-1],
    )


def change_floor(flow, incoming, base, changed, start):
    """The largest L2 effect found among weight sets as far from the base.

    Signs of the changes follow the gradient of the distance, as in `bounds.floor`; no
    bound that knows |W' - W| alone can be smaller.

    **Returns:** the distance found and the change's own, over the leading tokens of
    the first sequence.
    """
    tokens = min(FLOOR_TOKENS, incoming.residual.shape[1])
    return _floor(
        flow,
        jax.tree.map(lambda x: x[0, :tokens], incoming),
        base,
        difference(base, changed),
        start,
    )


@program
def _floor(flow, incoming, base, change, start):
    def run(offset):
        p = jax.tree.map(jnp.add, base, offset)
        return sublayer(Exact(), flow, incoming, p, start)[1]

    before, pull = jax.vjp(run, jax.tree.map(jnp.zeros_like, change))

    def distance(offset):
        return run(offset) - before

    def improve(_, offset):
        (gradient,) = pull(distance(offset))
        return jax.tree.map(
            lambda g, d: jnp.where(g < 0, -jnp.abs(d), jnp.abs(d)), gradient, change
        )

    own = jnp.linalg.norm(distance(change))
    found = jax.lax.fori_loop(0, SIGN_ITERATIONS, improve, change)
    return jnp.maximum(jnp.linalg.norm(distance(found)), own), own
