r"""How far a perturbation of a sublayer's state or input can move its output.

The flow itself is interpreted with errors and no rounding, so the constants are the
network's own on these tokens: what the norm, the projections, softplus, the decays
and the gate let through. Three kinds are told apart, since an exponent at or below 0
speaks of the first alone: the initial state (a one-off), one token's input, and every
token's input (persistent).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._errors import UsageError
from ..arithmetic import Bounded, BoundedArithmetic, Exact, RoundingModel
from ..arithmetic._programs import program
from ..results._check import UpperBound
from ..sublayers.mamba1 import Mamba1State
from .local import with_operator_norms


KINDS = ("initial_state", "one_input", "all_inputs")
# The direction of largest effect: iterations of a power method on J^T J.
POWER_ITERATIONS = 4


class SublayerPerturbation(NamedTuple):
    """A bound beside what random and searched perturbations of that size did."""

    bound: UpperBound
    bound_by_token: Float[np.ndarray, " seq"]
    """L2 of the output's deviation at each token, at most."""
    measured_by_token: Float[np.ndarray, " seq"]
    """The largest deviation at each token over all directions tried."""
    measured: float
    """The largest deviation over the sequence (L2) of one direction."""


def sublayer_perturbation(
    model,
    layer: int,
    residual: Float[np.ndarray, "seq d_model"],
    *,
    kind: str,
    size: float,
    token: int = 0,
    directions: int = 4,
    seed: int = 0,
) -> SublayerPerturbation:
    """Bound and measure one kind of perturbation of one sublayer.

    **Arguments:**

    - `model`: what `lyapunov.load` returns. `layer`: which sublayer.
    - `residual`: the stream that enters it, from a trace.
    - `kind`: `initial_state` (every state moved by at most `size`), `one_input` (the
      stream at `token` moved by at most `size` in L2) or `all_inputs` (at every
      token).
    - `directions`: random directions to try, besides the searched one.
    """
    if kind not in KINDS:
        raise UsageError(f"no perturbation {kind!r}", hint=f"one of {', '.join(KINDS)}")
    seq, d_model = residual.shape
    if not 0 <= token < seq:
        raise UsageError(f"no token {token} in a sequence of {seq}")
    with jax.enable_x64(True):
        parameters = with_operator_norms(model.parameters(layer))
        start = model.start(parameters)
        flow = model.sublayers[layer].flow
        stream = jnp.asarray(residual, jnp.float64)
        # traced, so that another size is not compiled again
        amount = jnp.asarray(size, jnp.float64)
        # inputs that move: one program for one and for all; None: the state does
        where, shape = None, start.state.shape
        if kind != "initial_state":
            shape, one = (seq, d_model), kind == "one_input"
            where = jnp.zeros(seq).at[token].set(1.0) if one else jnp.ones(seq)
        by_token = np.asarray(_bound(flow, amount, where, stream, parameters))

        def deviation(direction):
            return _deviation(flow, amount, where, direction, stream, parameters, start)

        keys = jax.random.split(jax.random.key(seed), directions + 1)
        measured = [
            np.asarray(deviation(jax.random.normal(key, shape))) for key in keys[1:]
        ]
        found = _search(
            flow,
            where,
            jax.random.normal(keys[0], shape),
            stream,
            parameters,
            start,
        )
        measured.append(np.asarray(deviation(found)))
    return SublayerPerturbation(
        bound=UpperBound(
            value=float(np.linalg.norm(by_token)),
            tier="T1, perturbation",
            holds_for=f"{kind} moved by at most {size:g}, exact arithmetic",
        ),
        bound_by_token=by_token,
        measured_by_token=np.max(measured, axis=0),
        measured=float(max(np.linalg.norm(m) for m in measured)),
    )


@program
def _bound(flow, size, where, residual, parameters):
    at = BoundedArithmetic({}, RoundingModel.none())
    d_inner, d_state = parameters.A_log.shape
    taps = parameters.conv_weight.shape[1]
    state = jnp.zeros((d_state, d_inner))
    if where is None:
        state = Bounded(state, jnp.full_like(state, size))
    else:
        # at most `size` in L2, so at most `size` in every channel
        radius = size * where
        error = jnp.broadcast_to(radius[:, None], residual.shape)
        residual = Bounded(residual, error, radius)
    start = Mamba1State(window=jnp.zeros((taps - 1, d_inner)), state=state)
    return flow(at, residual, parameters, start)[0].norm


def _moved(flow, where, amount, direction, residual, parameters, start):
    if where is None:
        moved = start.state + amount * direction
        start = Mamba1State(window=start.window, state=moved)
    else:
        residual = residual + amount * (direction * where[:, None])
    return flow(Exact(), residual, parameters, start)[0]


def _unit(where, direction):
    """Scale to the ball's boundary: max norm for states, L2 at each token else."""
    if where is None:
        return jnp.sign(direction)
    length = jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return direction / jnp.where(length > 0, length, 1.0)


@program
def _deviation(flow, size, where, direction, residual, parameters, start):
    run = lambda amount: _moved(
        flow, where, amount, _unit(where, direction), residual, parameters, start
    )
    return jnp.linalg.norm(run(size) - run(0.0), axis=-1)


@program
def _search(flow, where, direction, residual, parameters, start):
    def output(direction):
        return _moved(flow, where, 1.0, direction, residual, parameters, start)

    _, pull = jax.vjp(output, jnp.zeros_like(direction))

    def improve(_, direction):
        _, push = jax.jvp(
            output, (jnp.zeros_like(direction),), (_unit(where, direction),)
        )
        return pull(push)[0]

    return jax.lax.fori_loop(0, POWER_ITERATIONS, improve, direction)
