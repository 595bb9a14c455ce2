r"""Cells that state-space models are compared with, each a step and its Jacobian.

They are examples, written to be read: one layer, its weights, the token as it comes in.
What is left out (normalisation, read-out, token shift, convolution) does not feed back
into the state within the layer, but for token shift and convolution, whose windows add
exponents of -inf.

Gated cells (LSTM, GRU, sLSTM) feed their output back through a dense matrix, so that
their Jacobians depend on the state and their exponents may be positive. The others are
linear in the state with decays that the token alone decides: diagonal, as in Mamba,
exponents the means of the log decays, never positive.

Queries are not part of them. Where a paper divides by a normaliser that is a sum with
the same decays, the normaliser is one more column of the state: values are given an
entry of 1. Where it carries a running maximum so that exponentials stay in range, that
is left out: it changes the scale in which the state is held, and where the maximum is
bounded not the exponents.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .base import (
    AbstractDiagonalRecurrence,
    AbstractRecurrence,
    AbstractScalarRecurrence,
)


class HiddenAndCell(NamedTuple):
    """What an LSTM carries: the exponents are those of both together."""

    h: Float[Array, " width"]
    c: Float[Array, " width"]


class LSTM(AbstractRecurrence):
    """c' = f c + i g, h' = o tanh(c'), gates of the token and h.

    Rows of the weights, 4 width gates, in PyTorch's order: i, f, g, o.

    ??? cite "Hochreiter and Schmidhuber (1997), Neural Computation 9, 1735-1780; with
    the forget gate of Gers et al. (2000), Neural Computation 12, 2451-2471"
    """

    from_token: Float[Array, "gates d_model"]
    from_hidden: Float[Array, "gates width"]
    bias: Float[Array, " gates"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, width: int) -> "LSTM":
        """At PyTorch's initialisation: uniform up to 1 / sqrt(width)."""
        shapes = (4 * width, d_model), (4 * width, width), (4 * width,)
        return cls(*_uniform(key, shapes, width))

    def start(self) -> HiddenAndCell:
        """Zeros."""
        zeros = jnp.zeros(self.from_hidden.shape[1])
        return HiddenAndCell(zeros, zeros)

    def step(self, state: HiddenAndCell, inputs: Float[Array, " d_model"]):
        """One token."""
        i, f, g, o = self._gates(state, inputs)
        c = f * state.c + i * g
        return HiddenAndCell(o * jnp.tanh(c), c)

    def step_jacobian(self, state: HiddenAndCell, inputs: Float[Array, " d_model"]):
        """[[dh'/dh, dh'/dc], [dc'/dh, diag(f)]]."""
        i, f, g, o = self._gates(state, inputs)
        by_i, by_f, by_g, by_o = jnp.split(self.from_hidden, 4)
        squashed = jnp.tanh(f * state.c + i * g)
        slope = o * (1 - squashed**2)
        c_by_h = (
            _rows(g * i * (1 - i), by_i)
            + _rows(state.c * f * (1 - f), by_f)
            + _rows(i * (1 - g**2), by_g)
        )
        h_by_h = _rows(slope, c_by_h) + _rows(squashed * o * (1 - o), by_o)
        return jnp.block([[h_by_h, jnp.diag(slope * f)], [c_by_h, jnp.diag(f)]])

    def _gates(self, state, inputs):
        before = self.from_token @ inputs + self.from_hidden @ state.h + self.bias
        i, f, g, o = jnp.split(before, 4)
        sigmoid = jax.nn.sigmoid
        return sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)


