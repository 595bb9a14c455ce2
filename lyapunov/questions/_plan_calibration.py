"""What a sublayer and a head take on this machine, measured on a few tokens."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..implementations._reference import run_layer
from ..models import Model, Sublayer
from ..sublayers.residual import Stream


CALIBRATION_TOKENS = 256
"""Enough that starting a program no longer shows."""


def calibration_size(ids: np.ndarray) -> int:
    return min(CALIBRATION_TOKENS, ids.shape[1])


def sublayer_seconds(
    model: Model, ids: np.ndarray, layer: Sublayer
) -> tuple[float, float]:
    """Seconds of one sublayer on a few tokens, the best of three, and of tracing and
    lowering it, which no cache saves."""
    embedded = model.embed(ids[:1, : calibration_size(ids)])
    incoming = Stream.start(embedded, [layer]).incoming(layer)
    p = model.parameters(layer.layer)
    given = layer.flow, incoming, p, model.start(p)
    began = time.perf_counter()
    lowered = eqx.filter_jit(run_layer.__wrapped__).lower(*given)
    unit = time.perf_counter() - began
    run, taken = lowered.compile(), []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(run(*given)[1])
        taken.append(time.perf_counter() - began)
    return min(taken), unit


def head_seconds(model: Model, tokens: int) -> float:
    """Seconds of the logits of all tokens, from a product of the head's width."""
    config = model.config
    rows = min(config.vocab_size, 1024)
    width = config.d_model
    x, head = jnp.ones((CALIBRATION_TOKENS, width)), jnp.ones((width, rows))
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(x @ head)
        taken.append(time.perf_counter() - began)
    return min(taken) * tokens / CALIBRATION_TOKENS * config.vocab_size / rows
