"""NumPy's own way of computing what an arithmetic has operations for."""

import numpy as np

from .delta_by_numpy import total


CAUSAL = np.tril(np.ones((3, 4)), k=1)


def one_hot_of_largest(x, count):
    """NaN as the largest, as torch has it."""
    order = np.argsort(-x, axis=-1, kind="stable")
    order = np.where(
        np.isnan(x).any(-1, keepdims=True), np.argsort(~np.isnan(x)), order
    )
    return np.eye(x.shape[-1], dtype=x.dtype)[order[..., :count]].sum(-2)


def eager_softmax(x):
    """With an additive mask, as transformers' eager attention."""
    mask = np.where(CAUSAL > 0, 0.0, -np.inf).astype(x.dtype)
    x = x + mask
    powers = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return powers / total(powers, -1)[..., None]


def normalised(x, centred):
    size, one = x.shape[-1], x.dtype.type
    if centred:
        x = x - (total(x, -1) / one(size))[..., None]
    square = total(x * x, -1)[..., None] / one(size)
    return x * (one(1) / np.sqrt(square + one(1e-5)))


def phi(x, tanh):
    if tanh:
        inner = x.dtype.type(0.7978845608028654) * (x + x.dtype.type(0.044715) * x**3)
        return x * (1 + np.tanh(inner)) / 2
    import scipy.special

    return x * ((1 + scipy.special.erf(x / x.dtype.type(2**0.5))) / 2).astype(x.dtype)


def log_weights(top, log_decay, key):
    """Over the exact maximum, whatever the maximum of the operands' dtype is."""
    moved = top + log_decay
    after = np.maximum(moved, key)
    exact = np.maximum(top.astype(np.float64) + log_decay, key)
    scale = np.exp(after - exact)
    kept, new = np.exp(moved - after), np.exp(key - after)
    return np.stack([kept * scale, new * scale, after.astype(np.float64)])


def conv(x, weight, bias):
    seq = x.shape[0] - weight.shape[1] + 1
    out = np.broadcast_to(bias, (seq, x.shape[1])).copy()
    for tap in range(weight.shape[1]):
        out = out + x[tap : tap + seq] * weight[:, tap]
    return out


def stepped(state, dt, drive, B, A):
    return np.exp(dt * A) * state + drive * B[:, None]


def scanned(state, a, b):
    for i in range(len(a)):
        state = a[i] * state + b[i]
    return state