class GRU(AbstractRecurrence):
    """h' = (1 - z) n + z h, n = tanh(W x + b + r (U h + b')), in PyTorch's variant.

    Rows of the weights, 3 width gates, in PyTorch's order: r, z, n.

    ??? cite "Cho et al. (2014), arXiv 1406.1078"
    """

    from_token: Float[Array, "gates d_model"]
    from_hidden: Float[Array, "gates width"]
    bias: Float[Array, " gates"]
    hidden_bias: Float[Array, " gates"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, width: int) -> "GRU":
        """At PyTorch's initialisation: uniform up to 1 / sqrt(width)."""
        shapes = (3 * width, d_model), (3 * width, width), (3 * width,), (3 * width,)
        return cls(*_uniform(key, shapes, width))

    def start(self) -> Float[Array, " width"]:
        """Zeros."""
        return jnp.zeros(self.from_hidden.shape[1])

    def step(self, state: Float[Array, " width"], inputs: Float[Array, " d_model"]):
        """One token."""
        _, z, n, _ = self._gates(state, inputs)
        return (1 - z) * n + z * state

    def step_jacobian(
        self, state: Float[Array, " width"], inputs: Float[Array, " d_model"]
    ):
        """By way of z, of n and of h itself."""
        r, z, n, fed_back = self._gates(state, inputs)
        by_r, by_z, by_n = jnp.split(self.from_hidden, 3)
        n_by_h = _rows(1 - n**2, _rows(fed_back * r * (1 - r), by_r) + _rows(r, by_n))
        by_gate = _rows((state - n) * z * (1 - z), by_z)
        return by_gate + _rows(1 - z, n_by_h) + jnp.diag(z)

    def _gates(self, state, inputs):
        token = jnp.split(self.from_token @ inputs + self.bias, 3)
        hidden = jnp.split(self.from_hidden @ state + self.hidden_bias, 3)
        r, z = (jax.nn.sigmoid(token[j] + hidden[j]) for j in (0, 1))
        return r, z, jnp.tanh(token[2] + r * hidden[2]), hidden[2]


class CellNormaliserHidden(NamedTuple):
    """What an sLSTM carries: its gates read h, which c and n do not determine."""

    c: Float[Array, " width"]
    n: Float[Array, " width"]
    h: Float[Array, " width"]


class SLSTM(AbstractRecurrence):
    """xLSTM's scalar cell: c' = f c + i z, n' = f n + i, h' = o c' / n', i = exp(.).

    One head; f = sigmoid(.). Rows of the weights, 4 width gates, in order: i, f, z, o.

    ??? cite "Beck et al. (2024), arXiv 2405.04517, section 2.2"
    """

    from_token: Float[Array, "gates d_model"]
    from_hidden: Float[Array, "gates width"]
    bias: Float[Array, " gates"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, width: int) -> "SLSTM":
        """Uniform up to 1 / sqrt(width), forget gates' biases from 3 to 6."""
        shapes = (4 * width, d_model), (4 * width, width), (4 * width,)
        from_token, from_hidden, bias = _uniform(key, shapes, width)
        bias = bias.at[width : 2 * width].set(jnp.linspace(3, 6, width))
        return cls(from_token, from_hidden, bias)

    def start(self) -> CellNormaliserHidden:
        """Zeros; the first token makes n positive."""
        zeros = jnp.zeros(self.from_hidden.shape[1])
        return CellNormaliserHidden(zeros, zeros, zeros)

    def step(self, state: CellNormaliserHidden, inputs: Float[Array, " d_model"]):
        """One token."""
        i, f, z, o = self._gates(state, inputs)
        c, n = f * state.c + i * z, f * state.n + i
        return CellNormaliserHidden(c, n, o * c / n)

    def step_jacobian(
        self, state: CellNormaliserHidden, inputs: Float[Array, " d_model"]
    ):
        """Rows c', n', h' by columns c, n, h."""
        i, f, z, o = self._gates(state, inputs)
        by_i, by_f, by_z, by_o = jnp.split(self.from_hidden, 4)
        c, n = f * state.c + i * z, f * state.n + i
        nothing = jnp.zeros_like(by_i)
        rows_c = jnp.concatenate(
            [
                jnp.diag(f),
                nothing,
                _rows(state.c * f * (1 - f), by_f)
                + _rows(i * z, by_i)
                + _rows(i * (1 - z**2), by_z),
            ],
            axis=1,
        )
        rows_n = jnp.concatenate(
            [nothing, jnp.diag(f), _rows(state.n * f * (1 - f), by_f) + _rows(i, by_i)],
            axis=1,
        )
        gate = jnp.concatenate([nothing, nothing, _rows(o * (1 - o), by_o)], axis=1)
        rows_h = _rows(o / n, rows_c - _rows(c / n, rows_n)) + _rows(c / n, gate)
        return jnp.concatenate([rows_c, rows_n, rows_h])

    def _gates(self, state, inputs):
        before = self.from_token @ inputs + self.from_hidden @ state.h + self.bias
        i, f, z, o = jnp.split(before, 4)
        return jnp.exp(i), jax.nn.sigmoid(f), jnp.tanh(z), jax.nn.sigmoid(o)


