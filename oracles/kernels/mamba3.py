"""mamba_ssm's Mamba-3 layer in NumPy: fp32 inside, one cast at each stored tensor.

Written from the kernels of mamba_ssm 2.3.2 (`angle_dt.py`, `mamba3_siso_fwd.py`), in
their order; `mamba3_ranks` has higher ranks and steps. The norm and the projections are
those of `kernels.mamba1`. Approximate instructions are off as far as they may be: tanh
is cut to 12 bits, sine and cosine to multiples of 2^-20.5. Steps are methods, so that a
subclass can compute one wrongly.
"""

from typing import NamedTuple

import numpy as np

from oracles.kernels.mamba1 import F, Kernel, cast
from oracles.kernels.mamba2 import Ssd, cut, layer_weights, tree_sums, truncated


__all__ = ["Shape", "Siso", "held", "layer_weights"]

PI, TURN = F(np.pi), F(2 * np.pi)
FP32_HELD = ("dt_bias", "B_bias", "C_bias", "D", "mimo_x", "mimo_z", "mimo_o")


class Shape(NamedTuple):
    """What the weights alone do not tell."""

    groups: int = 1
    chunk: int = 8
    floor: float = 1e-4
    gate_norm: bool = False


class Order(NamedTuple):
    """How sums are made, as in `mamba2`; `cut`: whether a dot with 1 is in TF32."""

    block: int = 64
    adding: str = "once"
    cumsum: str = "serial"
    cut: bool = True


def held(weights: dict, precision: str) -> dict[str, np.ndarray]:
    """Parameters as mamba_ssm holds them."""
    name, _, variant = precision.partition("-")
    narrow = {
        "": lambda key: key not in FP32_HELD,
        "cast": lambda key: True,
        "amp": lambda key: key in ("in_proj.weight", "out_proj.weight"),
    }[variant]
    return {k: cast(x, name) if narrow(k) else x for k, x in weights.items()}


def sigmoid(x):
    with np.errstate(over="ignore"):
        return F(1) / (F(1) + np.exp(-x))


def softplus(x):
    with np.errstate(over="ignore"):
        return np.where(x <= 20, np.log1p(np.exp(x)), x).astype(F)


