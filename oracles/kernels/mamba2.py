"""mamba_ssm's Mamba-2 layer in NumPy: fp32 inside, one cast at each stored tensor.

Written from the Triton kernels of mamba_ssm 2.3.2 (`ssd_chunk_state.py`,
`ssd_state_passing.py`, `ssd_bmm.py`, `ssd_chunk_scan.py`, `layernorm_gated.py`,
`selective_state_update.py`), step by step and in their order; the norm, the conv and
the projections are those of `kernels.mamba1`. Every step is a method, so that a
subclass can compute it wrongly.
"""

from typing import NamedTuple

import numpy as np

from oracles.kernels.mamba1 import F, Kernel, cast
from oracles.kernels.mamba1_steps import CACHES, softplus


STORED = ("residual", "norm", "xz", "conv", "scan_output", "gated", "out")


class Shape(NamedTuple):
    """What the weights alone do not tell."""

    groups: int
    chunk: int
    dt_limit: tuple[float, float] = (0.0, np.inf)
    norm_before_gate: bool = False


class Order(NamedTuple):
    """How sums are made, where a kernel is free to choose.

    `block`: tokens or states that a product takes at a time. `adding`: "once" in fp64,
    "tensor core" in truncated blocks of 16, "serial" in fp32.
    """

    block: int = 64
    adding: str = "once"
    cumsum: str = "serial"
    fused: bool = True
    exp2: bool = False


def held(weights: dict, precision: str) -> dict[str, np.ndarray]:
    """Parameters as mamba_ssm holds them: D in fp32 unless `-cast` casts it too.

    Under autocast all are in fp32, and the projections are cast where they are used.
    """
    name, _, variant = precision.partition("-")
    projections = ("in_proj.weight", "out_proj.weight")
    narrow = {
        "": lambda key: key != "D",
        "cast": lambda key: True,
        "amp": lambda key: key in projections,
    }[variant]
    return {k: cast(x, name) if narrow(k) else x for k, x in weights.items()}


def cut(x):
    """fp32 as tensor cores read it in TF32: the last 13 bits are not there."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def truncated(x, bits):
    """fp64 cut to so many significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.trunc(np.ldexp(mantissa, bits)), exponent - bits)


def tree_sums(x):
    """Running sums along the first axis in fp32, by doubling distances."""
    x, reach = x.copy(), 1
    while reach < len(x):
        x[reach:] = x[reach:] + x[:-reach].copy()
        reach *= 2
    return x