class LinearAttention(AbstractScalarRecurrence):
    """S' = S + phi(k) (v, 1)^T, phi = elu + 1: a sum that forgets nothing.

    The Jacobian is the identity, and all exponents are 0: a perturbation of the state
    neither fades nor grows, and rounding errors add up over all tokens.

    ??? cite "Katharopoulos et al. (2020), arXiv 2006.16236, section 3.4"
    """

    key: Float[Array, "heads d_key d_model"]
    value: Float[Array, "heads d_value d_model"]

    @classmethod
    def drawn(
        cls, key: PRNGKeyArray, d_model: int, heads: int, d_head: int
    ) -> "LinearAttention":
        """Uniform up to 1 / sqrt(d_model)."""
        return cls(*_uniform(key, ((heads, d_head, d_model),) * 2, d_model))

    def start(self) -> Float[Array, "heads d_key d_value_and_1"]:
        """Zeros."""
        heads, d_value, _ = self.value.shape
        return jnp.zeros((heads, self.key.shape[1], d_value + 1))

    def step(self, state, inputs: Float[Array, " d_model"]):
        """One token; the last column is the normaliser."""
        k = jax.nn.elu(self.key @ inputs) + 1
        return state + k[:, :, None] * _with_one(self.value @ inputs)[:, None, :]

    def log_decay(self, inputs: Float[Array, " d_model"]):
        """0."""
        return jnp.zeros_like(self.start())

    def head_log_decay(self, inputs: Float[Array, " d_model"]):
        """0."""
        return jnp.zeros(len(self.key))


class MLSTM(AbstractScalarRecurrence):
    """xLSTM's matrix cell: C' = f C + i (v, 1) k^T, one scalar decay f a head.

    f = sigmoid(.), i = exp(.); keys are divided by sqrt(d_key). The last row is the
    normaliser.

    ??? cite "Beck et al. (2024), arXiv 2405.04517, section 2.3"
    """

    key: Float[Array, "heads d_key d_model"]
    value: Float[Array, "heads d_value d_model"]
    gates: Float[Array, "2 heads d_model"]
    """Of i and f."""
    bias: Float[Array, "2 heads"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, heads: int, d_head: int) -> "MLSTM":
        """Uniform up to 1 / sqrt(d_model), forget gates' biases from 3 to 6."""
        shapes = (heads, d_head, d_model), (heads, d_head, d_model), (2, heads, d_model)
        k, v, gates = _uniform(key, shapes, d_model)
        bias = jnp.stack([jnp.zeros(heads), jnp.linspace(3, 6, heads)])
        return cls(k, v, gates, bias)

    def start(self) -> Float[Array, "heads d_value_and_1 d_key"]:
        """Zeros."""
        heads, d_value, _ = self.value.shape
        return jnp.zeros((heads, d_value + 1, self.key.shape[1]))

    def step(self, state, inputs: Float[Array, " d_model"]):
        """One token."""
        i = jnp.exp(self.gates[0] @ inputs + self.bias[0])[:, None, None]
        k = self.key @ inputs / math.sqrt(self.key.shape[1])
        drive = i * _with_one(self.value @ inputs)[:, :, None] * k[:, None, :]
        return jnp.exp(self.log_decay(inputs)) * state + drive

    def log_decay(self, inputs: Float[Array, " d_model"]):
        """log f, the same for all coordinates of a head."""
        log_f = self.head_log_decay(inputs)
        return jnp.broadcast_to(log_f[:, None, None], self.start().shape)

    def head_log_decay(self, inputs: Float[Array, " d_model"]):
        """log f, one a head."""
        return jax.nn.log_sigmoid(self.gates[1] @ inputs + self.bias[1])


