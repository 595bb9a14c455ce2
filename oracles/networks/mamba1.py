"""Mamba-1 in NumPy, fp64, one token and one loop at a time.

Written from Gu and Dao 2023 (Algorithm 2) and `selective_scan_ref`; shares nothing
with the library. Weights carry transformers' names.
"""

from typing import NamedTuple

import numpy as np


class Sizes(NamedTuple):
    """Of a checkpoint."""

    vocab: int = 40
    d_model: int = 12
    expand: int = 2
    d_state: int = 3
    d_conv: int = 4
    dt_rank: int = 2
    layers: int = 2
    epsilon: float = 1e-5
    conv_bias: bool = True
    proj_bias: bool = False
    tied: bool = True

    @property
    def d_inner(self):
        return self.expand * self.d_model


def random_weights(rng, sizes: Sizes, gain: float = 1.0) -> dict[str, np.ndarray]:
    """Weights away from any initial values: A_log, dt, D, norms and biases too."""
    d, inner, n, r = sizes.d_model, sizes.d_inner, sizes.d_state, sizes.dt_rank

    def normal(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    weights = {
        "backbone.embeddings.weight": normal(sizes.vocab, d),
        "backbone.norm_f.weight": 1 + normal(d, scale=0.3),
    }
    if not sizes.tied:
        weights["lm_head.weight"] = normal(sizes.vocab, d, scale=d**-0.5)
    for i in range(sizes.layers):
        at = f"backbone.layers.{i}."
        weights |= {
            at + "norm.weight": 1 + normal(d, scale=0.3),
            at + "mixer.in_proj.weight": normal(2 * inner, d, scale=gain * d**-0.5),
            at + "mixer.conv1d.weight": normal(inner, 1, sizes.d_conv, scale=0.6),
            at + "mixer.x_proj.weight": normal(
                r + 2 * n, inner, scale=gain * inner**-0.5
            ),
            at + "mixer.dt_proj.weight": normal(inner, r, scale=r**-0.5),
            at + "mixer.dt_proj.bias": normal(inner) - 3,
            at + "mixer.A_log": normal(inner, n),
            at + "mixer.D": normal(inner),
            at + "mixer.out_proj.weight": normal(d, inner, scale=inner**-0.5),
        }
        if sizes.conv_bias:
            weights[at + "mixer.conv1d.bias"] = normal(inner, scale=0.3)
        if sizes.proj_bias:
            weights[at + "mixer.in_proj.bias"] = normal(2 * inner, scale=0.3)
            weights[at + "mixer.out_proj.bias"] = normal(d, scale=0.3)
    return weights


class NumpyMamba:
    """The network. `nudge(x)` is called on every intermediate tensor."""

    def __init__(self, weights, sizes: Sizes, nudge=lambda x: x):
        self.w = {k: v.astype(np.float64) for k, v in weights.items()}
        self.sizes = sizes
        self.nudge = nudge

    def norm(self, x, weight):
        out = []
        for row in x:
            mean = sum(v * v for v in row) / len(row)
            out.append(row / np.sqrt(mean + self.sizes.epsilon) * weight)
        return self.nudge(np.array(out))

    def mixer(self, x, i):
        s, nudge = self.sizes, self.nudge
        w = {
            name: self.w.get(f"backbone.layers.{i}.mixer.{name}", 0.0)
            for name in (
                "in_proj.weight",
                "in_proj.bias",
                "conv1d.weight",
                "conv1d.bias",
                "x_proj.weight",
                "dt_proj.weight",
                "dt_proj.bias",
                "A_log",
                "D",
                "out_proj.weight",
                "out_proj.bias",
            )
        }
        A = -np.exp(w["A_log"])
        conv_bias = np.broadcast_to(w["conv1d.bias"], s.d_inner)
        window = [np.zeros(s.d_inner) for _ in range(s.d_conv)]
        h = np.zeros((s.d_inner, s.d_state))
        outputs, steps, states = [], [], []
        for token in x:
            xz = nudge(w["in_proj.weight"] @ token + w["in_proj.bias"])
            x_part, z = xz[: s.d_inner], xz[s.d_inner :]
            window = [*window[1:], x_part]
            u = conv_bias.copy()
            for k in range(s.d_conv):
                u = u + w["conv1d.weight"][:, 0, k] * window[k]
            u = nudge(u / (1 + np.exp(-u)))
            low = nudge(w["x_proj.weight"] @ u)
            B = low[s.dt_rank : s.dt_rank + s.d_state]
            C = low[s.dt_rank + s.d_state :]
            raw = nudge(w["dt_proj.weight"] @ low[: s.dt_rank] + w["dt_proj.bias"])
            dt = nudge(np.where(raw > 30, raw, np.log1p(np.exp(np.minimum(raw, 30)))))
            y = np.zeros(s.d_inner)
            for n in range(s.d_state):
                h[:, n] = np.exp(dt * A[:, n]) * h[:, n] + dt * u * B[n]
                h[:, n] = nudge(h[:, n])
                y = y + C[n] * h[:, n]
            y = nudge((y + w["D"] * u) * (z / (1 + np.exp(-z))))
            outputs.append(nudge(w["out_proj.weight"] @ y + w["out_proj.bias"]))
            steps.append(dt)
            states.append(h.copy())
        self.steps.append(np.array(steps))
        self.states.append(np.array(states))
        return np.array(outputs)

    def logits(self, tokens):
        """(seq, vocab). Leaves dt and states of every layer in `steps`, `states`."""
        self.steps, self.states = [], []
        embedding = self.w["backbone.embeddings.weight"]
        stream = embedding[np.asarray(tokens)]
        for i in range(self.sizes.layers):
            normed = self.norm(stream, self.w[f"backbone.layers.{i}.norm.weight"])
            stream = self.nudge(stream + self.mixer(normed, i))
        normed = self.norm(stream, self.w["backbone.norm_f.weight"])
        head = self.w.get("lm_head.weight", embedding)
        return np.array([head @ row for row in normed])

    def exponents(self, tokens):
        """Mean log decay of each layer, (d_inner, d_state), by plain sums."""
        self.logits(tokens)
        means = []
        for i, dt in enumerate(self.steps):
            A = -np.exp(self.w[f"backbone.layers.{i}.mixer.A_log"])
            means.append(dt.mean(axis=0)[:, None] * A)
        return means


def condition(weights, sizes, tokens, draws: int = 4) -> float:
    """How far logits move per relative error of every intermediate, by trying.

    Each element of each intermediate is moved by +-2^-30 of itself; the largest of a
    few draws, twice, stands for any errors of that size.
    """
    plain = NumpyMamba(weights, sizes).logits(tokens)
    worst = 0.0
    for seed in range(draws):
        rng = np.random.default_rng(seed)

        def nudge(x, rng=rng):
            return x * (1 + 2.0**-30 * rng.choice([-1, 1], x.shape))

        moved = NumpyMamba(weights, sizes, nudge).logits(tokens)
        worst = max(worst, np.abs(moved - plain).max() * 2.0**30)
    return 2 * worst


def operations(sizes: Sizes, seq: int) -> int:
    """Most roundings between two nudges: the longest sum, or a scan's whole length."""
    return 8 + max(sizes.d_inner, sizes.d_model, sizes.d_state + 4) + min(seq, 64)