class Siso(Kernel):
    """One layer of rank 1, chunk by chunk."""

    kind, wide, stores, fused = F, False, True, True
    operands = "bf16"

    def __init__(self, w, precision, shape, order=Order()):  # noqa: B008
        self.precision, _, self.variant = precision.partition("-")
        self.w, self.shape, self.free = w, shape, order
        self.epsilon = 1e-5
        self.heads, self.rank, self.n = w["B_bias"].shape
        self.inner = w["out_proj.weight"].shape[1]
        self.size = self.inner // self.heads
        wide = self.rank * shape.groups * self.n
        rows = len(w["in_proj.weight"])
        ends = [self.inner, self.inner, wide, wide, *[self.heads] * 3]
        self.ends = np.cumsum(ends)
        self.angles = rows - self.ends[-1]

    # ---- formats and sums

    def narrow(self, x):
        """To the format of the kernel's operands."""
        return cast(np.asarray(x, F), self.operands)

    dot, one_dot = Ssd.dot, Ssd.one_dot

    def running(self, x):
        """Sums over a chunk."""
        if self.free.cumsum == "serial":
            return np.cumsum(x, axis=0, dtype=F)
        return tree_sums(x)

    # ---- what a token brings

    def split(self, xz):
        """z, x, B, C, dt, A, lambda, angle."""
        z, x, B, C, *rest = np.split(xz, self.ends, axis=-1)
        heads = lambda a: a.reshape(len(a), self.heads, self.size)
        groups = lambda a: a.reshape(len(a), self.rank, self.shape.groups, self.n)
        return heads(z), heads(x), groups(B), groups(C), *rest

    def normed(self, x, name):
        return x * self.rsqrt(self.mean_square(x)) * self.w[f"{name}.weight"]

    def step_size(self, raw):
        total = raw + self.w["dt_bias"]
        if self.variant != "cast":
            return softplus(total)
        return self.low(softplus(self.low(total)))

    def decay(self, rate, dt):
        return np.minimum(-softplus(rate), -F(self.shape.floor)) * dt

    def tanh(self, x):
        # 12 bits: a relative 2^-11
        return truncated(np.tanh(x), 12).astype(F)

    def angle(self, angle, dt):
        """(seq, heads, angles), chunk by chunk, each less whole turns."""
        steps = (self.tanh(angle) * PI)[:, None] * dt[:, :, None]
        state, out = np.zeros(steps.shape[1:], F), []
        for first in range(0, len(steps), self.shape.chunk):
            part = steps[first : first + self.shape.chunk]
            out.append(self.less_turns(self.running(part) + state))
            state = self.less_turns(state + part.sum(axis=0, dtype=F))
        return np.concatenate(out)

    def stored_angle(self, angle):
        return self.narrow(angle)

    def less_turns(self, x):
        return x - TURN * np.floor(x / TURN)

    def cos_sin(self, angle):
        """(seq, 1, heads, angles) each, off as the instructions may be."""
        step = 2.0**-20.5
        near = lambda x: (np.trunc(x.astype(np.float64) / step) * step).astype(F)
        return near(np.cos(angle))[:, None], near(np.sin(angle))[:, None]

    def pairs(self):
        """Channels that turn together."""
        i = np.arange(self.angles)
        return 2 * i, 2 * i + 1

    def turned(self, x, angle):
        cos, sin = self.cos_sin(angle)
        one, two = self.pairs()
        out = x.copy()
        out[..., one] = x[..., one] * cos - x[..., two] * sin
        out[..., two] = x[..., one] * sin + x[..., two] * cos
        return out

    def shares(self, trap, dt):
        """gamma and what the next token takes, (seq, heads) each."""
        other = (F(1) - sigmoid(trap)) * dt
        return sigmoid(trap) * dt, np.concatenate([other[1:], 0 * other[:1]])

    # ---- the scan

    def of_the_token(self, q, k, gamma, v):
        """(gamma q . k + D) v, before anything turns."""
        products = q * k
        if self.variant == "cast":
            products = self.low(products)
        elif self.free.cut:
            products = cut(products)
        total = self.dot(products, np.ones((self.n, 1), F))[..., 0]
        if self.variant == "cast":
            total = self.low(total)
        return (self.w["D"] + total * gamma[:, None])[..., None] * v

    def handed(self, state):
        return self.narrow(state)

    def since(self, cs, total):
        """From each token to the end of the chunk."""
        return np.exp(total - cs)

    def between(self, cs):
        """(heads, tokens, tokens), from the second to the first."""
        apart = np.minimum(cs.T[:, :, None] - cs.T[:, None, :], 0)
        return np.exp(apart)

    def causal(self, weights, tokens):
        """Earlier tokens alone; a row or column for every rank of a token."""
        token = np.repeat(np.arange(tokens), self.rank)
        return np.where(token[:, None] > token[None, :], weights, F(0))

    def left(self, k, v, since):
        """What the state takes in, faded to the end of the chunk."""
        return k, self.narrow(v * since)

    def chunk(self, state, dA, k, q, v):
        """(state after it, y), k, q (tokens, rank, heads, n), v (…, size)."""
        tokens = len(dA)
        flat = lambda a: a.reshape(-1, *a.shape[2:]).swapaxes(0, 1)
        repeat = lambda a, axis: np.repeat(a, self.rank, axis=axis)
        cs = self.running(dA)
        total = dA.sum(axis=0, dtype=F)
        y = self.dot(flat(q), self.handed(state).swapaxes(1, 2))
        y = y * repeat(np.exp(cs).T, 1)[:, :, None]
        weights = self.dot(flat(q), flat(k).swapaxes(1, 2))
        weights = weights * repeat(repeat(self.between(cs), 1), 2)
        weights = self.narrow(self.causal(weights, tokens))
        y = self.dot(weights, flat(v), y)
        left_k, left_v = self.left(k, v, self.since(cs, total)[:, None, :, None])
        kept = state * np.exp(total)[:, None, None]
        state = self.dot(flat(left_v).swapaxes(1, 2), flat(left_k), kept)
        return state, y.swapaxes(0, 1).reshape(v.shape)

    def scanned(self, s, xz):
        """y of all tokens, rank by rank, before any store; fills in what is stored."""
        _, x, _, _, raw, rate, trap, angle = self.split(xz)
        if self.precision != "bf16":
            x, trap, angle = (self.narrow(a) for a in (x, trap, angle))
            s |= {"x_cast": x, "trapezoid_cast": trap, "angle_cast": angle}
            s |= {f"{a}_cast": self.narrow(s[f"{a}_norm"]) for a in "BC"}
        heads = self.heads // self.shape.groups
        read = {a: s.get(f"{a}_cast", s[f"{a}_norm"]) for a in "BC"}
        k, q = (
            np.repeat(read[a], heads, axis=2) + self.w[f"{a}_bias"].swapaxes(0, 1)
            for a in "BC"
        )
        if self.variant == "cast":
            k, q = self.low(k), self.low(q)
        dt = self.step_size(raw)
        gamma, ahead = self.shares(trap, dt)
        v = x[:, None]
        own = self.of_the_token(q, k, gamma, v)
        angle = self.stored_angle(self.angle(angle, dt))
        k, q = self.turned(k, angle), self.narrow(self.turned(q, angle))
        if self.variant == "cast":
            k = self.low(k)
        k = self.narrow(k * (ahead + gamma)[:, None, :, None])
        s |= {"q_turned": q, "k_weighed": k}
        return self.chunks(self.decay(rate, dt), k, q, v) + own

    def chunks(self, dA, k, q, v):
        state, out = np.zeros((self.heads, self.size, self.n), F), []
        for first in range(0, len(dA), self.shape.chunk):
            part = slice(first, first + self.shape.chunk)
            state, y = self.chunk(state, *(a[part] for a in (dA, k, q, v)))
            out.append(y)
        return np.concatenate(out)

    def gate(self, z):
        with np.errstate(over="ignore"):
            return z * sigmoid(z)

    def gated(self, s, y, z):
        """The gate, and what stores follow."""
        if self.shape.gate_norm:
            s["scan_output"] = y = self.narrow(y)
            y = self.head_norm(y) * self.gate(z)[:, None]
        else:
            if self.precision != "bf16":
                s["z_cast"] = z = self.narrow(z)
            y = y * self.gate(z)[:, None]
        s["gated"] = self.narrow(y).reshape(len(y), -1)
        if self.precision == "fp16":
            s["gated_cast"] = self.low(s["gated"])

    def head_norm(self, y):
        weight = self.w["gate_norm.weight"].reshape(self.heads, self.size)
        return y * self.rsqrt(self.mean_square(y)) * weight

    def run(self, before, hidden) -> dict[str, np.ndarray]:
        """All stored tensors of one sequence."""
        s = {"residual": before + hidden}
        s["norm"] = self.low(self.normed(s["residual"], "norm"))
        s["xz"] = self.low(self.matmul(s["norm"], "in_proj.weight"))
        z, _, B, C, *_ = self.split(s["xz"])
        s["B_norm"] = self.low(self.normed(B, "B_norm"))
        s["C_norm"] = self.low(self.normed(C, "C_norm"))
        self.gated(s, self.scanned(s, s["xz"]), z)
        read = s.get("gated_cast", s["gated"])
        s["out"] = self.low(self.matmul(read, "out_proj.weight"))
        return s