class RWKV4(AbstractDiagonalRecurrence):
    """a' = e^-w a + e^k v, b' = e^-w b + e^k: one constant decay a channel.

    The output is (a + e^{u + k} v) / (b + e^{u + k}). Exponents are -w, each twice,
    whatever the tokens.

    ??? cite "Peng et al. (2023), arXiv 2305.13048, the WKV operator"
    """

    key: Float[Array, "width d_model"]
    value: Float[Array, "width d_model"]
    log_w: Float[Array, " width"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, width: int) -> "RWKV4":
        """Uniform up to 1 / sqrt(d_model), log w from -5 to 3 as in a first layer."""
        k, v = _uniform(key, ((width, d_model),) * 2, d_model)
        return cls(k, v, -5 + 8 * jnp.linspace(0, 1, width) ** 0.7)

    def start(self) -> Float[Array, "2 width"]:
        """Zeros."""
        return jnp.zeros((2, self.log_w.shape[0]))

    def step(self, state, inputs: Float[Array, " d_model"]):
        """One token."""
        k = jnp.exp(self.key @ inputs)
        drive = jnp.stack([k * (self.value @ inputs), k])
        return jnp.exp(self.log_decay(inputs)) * state + drive

    def log_decay(self, inputs: Float[Array, " d_model"]):
        """-w."""
        return jnp.broadcast_to(-jnp.exp(self.log_w), self.start().shape)


class RWKV6(AbstractDiagonalRecurrence):
    """S' = diag(w) S + k v^T, w = exp(-exp(d + D x)): decays that the token decides.

    As `D` a full matrix stands for the low-rank network of the paper.

    ??? cite "Peng et al. (2024), arXiv 2404.05892, time mixing of Finch"
    """

    key: Float[Array, "heads d_key d_model"]
    value: Float[Array, "heads d_value d_model"]
    decay: Float[Array, "heads d_key d_model"]
    decay_bias: Float[Array, "heads d_key"]

    @classmethod
    def drawn(cls, key: PRNGKeyArray, d_model: int, heads: int, d_head: int) -> "RWKV6":
        """Uniform up to 1 / sqrt(d_model), d from -6 to -1."""
        k, v, decay = _uniform(key, ((heads, d_head, d_model),) * 3, d_model)
        bias = jnp.linspace(-6, -1, heads * d_head).reshape(heads, d_head)
        return cls(k, v, decay, bias)

    def start(self) -> Float[Array, "heads d_key d_value"]:
        """Zeros."""
        return jnp.zeros((*self.key.shape[:2], self.value.shape[1]))

    def step(self, state, inputs: Float[Array, " d_model"]):
        """One token."""
        k, v = self.key @ inputs, self.value @ inputs
        drive = k[:, :, None] * v[:, None, :]
        return jnp.exp(self.log_decay(inputs)) * state + drive

    def log_decay(self, inputs: Float[Array, " d_model"]):
        """-exp(d + D x), the same for all values of a key."""
        log_w = -jnp.exp(self.decay_bias + self.decay @ inputs)
        return jnp.broadcast_to(log_w[:, :, None], self.start().shape)


def _rows(factors, matrix):
    """diag(factors) matrix."""
    return factors[:, None] * matrix


def _with_one(values):
    """Values of each head, and a 1."""
    return jnp.concatenate([values, jnp.ones((len(values), 1))], axis=1)


def _uniform(key, shapes, fan: int):
    """Arrays drawn uniformly up to 1 / sqrt(fan), in fp64."""
    limit = 1 / math.sqrt(fan)
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.uniform(k, shape, jnp.float64, -limit, limit)
        for k, shape in zip(keys, shapes, strict=True)
    ]