class Ssd(Kernel):
    """One layer, chunk by chunk. Methods take stored tensors, as `Kernel`'s do.

    **Arguments:**

    - `w`: by short names, `conv1d.weight` as (channels, taps).
    - `tf32`: whether an fp32 layer's products cut their operands.
    - `stores`, `wide`: as for `Kernel`.
    """

    def __init__(
        self,
        w,
        precision,
        shape,
        order=Order(),  # noqa: B008
        *,
        epsilon=1e-5,
        stores=True,
        wide=False,
        tf32=True,
    ):
        self.kind = np.float64 if wide else F
        self.w = {name: x.astype(self.kind) for name, x in w.items()}
        self.precision, self.epsilon = precision, epsilon
        self.fused, self.stores, self.wide = order.fused, stores and not wide, wide
        self.shape, self.free, self.tf32 = shape, order, tf32
        self.heads = w["A_log"].size
        self.inner = w["out_proj.weight"].shape[1]
        self.n = (w["conv1d.weight"].shape[0] - self.inner) // (2 * shape.groups)

    # ---- formats, functions, products

    def operand(self, x):
        """As a product of two tensors reads it."""
        if not self.stores:
            return self.settled(x)
        if self.precision != "fp32":
            return self.low(x)
        return cut(x) if self.tf32 else self.settled(x)

    def exp(self, x):
        if self.free.exp2 and not self.wide:
            return np.exp2(x * F(np.log2(np.e)))
        return np.exp(x)

    def dot(self, a, b, start=None):
        """start + a b, one block of the summed axis after another."""
        rows, columns = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), b.shape[-1]
        total = np.zeros((*rows, a.shape[-2], columns), self.kind)
        total = total if start is None else start
        for k in range(0, a.shape[-1], self.free.block):
            part = slice(k, k + self.free.block)
            total = self.one_dot(a[..., part], b[..., part, :], total)
        return total

    def one_dot(self, a, b, total):
        a, b, total = (x.astype(np.float64) for x in (a, b, total))
        if self.wide or self.free.adding == "once":
            return self.settled(total + a @ b)
        if self.free.adding == "serial":
            for k in range(a.shape[-1]):
                total = (total + a[..., :, k, None] * b[..., None, k, :]).astype(F)
            return total.astype(F)
        for k in range(0, a.shape[-1], 16):
            products = a[..., :, k : k + 16, None] * b[..., None, k : k + 16, :]
            terms = np.concatenate([total[..., None, :], products], axis=-2)
            _, exponent = np.frexp(np.max(np.abs(terms), axis=-2, keepdims=True))
            aligned = np.trunc(np.ldexp(terms, 24 - exponent))
            summed = np.ldexp(aligned.sum(axis=-2), exponent[..., 0, :] - 24)
            total = truncated(summed, 24)
        return total.astype(F)

    # ---- stored tensors

    def conv(self, xz):
        x = xz[:, self.inner : -self.heads]
        total = self.conv_sum(x, self.w["conv1d.weight"], self.w["conv1d.bias"])
        return self.out_of(self.silu(total))

    def parts(self, conv):
        """x (seq, heads, size), B and C (seq, heads, n)."""
        wide = self.shape.groups * self.n
        x = conv[:, : self.inner].reshape(len(conv), self.heads, -1)
        cuts = conv[:, self.inner : self.inner + wide], conv[:, self.inner + wide :]
        B, C = (self.of_heads(p.reshape(len(p), -1, self.n)) for p in cuts)
        return x, B, C

    def of_heads(self, by_group):
        return np.repeat(by_group, self.heads // self.shape.groups, axis=1)

    def raw(self, dt):
        return dt + self.w["dt_bias"]

    def softplus(self, x):
        return np.logaddexp(0, x) if self.wide else softplus(x)

    def step_size(self, dt):
        return np.clip(self.softplus(self.raw(dt)), *self.shape.dt_limit).astype(
            self.kind
        )

    def A(self):
        return -np.exp(self.w["A_log"])

    def running(self, dA):
        """Sums of logarithms of decays within a chunk, (tokens, heads)."""
        if self.wide or self.free.cumsum == "serial":
            return np.cumsum(dA, axis=0, dtype=self.kind)
        return tree_sums(dA)

    def faded(self, difference):
        return self.exp(np.minimum(difference, 0))

    def scaled_B(self, B, since, step):
        return B * (since * step)[..., None]

    def handed(self, state):
        """What a chunk reads of the state before it."""
        return self.operand(state)

    def passed(self, state, last, new):
        return self.fma(new, self.exp(last)[:, None, None], state)

    def before(self, read, cs):
        """`read` (heads, tokens, size), what the state before gives."""
        return read * self.exp(cs).T[:, :, None]

    def weights(self, pairs, cs, step):
        """(heads, tokens, tokens), from the second to the first."""
        apart = cs.T[:, :, None] - cs.T[:, None, :]
        return np.tril(pairs * self.faded(apart) * step.T[:, None, :])

    def skip(self):
        """D, (heads, 1, 1) or one a channel."""
        return self.w["D"].reshape(self.heads, 1, -1)

    def chunk(self, state, dt, x, B, C):
        """(state behind it, y): x (tokens, heads, size), B and C (tokens, heads, n)."""
        by_head = lambda a: a.swapaxes(0, 1)
        cs = self.running(dt * self.A())
        since = self.faded(cs[-1] - cs)
        driven = self.operand(self.scaled_B(B, since, dt))
        read_x, read_C = self.operand(by_head(x)), self.operand(by_head(C))
        new = self.dot(read_x.swapaxes(1, 2), by_head(driven))
        read = self.dot(read_C, self.handed(state).swapaxes(1, 2))
        pairs = self.dot(read_C, self.operand(by_head(B)).swapaxes(1, 2))
        weights = self.operand(self.weights(pairs, cs, dt))
        y = self.dot(weights, read_x, self.before(read, cs))
        y = self.fma(y, by_head(x), self.skip())
        return self.passed(state, cs[-1], new), by_head(y)

    def scanned(self, xz, conv):
        """(seq, d_inner), before any store."""
        x, B, C = self.parts(conv)
        step = self.step_size(xz[:, -self.heads :])
        seq, chunk = len(conv), self.shape.chunk
        fill = lambda a: np.concatenate(
            [a, np.zeros((-seq % chunk, *a.shape[1:]), self.kind)]
        )
        step, x, B, C = (fill(a) for a in (step, x, B, C))
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        out = []
        for first in range(0, seq, chunk):
            part = slice(first, first + chunk)
            state, y = self.chunk(state, step[part], x[part], B[part], C[part])
            out.append(y)
        return np.concatenate(out)[:seq].reshape(seq, -1)

    def gate(self, y, z):
        with np.errstate(over="ignore"):
            return y * (z * (1 / (1 + self.exp(-z))))

    def scan_output(self, xz, conv):
        """Stored if a norm follows."""
        y = self.scanned(xz, conv)
        return self.out_of(y) if "gate_norm.weight" in self.w else y

    def gated(self, xz, scan_output):
        z = xz[:, : self.inner]
        if "gate_norm.weight" not in self.w:
            return self.out_of(self.gate(scan_output, z))
        weight = self.w["gate_norm.weight"]
        y = scan_output
        if not self.shape.norm_before_gate:
            y = self.gate(y, z)
        y = self.normed(y) * weight
        if self.shape.norm_before_gate:
            y = self.gate(y, z)
        return self.out_of(y)

    def normed(self, y):
        apart = y.reshape(len(y), self.shape.groups, -1)
        return (apart * self.rsqrt(self.mean_square(apart))).reshape(y.shape)

    def operation(self, site, s, before, hidden):
        """The operation that ends in a site, on the stored tensors in front of it."""
        given = {
            "residual": lambda: (before, hidden),
            "norm": lambda: (s["residual"],),
            "xz": lambda: (s["norm"],),
            "conv": lambda: (s["xz"],),
            "scan_output": lambda: (s["xz"], s["conv"]),
            "gated": lambda: (s["xz"], s["scan_output"]),
            "out": lambda: (s["gated"],),
        }
        return getattr(self, site)(*(self.settled(x) for x in given[site]()))

    def run(self, before, hidden) -> dict[str, np.ndarray]:
        """All stored tensors of one sequence."""
        s = {}
        for site in STORED:
            s[site] = self.operation(site, s, before, hidden)
        return s


class SsdStep(Ssd):
    """The same layer token by token, its state in a cache (`Mamba2.step`)."""

    def __init__(self, *given, cache, **options):
        super().__init__(*given, **options)
        self.cache = CACHES[cache]

    def stored_state(self, state):
        return self.settled(state.astype(self.cache)) if self.stores else state

    def advanced(self, state, step, x, B):
        dB = B * step[:, None]
        decay = self.exp(step * self.A())[:, None, None]
        return state * decay + dB[:, None, :] * x[:, :, None]

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.softplus(self.raw(xz[:, -self.heads :])).astype(self.kind)
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        out = []
        for t in range(len(conv)):
            state = self.advanced(state, step[t], x[t], B[t])
            y = (state * C[t][:, None, :]).sum(axis=-1, dtype=self.kind)
            out.append(y + x[t] * self.skip()[:, 0])
            state = self.stored_state(state)
        return np.stack(out).reshape(len(conv), -1)


def layer_weights(weights: dict, i: int) -> dict[str, np.ndarray]:
    """One layer's arrays under short names; the gated norm's as `gate_norm.weight`."""
    at = f"backbone.layers.{i}."
    out = {}
    for key, value in weights.items():
        if key.startswith(at):
            name = key.removeprefix(at)
            name = name.replace("mixer.norm.", "gate_norm.").removeprefix("mixer.")
            out[name] = value.astype(np.float32)
    if "conv1d.weight" in out:
        out["conv1d.weight"] = out["conv1d.weight"][:, 0]
    return out
