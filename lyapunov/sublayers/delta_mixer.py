"""What every mixer whose recurrence is a delta rule does around its gates.

Gated DeltaNet (`gated_delta`) and Kimi Delta Attention (`kimi_delta`) differ in how
they make the gates, and in what gates the norm behind.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import DeltaDynamics, Get, HandedOn, as_stored, convolution
from .convolution import SITES, convolved as convolved_inputs
from .delta_scan import Tokens, chunked_delta, recurrent_delta
from .token_blocks import in_token_blocks


HAND_OVER = (
    HandedOn("window", "window", ("q", "k", "v")),
    HandedOn("state", "state", ("state",)),
)
"""The convolution's last inputs, and S."""

CONVOLVED = (*SITES, "conv_sum", "conv_in_window", "conv")
"""Sites of the convolution, in the order in which the flow comes to them."""


class DeltaState(eqx.Module):
    """What a decode step carries: the last inputs of the conv, and S."""

    window: Any
    """(d_conv - 1, conv channels)."""
    state: Any
    """(heads, value_dim, key_dim)."""

    @staticmethod
    def zeros(conv_weight, heads: int, key_dim: int, value_dim: int) -> "DeltaState":
        """As at the start of a text."""
        channels, taps = conv_weight.shape
        return DeltaState(
            window=jnp.zeros((taps - 1, channels)),
            state=jnp.zeros((heads, value_dim, key_dim)),
        )


def through_blocks(
    at: AbstractArithmetic, flow: Callable, residual, p: Any, start: DeltaState
):
    """Run a mixer's flow over a sequence, a block of tokens at a time.

    **Arguments:**

    - `flow`: `(at, residual, p, start) -> (output, after)`.
    """
    if at.form.calls:
        # of several calls chunks begin with each
        return flow(at, residual, p, start)
    widest = 2 * p.conv_weight.shape[0]
    return in_token_blocks(
        at, flow, residual, p, start, widest=widest, multiple=p.chunk
    )


def convolved(at: AbstractArithmetic, parts: list, p: Any, start: DeltaState):
    """Queries, keys and values of the convolution, and its last inputs.

    **Arguments:**

    - `parts`: what q, k and v are made of, (seq, rows of its projection) each.

    **Returns:** q and k, (seq, key_heads key_dim); v, (seq, heads, value_dim); and the
    window of the token after the last.
    """
    heads, keys = p.sizes[0], p.q_proj.matrix.shape[0]
    mixed, window = convolved_inputs(
        at, start.window, at.join(parts, axis=-1), p.conv_weight, p.conv_bias
    )
    mixed = at.silu(at.store("conv_sum", mixed))
    mixed = at.store("conv", at.store("conv_in_window", mixed))
    v = at.view(headed(heads), mixed[..., 2 * keys :])
    return mixed[..., :keys], mixed[..., keys : 2 * keys], v, window


def units(at: AbstractArithmetic, q, k, heads: int, epsilon: float):
    """Queries and keys of unit length, (seq, heads, key_dim), stored."""
    return tuple(
        at.store(site, at.unit_normalise(at.view(headed(heads), x), epsilon))
        for site, x in (("q_unit", q), ("k_unit", k))
    )


def delta_rule(
    at: AbstractArithmetic,
    q,
    k,
    v,
    rate,
    log_gate,
    state,
    chunk: int,
    *,
    inverted: bool = False,
):
    """What the queries of a sequence read, stored, and the state behind it.

    **Arguments:**

    - `q`, `k`: (seq, key_heads, key_dim), of unit length. `v`: (seq, heads, value_dim).
    - `rate`: (seq, heads). `log_gate`: (seq, heads), or (seq, heads, key_dim).
    """
    at.observe("log_gate", log_gate)
    at.observe("rate", rate)
    at.observe("key", k)
    heads, key_heads = v.shape[1], k.shape[1]
    if heads != key_heads:
        own = lambda a: jnp.repeat(a, heads // key_heads, axis=1)
        q, k = at.view(own, q), at.view(own, k)
    tokens = Tokens(q, k, v, rate, log_gate)
    scale = q.shape[-1] ** -0.5
    if at.form.chunked:
        y, state = chunked_delta(
            at, tokens, state, chunk, scale=scale, inverted=inverted
        )
    else:
        y, state = recurrent_delta(at, tokens, state)
        y = at.multiply(y, at.fixed(scale))
    return at.store("scan_output", y), state


def headed(heads: int):
    """Cut the last axis into heads."""
    return lambda a: a.reshape(*a.shape[:-1], heads, -1)


def gated_out(at: AbstractArithmetic, y, gate, p: Any):
    """What a mixer adds to the stream: y normalised, times its gate, projected.

    **Arguments:**

    - `y`, `gate`: (seq, heads, value_dim).
    """
    hat = at.store("gate_norm_hat", at.rms_normalise(y, p.gate_norm_epsilon))
    normed = at.store("gate_norm", at.multiply(hat, p.gate_norm))
    y = at.multiply(normed, gate)
    y = at.store("gated", at.view(lambda a: a.reshape(a.shape[0], -1), y))
    y = at.store("out_operand", y)
    return at.store("out", at.matmul(y, p.out_proj))


def shared_parameters(get: Get) -> dict[str, Any]:
    """Give the parameters that both kinds have, from stored ones."""
    projections = ("q_proj", "k_proj", "v_proj", "b_proj", "out_proj")
    return {
        **convolution(get),
        **{name: get(name) for name in ("dt_bias", "A_log", "gate_norm")},
        **{name: Weight(get(name)) for name in projections},
    }


def dynamics(
    raw: Mapping[str, np.ndarray], observed: Mapping[str, Any], value_dim: int
) -> DeltaDynamics:
    """Find what the step matrices are made of."""
    seen = {
        name: np.asarray(observed[name], np.float64)
        for name in ("log_gate", "rate", "key")
    }
    used = {"ones": {"gate_norm": raw["gate_norm"]}, "per_head": True}
    stored = as_stored(raw, "A_log", "dt_bias") | used
    return DeltaDynamics(value_dim, **seen, parameters=stored)
