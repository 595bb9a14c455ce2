r"""T4: a certified ball around a whole run, for as long as it says anything.

The rules of T1 go on from one sublayer to the next, with the error that the sublayer
before left in the stream. The ball is centred on the run that computes exactly between
its stores: at every token

    |execution - reference| <= |centre - reference| + radius,

where the first distance is computed and the second certified for every execution of the
declared kind. The reference is the fp64 one as computed. Rounded weights are in the
centre, so their effect is computed too.

A ball grows by what the rules lose at each sublayer, a factor of hundreds, and says
nothing once it is as large as the stream itself. Going on would cost and not inform, so
the chain stops there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._devices import over_batch
from ..arithmetic import SAFETY, Bounded, Weight
from ..arithmetic._programs import program
from ..formats import FormatNumbers, rounding_error_bound
from ..implementations import Execution
from ..models import Model, Sublayer
from ..sublayers.config import LogitsEnd
from ..sublayers.residual import Stream, beside, final_norm, logits
from ..sublayers.sites import FLOW_ORDER, LOGITS
from .embedding import embedded
from .head import logit_roundings
from .local import REFERENCE_SHARE, with_operator_norms
from .passes import Interpreter, Numbers, bounded_pass, numbers_of


class Certified(NamedTuple):
    """How far the stream behind one sublayer is from the reference's, at most."""

    layer: int
    by_token: Float[np.ndarray, "batch seq"]
    """L2 of the difference."""
    radius: Float[np.ndarray, "batch seq"]
    """The part that is not computed."""

    @property
    def l2(self) -> float:
        """Over all tokens."""
        return float(np.linalg.norm(self.by_token))


class Ball:
    """T4 of one execution beside a reference, a sublayer at a time.

    In order: `sublayer` for each record of the reference, then `head`, then
    `certified_stable`.

    **Arguments:**

    - `tokens`: (batch, seq).
    - `centred`: False for the ball around exact arithmetic with the held weights,
      in which every rounding counts at its worst.
    """

    def __init__(
        self, model: Model, tokens, execution: Execution, *, centred: bool = True
    ):
        seq = np.shape(tokens)[-1]
        self._model = model
        self._execution = execution
        self._maker = Interpreter(execution, seq, centred)
        self._seq, self._centred = seq, centred
        start = embedded(model, tokens, execution)
        self._stream: Stream | None = Stream.start(start, model.sublayers)
        self._normed: Bounded | None = None
        self.until_layer = 0
        """Leading sublayers whose radius stays under the stream's norm."""
        self.stopped_by: str | None = None
        """Layer and stored tensor at which it no longer did."""

    @property
    def alive(self) -> bool:
        """Whether the ball still says something."""
        return self.stopped_by is None

    def sublayer(self, layer: Sublayer, reference) -> Certified | None:
        """Go through one sublayer; None once the ball says nothing.

        **Arguments:**

        - `reference`: the reference's record of it.
        """
        if self._stream is None:
            return None
        own = self._execution.at(layer)
        p = with_operator_norms(self._model.parameters(layer.layer, own))
        through = bounded_pass(
            layer.flow,
            Interpreter(own, self._seq, self._centred),
            numbers_of(own),
            self._stream.incoming(layer),
            p,
            self._model.start(p),
        )
        stream, output = through.stream, _with_own_error(through.output)
        there = reference.residual + reference.hidden + reference.output
        found, length = _distance(stream, output, there)
        found, length = np.asarray(found), np.asarray(length)
        found = np.where(np.isnan(found), np.inf, found)
        if not np.all(found < length):
            self.stopped_by = f"layer {layer.layer}, {_first_lost(through.largest)}"
            self._stream = None
            return None
        together = lambda one, other: _together(
            self._maker, self._numbers(), one, other
        )
        self._stream = self._stream.after(layer, stream, output, together)
        self.until_layer = layer.layer + 1
        radius = np.asarray(_radius(stream, output))
        return Certified(layer.layer, found, radius)

    def head(self) -> None:
        """Run the final norm."""
        if self._stream is not None:
            self._normed = _through_norm(
                self._maker,
                self._numbers(),
                self._stream.residual,
                self._stream.hidden,
                self._model.final_norm(self._execution),
            )

    def certified_stable(
        self, leader: Int[np.ndarray, "batch seq"]
    ) -> Bool[np.ndarray, "batch seq"]:
        r"""Tokens at which every execution has this leader, and has it alone.

        For each other token j the difference of the two logits is that of the centre
        up to $\min(|w - w_j| \cdot e, ||w - w_j|| n)$, e and n the radius in front of
        the head, and the two logits' own sums and stores.

        **Arguments:**

        - `leader`: index of the largest logit of the reference at each token.
        """
        if self._normed is None:
            return np.zeros(np.shape(leader), bool)
        rows = self._rows_of(leader)
        sites, model = self._numbers()
        own = jnp.zeros(np.shape(leader))
        stable = np.ones(np.shape(leader), bool)
        stores = _Stores(
            {name: sites[name] for name in LOGITS if name in sites},
            self._model.config.logits_end,
        )
        top = _logit(self._maker, model, stores, self._normed, rows)
        for start, stop, _ in self._model.vocabulary_slices():
            weight = self._model.head(start, stop, self._execution)
            weight = Weight(weight.matrix * stores.end.multiplier)
            own = _logits(self._maker, model, stores, self._normed, weight)
            leads = _leads(model, stores, self._normed, rows, top, weight.matrix, own)
            same = leader[..., None] == np.arange(start, stop)
            stable &= np.all(np.asarray(leads) | same, axis=-1)
        return stable

    def _rows_of(self, tokens) -> Float[Array, "batch seq d_model"]:
        rows = np.zeros((*np.shape(tokens), self._model.config.d_model))
        for start, stop, _ in self._model.vocabulary_slices():
            here = (tokens >= start) & (tokens < stop)
            if here.any():
                matrix = np.asarray(
                    self._model.head(start, stop, self._execution).matrix
                )
                rows[here] = matrix[tokens[here] - start]
        return jnp.asarray(rows) * self._model.config.logits_multiplier

    def _numbers(self) -> Numbers:
        return numbers_of(self._execution)


