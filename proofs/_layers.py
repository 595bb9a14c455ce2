"""Layers to try statements on: random ones, and the bundled trained model."""

import functools
from typing import NamedTuple

import jax
import numpy as np

import lyapunov


UNIT = 2.0**-53


class LayerInputs(NamedTuple):
    """What a Mamba-1 recurrence is given, fp64."""

    dt: np.ndarray
    """(seq, d_inner), after softplus."""
    u: np.ndarray
    """(seq, d_inner)."""
    B: np.ndarray
    """(seq, d_state)."""
    A: np.ndarray
    """(d_inner, d_state), negative."""


def random_layer(
    seed: int, seq: int = 48, d_inner: int = 6, d_state: int = 3
) -> LayerInputs:
    """Decays from slow to fast: dt over three decades, A from -16 to -1/4."""
    rng = np.random.default_rng(seed)
    return LayerInputs(
        np.exp(rng.uniform(np.log(1e-3), 0.0, (seq, d_inner))),
        rng.normal(size=(seq, d_inner)),
        rng.normal(size=(seq, d_state)),
        -np.exp(rng.uniform(np.log(0.25), np.log(16.0), (d_inner, d_state))),
    )


@functools.cache
def bundled_layers(seq: int = 64) -> tuple[LayerInputs, ...]:
    """All layers of the bundled trained model on its own held-out kind of text."""
    model = lyapunov.load()
    text = b"The state of a system forgets where it began, and keeps what it reads. "
    tokens = np.frombuffer((text * (seq // len(text) + 1))[:seq], np.uint8)
    layers = []
    with jax.enable_x64(True):
        for record in lyapunov.trace(model, tokens.astype(np.int64)):
            if isinstance(record, lyapunov.HeadRecord):
                break
            p = model.parameters(record.layer)
            stream = np.asarray(record.residual + record.hidden)[0]
            layers.append(_inputs(p, stream, np.asarray(record.observed["dt"])[0]))
    return tuple(layers)


def _inputs(p, stream, dt) -> LayerInputs:
    """u and B from the residual stream, in NumPy and apart from the library's flow."""
    d_inner, d_state = p.A_log.shape
    scale = np.sqrt(np.mean(stream**2, axis=-1, keepdims=True) + p.norm.epsilon)
    x = stream / scale * np.asarray(p.norm.weight)
    x = (x @ np.asarray(p.in_proj.matrix).T)[:, :d_inner]
    taps = np.asarray(p.conv_weight).T
    padded = np.concatenate([np.zeros((len(taps) - 1, d_inner)), x])
    c = np.asarray(p.conv_bias) + sum(
        padded[k : k + len(x)] * tap for k, tap in enumerate(taps)
    )
    u = c / (1 + np.exp(-c))
    low = u @ np.asarray(p.x_proj.matrix).T
    rank = p.dt_proj.matrix.shape[1]
    return LayerInputs(
        dt, u, low[:, rank : rank + d_state], -np.exp(np.asarray(p.A_log))
    )


def states(layer: LayerInputs, start: np.ndarray | None = None) -> np.ndarray:
    """h_t, (seq, d_inner, d_state), by a loop over tokens."""
    h = np.zeros(layer.A.shape) if start is None else start
    out = []
    for dt, u, B in zip(layer.dt, layer.u, layer.B, strict=True):
        h = np.exp(dt[:, None] * layer.A) * h + (dt * u)[:, None] * B
        out.append(h)
    return np.array(out)
