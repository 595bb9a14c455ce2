"""Every operation of the interface, and NumPy's own way of computing it.

In the operands' dtype, entry by entry and sum by sum.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Bounded, Operation, Weight
from lyapunov.arithmetic._log_weights import (
    LOG_WEIGHTS,
    NORMALISED,
    QUOTIENT,
    UNDER_SCALE,
)
from lyapunov.arithmetic.rules import scans

from .delta_by_numpy import (
    BELOW,
    CHUNK,
    COLUMNS,
    DELTA,
    by_channel,
    delta_chunk,
    delta_chunked,
    delta_step,
    delta_stepped,
    substituted,
    total,
    unread,
)
from .functions_by_numpy import (
    CAUSAL,
    conv,
    eager_softmax,
    log_weights,
    normalised,
    one_hot_of_largest,
    phi,
    scanned,
    stepped,
)


WEIGHT = np.array([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -3.0]])


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, and NumPy's own way of computing it in the operands' dtype."""

    run: Callable[..., Any]
    """(interpreter, Bounded...) -> Bounded."""
    own: Callable[..., np.ndarray]
    operands: tuple[tuple[int, ...], ...] = ((3, 4),)
    domains: tuple[str, ...] = ("any",)
    """What an execution's operands are in: `any`, `>=0`, `<=0`, or `share` of 1."""
    wide: bool = False
    """Whether more entries are lost than NaN spreads to."""


def scale_and_state(at, top, state):
    """Both in one: the maximum in the first column."""
    top, state = at.store_scale("kept", top, state)
    return at.join([at.view(lambda a: a[:, None], top), state], axis=1)


def scan(at, state, a, b):
    body = lambda at, state, given: (at.advance(state, *given), ())
    return at.scan(body, at.initial_state(state), (a, b))[0]


PAIR = {"operands": ((3, 4), (3, 4)), "domains": ("any", "any")}
STATE = (4, 3)
STEP = {
    "operands": (STATE, (3,), (3,), (4,), (1, 3)),
    "domains": ("any", ">=0", "any", "any", "<=0"),
    "wide": True,
}
READ = {
    "operands": (STATE, (4,), (3,)),
    "domains": ("any",) * 3,
}
ADVANCE = {"operands": (STATE,) * 3, "domains": ("any", "share", "any"), "wide": True}


def step(at, h, dt, drive, B, A):
    return scans.finish(at, at.step(at.initial_state(h), dt, drive, B, A))


def step_by_rows(at, h, dt, drive, B, A):
    rows, _ = at.kernel(len(STATE)).rows(B, B)
    return step(at, h, dt, drive, rows, A)


def contract_by_rows(at, h, c, start):
    _, rows = at.kernel(len(STATE)).rows(c, c)
    return at.contract(h, rows, start=start)


def arctan_rule(declared, x):
    """A user's, who forgot that an operand may be no number: results are 4 apart."""
    value = jnp.arctan(x.value)
    error = jnp.where(jnp.isnan(x.error), 4.0, jnp.minimum(x.error, 4.0))
    # NumPy's fp32 function is within 4 ulp
    return Bounded(value, error + 8 * declared.model.unit * (jnp.abs(value) + error))


ARCTAN = Operation(exact=jnp.arctan, bounded=arctan_rule)