def _first_lost(shares: dict) -> str:
    """The first store whose radius is as large as its tensor at some token.

    **Arguments:**

    - `shares`: by stored tensor, the largest radius over the tensor's own norm.
    """
    for site in sorted(shares, key=FLOW_ORDER.index):
        if not shares[site] < 1.0:
            return site
    return "the sum with the stream"


@program
def _with_own_error(output: Bounded) -> Bounded:
    """fp64's own error in the centre added, as in T1."""
    own = REFERENCE_SHARE * jnp.linalg.norm(output.value, axis=-1)
    return Bounded(output.value, output.error + own[..., None], output.norm + own)


def _radius(stream: Bounded, hidden: Bounded):
    elementwise = jnp.linalg.norm(stream.error + hidden.error, axis=-1)
    return jnp.minimum(elementwise, stream.norm + hidden.norm) * SAFETY


@program
def _distance(stream: Bounded, hidden: Bounded, there):
    """L2 from the reference at most, by token; and the reference's own."""
    here = stream.value + hidden.value
    apart = jnp.linalg.norm(here - there, axis=-1) + _radius(stream, hidden)
    return apart * SAFETY, jnp.linalg.norm(there, axis=-1)


@program
def _through_norm(maker: Interpreter, numbers, stream, hidden, p) -> Bounded:
    run = lambda r, h: final_norm(maker(*numbers), r, h, p)
    return over_batch(run, stream, hidden)


@program
def _together(maker: Interpreter, numbers, output: Bounded, other: Bounded) -> Bounded:
    return jax.vmap(lambda a, b: beside(maker(*numbers), a, b))(output, other)


class _Stores(NamedTuple):
    """What stands behind the head's product."""

    sites: dict[str, FormatNumbers]
    end: LogitsEnd


class _Own(NamedTuple):
    """Logits of the centre in front of a soft cap, and what their own sums and stores
    may add; at most how large they are in any execution."""

    value: Float[Array, "batch seq *rows"]
    error: Float[Array, "batch seq *rows"]
    magnitude: Float[Array, "batch seq *rows"]


@program
def _logits(maker, model, stores: _Stores, normed: Bounded, rows: Weight):
    """Of a slice of the vocabulary."""
    at = maker({}, model)
    exact = Bounded(normed.value, jnp.zeros_like(normed.value))
    value = logits(at, exact, rows)
    lengths = jnp.linalg.norm(rows.matrix, axis=-1)
    moved = jnp.minimum(
        normed.error @ jnp.abs(rows.matrix).T, normed.norm[..., None] * lengths
    )
    return _own(model, stores, normed, value, moved)


@program
def _logit(maker, model, stores: _Stores, normed: Bounded, rows):
    """Of one row for each token."""
    at = maker({}, model)

    def one(x, row):
        value = logits(at, Bounded(x[None], jnp.zeros_like(x)[None]), Weight(row[None]))
        return value[0, ..., 0:1]

    value = jax.vmap(jax.vmap(one))(normed.value, rows)
    value = Bounded(value.value[..., 0], value.error[..., 0])
    moved = jnp.minimum(
        jnp.sum(normed.error * jnp.abs(rows), axis=-1),
        normed.norm * jnp.linalg.norm(rows, axis=-1),
    )
    exact = Bounded(normed.value, normed.error, normed.norm)
    return _own(model, stores, exact, value, moved)


def _own(model, stores: _Stores, normed: Bounded, value: Bounded, moved) -> _Own:
    # The sum's bound grows with the length of what is summed, which may be n longer
    # than the centre's.
    length = jnp.linalg.norm(normed.value, axis=-1)
    longer = 1.0 + jnp.where(normed.norm == 0, 0.0, normed.norm / length)
    extra = value.value.ndim - longer.ndim
    longer = longer.reshape(longer.shape + (1,) * extra)
    error = value.error * longer + 2.0 * model.unit * moved
    end = stores.end._replace(soft_cap=None)
    if end.multiplier != 1.0:
        # the product by the multiplier, which here is in the rows
        error = error + 2.0 * model.unit * jnp.abs(value.value) + model.underflow
    magnitude = jnp.abs(value.value) + (moved + error) * SAFETY
    error = error + sum(logit_roundings(magnitude, stores.sites, end).values())
    error = error * SAFETY
    return _Own(value.value, error, (magnitude + error) * SAFETY)


def _behind_the_cap(model, stores: _Stores, magnitude):
    """What the operations of a soft cap c may move a logit by, of at most this size:
    l / c, its hyperbolic tangent, and c times that.

    A share d of l / c moves the tangent, which is concave, by that share of itself.
    """
    cap, error = stores.end.soft_cap, 0.0
    assert cap is not None
    # more than what was lost before moves it by
    ratio = magnitude / cap * (1.0 + 2.0**-4)
    share = jnp.minimum(ratio, 1.0)
    for site, of, scale, relative in (
        # with the constant itself, as fp32 holds it
        ("logits_divided", share, cap, 2.0 * model.unit),
        ("logits_tanh", share, cap, model.tanh_relative),
        ("logits_capped", share * cap, 1.0, 2.0 * model.unit),
    ):
        error = error + scale * (relative * of + model.underflow)
        if site in stores.sites:
            lost = rounding_error_bound(of, stores.sites[site])
            if site == "logits_divided":
                # a unit of the share, and not of its power of two
                whole = rounding_error_bound(ratio, stores.sites[site])
                lost = jnp.minimum(2.0 * lost, whole)
            error = error + scale * lost
    return error * SAFETY


@program
def _leads(model, stores, normed: Bounded, leader_rows, leader: _Own, rows, own: _Own):
    """Whether the leader's logit is above each of these, in every execution."""

    def one(error, norm, row):
        apart = row - rows
        return jnp.minimum(
            jnp.abs(apart) @ error, jnp.linalg.norm(apart, axis=-1) * norm
        )

    by_token = lambda e, n, r: jax.lax.map(lambda x: one(*x), (e, n, r))
    moved = jax.vmap(by_token)(normed.error, normed.norm, leader_rows)
    bound = (moved + leader.error[..., None] + own.error) * SAFETY
    # fp64's own error in the two sums of the centre, of so many products each
    fp64 = (
        (rows.shape[-1] + 8)
        * 2.0**-53
        * jnp.linalg.norm(normed.value, axis=-1)[..., None]
        * (
            jnp.linalg.norm(rows, axis=-1)
            + jnp.linalg.norm(leader_rows, axis=-1)[..., None]
        )
    )
    ahead = leader.value[..., None] - own.value - bound - fp64
    if (cap := stores.end.soft_cap) is None:
        return ahead > 0.0
    # c tanh(l / c) falls off to either side, so that its slope is least at the largest
    most = jnp.maximum(leader.magnitude[..., None], own.magnitude)
    ahead = ahead * (1.0 - 1e-9) / jnp.cosh(most / cap) ** 2
    lost = [_behind_the_cap(model, stores, x.magnitude) for x in (leader, own)]
    return ahead > lost[0][..., None] + lost[1]