CASES = {
    "store": Case(lambda at, x: at.store("kept", x), lambda x: x.astype(np.float16)),
    "may_store": Case(
        lambda at, x: at.may_store("kept", x), lambda x: x.astype(np.float16)
    ),
    "store of an angle": Case(
        lambda at, x: at.store("angle", x, angle=True), lambda x: x.astype(np.float32)
    ),
    "apply": Case(lambda at, x: at.apply(ARCTAN, x), np.arctan),
    "apply LOG_WEIGHTS": Case(
        lambda at, *given: at.apply(LOG_WEIGHTS, *given),
        log_weights,
        ((3, 4),) * 3,
        ("any", "<=0", "any"),
    ),
    "apply UNDER_SCALE": Case(
        lambda at, x, top: at.apply(UNDER_SCALE, x, top),
        lambda x, top: x,
        ((3, 4),) * 2,
        ("any", "any"),
        wide=True,
    ),
    "apply NORMALISED": Case(
        lambda at, *given: at.apply(NORMALISED, *given, 0.5),
        lambda numerator, x, top: (
            numerator / (np.maximum(np.abs(x), np.exp(-top)) + x.dtype.type(0.5))
        ),
        ((3, 4),) * 3,
        ("any",) * 3,
    ),
    "store_under": Case(
        lambda at, x, top: at.store_under("kept", x, top),
        lambda x, top: x.astype(np.float16),
        ((3, 4),) * 2,
        ("any", "any"),
        wide=True,
    ),
    "store_scale": Case(
        scale_and_state,
        lambda top, state: np.concatenate(
            [top.astype(np.float16)[:, None].astype(state.dtype), state], axis=1
        ),
        ((3,), (3, 4)),
        ("any", "any"),
        wide=True,
    ),
    "apply QUOTIENT": Case(
        lambda at, x, y: at.apply(QUOTIENT, x, y),
        np.divide,
        ((3, 4),) * 2,
        ("any", ">=0"),
    ),
    "add": Case(lambda at, x, y: at.add(x, y), np.add, **PAIR),
    "add alone": Case(lambda at, x, y: at.add(x, y, alone=True), np.add, **PAIR),
    "multiply": Case(lambda at, x, y: at.multiply(x, y), np.multiply, **PAIR),
    "multiply alone": Case(
        lambda at, x, y: at.multiply(x, y, alone=True), np.multiply, **PAIR
    ),
    "negate": Case(lambda at, x: at.negate(x), np.negative),
    "exp": Case(lambda at, x: at.exp(x), np.exp),
    "decay": Case(
        lambda at, x, y: at.decay(x, y),
        lambda x, y: np.exp(x * y),
        ((3, 4), (3, 4)),
        (">=0", "<=0"),
    ),
    "softplus": Case(
        lambda at, x: at.softplus(x),
        lambda x: np.where(x > 20, x, np.log1p(np.exp(x))),
    ),
    "silu": Case(lambda at, x: at.silu(x), lambda x: x / (1 + np.exp(-x))),
    "gelu": Case(lambda at, x: at.gelu(x), lambda x: phi(x, False)),
    "gelu tanh": Case(lambda at, x: at.gelu(x, tanh=True), lambda x: phi(x, True)),
    "relu_squared": Case(
        lambda at, x: at.relu_squared(x), lambda x: np.maximum(x, 0) ** 2
    ),
    "sigmoid": Case(lambda at, x: at.sigmoid(x), lambda x: 1 / (1 + np.exp(-x))),
    "square_root": Case(lambda at, x: at.square_root(x), np.sqrt, domains=(">=0",)),
    "tanh": Case(lambda at, x: at.tanh(x), np.tanh),
    "largest": Case(
        lambda at, x: at.largest(x, 2), lambda x: one_hot_of_largest(x, 2), wide=True
    ),
    "shares": Case(
        lambda at, x: at.shares(x),
        lambda x: x / total(x, -1)[..., None],
        domains=(">=0",),
    ),
    "shares with a floor": Case(
        lambda at, x: at.shares(x, 0.5),
        lambda x: x / (total(x, -1)[..., None] + x.dtype.type(0.5)),
        domains=(">=0",),
    ),
    "softmax": Case(lambda at, x: at.softmax(x, CAUSAL), eager_softmax),
    "layer_normalise": Case(
        lambda at, x: at.layer_normalise(x, 1e-5), lambda x: normalised(x, True)
    ),
    "rms_normalise": Case(
        lambda at, x: at.rms_normalise(x, 1e-5), lambda x: normalised(x, False)
    ),
    "matmul": Case(
        lambda at, x: at.matmul(x, Weight(jnp.asarray(WEIGHT))),
        lambda x: total(x[:, None] * WEIGHT.astype(x.dtype), -1),
    ),
    "matmul of known norm": Case(
        lambda at, x: at.matmul(x, Weight(jnp.asarray(WEIGHT), 6.0), jnp.ones(2)),
        lambda x: total(x[:, None] * WEIGHT.astype(x.dtype), -1) + 1,
    ),
    "join": Case(
        lambda at, x, y: at.join([x, y]), lambda x, y: np.concatenate([x, y]), **PAIR
    ),
    "carry": Case(lambda at, x: at.carry(x), lambda x: x),
    "view": Case(lambda at, x: at.view(lambda a: a[:, ::-1], x), lambda x: x[:, ::-1]),
    "in_row_blocks": Case(
        lambda at, x: at.in_row_blocks(
            lambda at, state, x: (state, at.negate(x)), None, x, 2
        )[1],
        np.negative,
    ),
    "clip": Case(lambda at, x: at.clip(x, -1.0, 1.0), lambda x: np.clip(x, -1, 1)),
    "mask": Case(
        lambda at, x: at.mask(x, CAUSAL), lambda x: x * CAUSAL.astype(x.dtype)
    ),
    "reached": Case(
        lambda at, x, y: at.reached(x, y),
        lambda x, y: x + total(x.dtype.type(0) * y, -1),
        ((3, 4), (4, 5)),
        ("any", "any"),
    ),
    "cumsum": Case(lambda at, x: at.cumsum(x), lambda x: np.cumsum(x, 0, x.dtype)),
    "cumsum serial": Case(
        lambda at, x: at.cumsum(x, serial=True), lambda x: np.cumsum(x, 0, x.dtype)
    ),
    "wrap": Case(
        lambda at, x: at.wrap(x),
        lambda x: x - x.dtype.type(2 * np.pi) * np.floor(x / x.dtype.type(2 * np.pi)),
        domains=(">=0",),
    ),
    "fading": Case(lambda at, x: at.fading(x), lambda x: np.exp(np.minimum(x, 0))),
    "einsum": Case(
        lambda at, x, y, start: at.einsum("ij,kj->ik", x, y, start),
        lambda x, y, start: start + total(x[:, None] * y, -1),
        ((3, 4), (2, 4), (3, 2)),
        ("any",) * 3,
    ),
    "fixed": Case(lambda at, x: at.fixed(x.value), lambda x: x),
    "turns": Case(lambda at, x: at.turns(x, 2)[0], np.cos),
    "turns sin": Case(lambda at, x: at.turns(x, 2)[1], np.sin),
    "causal_conv": Case(
        lambda at, x, w, b: at.causal_conv(x, w, b),
        conv,
        ((5, 3), (3, 2), (3,)),
        ("any",) * 3,
    ),
    "advance": Case(
        lambda at, h, a, b: scans.finish(at, at.advance(at.initial_state(h), a, b)),
        lambda h, a, b: a * h + b,
        **ADVANCE,
    ),
    "step": Case(step, stepped, **STEP),
    "step by rows": Case(step_by_rows, stepped, **STEP),
    "contract": Case(
        lambda at, h, c, start: at.contract(h, c, start=start),
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "contract of a state": Case(
        lambda at, h, c, start: at.contract(at.initial_state(h), c, start=start),
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "contract by rows": Case(
        contract_by_rows,
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "initial_state": Case(
        lambda at, h: at.contract(at.initial_state(h), np.ones(4)),
        lambda h: total(h, 0),
        (STATE,),
    ),
    "unit_normalise": Case(
        lambda at, x: at.unit_normalise(x, 1e-6),
        lambda x: x / np.sqrt(total(x * x, -1)[..., None] + x.dtype.type(1e-6)),
    ),
    "solve_unit_lower": Case(
        lambda at, system, x: at.solve_unit_lower(at.mask(system, BELOW), x),
        lambda system, x: substituted(system * BELOW.astype(x.dtype), x),
        ((2, 3, 3), (2, 3, 2)),
        ("any", "any"),
        wide=True,
    ),
    "columns": Case(lambda at, x: at.columns(x), lambda x: x, (COLUMNS,)),
    "store_columns": Case(
        lambda at, x: at.store_columns("kept", x),
        lambda x: x.astype(np.float16),
        (COLUMNS,),
        wide=True,
    ),
    "updated": Case(lambda at, x, y: at.updated(x, y), np.add, **PAIR),
    "delta_read": Case(
        lambda at, state, query: at.delta_read(at.columns(state), query),
        lambda state, query: total(state * query[:, None], -1),
        (COLUMNS, (2, 3)),
        ("any", "any"),
    ),
    "delta_step": Case(delta_step, delta_stepped, **DELTA),
    "delta_step by channel": Case(delta_step, delta_stepped, **by_channel(DELTA)),
    "delta_chunk": Case(
        lambda at, *given: delta_chunk(at, *given)[0],
        lambda *given: delta_chunked(*given)[0],
        **CHUNK,
    ),
    "delta_chunk by channel": Case(
        lambda at, *given: delta_chunk(at, *given)[0],
        lambda *given: delta_chunked(*given)[0],
        **by_channel(CHUNK),
    ),
    "delta_chunk state": Case(
        lambda at, *given: delta_chunk(at, given[0], *given)[1],
        lambda *given: delta_chunked(given[0], *given)[1],
        **unread(CHUNK),
    ),
    "delta_chunk state by channel": Case(
        lambda at, *given: delta_chunk(at, given[0], *given)[1],
        lambda *given: delta_chunked(given[0], *given)[1],
        **unread(by_channel(CHUNK)),
    ),
    "scan": Case(
        scan,
        scanned,
        (STATE, (2, *STATE), (2, *STATE)),
        ("any", "share", "any"),
        wide=True,
    ),
    "initial_state finished": Case(
        lambda at, h: scans.finish(at, at.initial_state(h)),
        lambda h: h,
        (STATE,),
        wide=True,
    ),
}
