"""mamba_ssm's Mamba-1 layer in NumPy: fp32 inside, one cast at each stored tensor.

Written from `selective_scan_ref`, causal-conv1d's and the norm's sources, with the
kernels' order where it matters. Every operation is a method, so that a subclass can
compute it another right way (`test_right_variants`) or a wrong one (`oracles.mutants`).
Casts are ml_dtypes' and NumPy's own.
"""

import ml_dtypes
import numpy as np

from oracles import scan_orders


KINDS = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
STORED = ("residual", "norm", "xz", "conv", "x_proj", "dt", "gated", "out")
F = np.float32


def cast(x, precision: str) -> np.ndarray:
    """Round an fp32 array to the format; back to fp32."""
    assert x.dtype == np.float32
    with np.errstate(over="ignore"):
        return x.astype(KINDS[precision]).astype(np.float32)


def held(weights: dict, precision: str, *, everything=False) -> dict[str, np.ndarray]:
    """Parameters as mamba_ssm holds them: A_log and D in fp32 unless cast too."""
    return {
        name: x if name in ("A_log", "D") and not everything else cast(x, precision)
        for name, x in weights.items()
    }


def layer_weights(weights: dict, i: int) -> dict[str, np.ndarray]:
    """One layer's arrays, fp32, under short names; the conv as (channels, taps)."""
    at = f"backbone.layers.{i}."
    out = {
        key.removeprefix(at).removeprefix("mixer."): value.astype(np.float32)
        for key, value in weights.items()
        if key.startswith(at)
    }
    out["conv1d.weight"] = out["conv1d.weight"][:, 0]
    return out


def silu(x):
    with np.errstate(over="ignore"):
        return x / (F(1) + np.exp(-x))


def softplus(x):
    with np.errstate(over="ignore"):
        return np.where(x <= 20, np.log1p(np.exp(x)), x)


def matmul(x, W):
    """Products in fp64, one rounding: within the bound of any accumulator."""
    return (x.astype(np.float64) @ W.astype(np.float64).T).astype(np.float32)


class Kernel:
    """One layer. Methods take stored tensors (fp32 arrays) and give the next one.

    **Arguments:**

    - `stores`: False leaves out the rounding of the declared stores.
    - `wide`: in fp64 and without stores, which is as good as exact beside fp32.
    """

    def __init__(
        self,
        w,
        precision,
        epsilon=1e-5,
        *,
        order="sequential",
        fused=True,
        stores=True,
        wide=False,
    ):
        self.kind = np.float64 if wide else F
        self.w = {name: x.astype(self.kind) for name, x in w.items()}
        self.precision, self.epsilon = precision, epsilon
        self.order, self.fused = order, fused
        self.stores, self.wide = stores and not wide, wide
        self.inner, self.n = w["A_log"].shape
        self.rank = w["dt_proj.weight"].shape[1]

    # ---- formats

    def settled(self, x):
        """In the format of everything between two stores."""
        return np.asarray(x).astype(self.kind)

    def low(self, x):
        """Rounded to the precision's format, whether stores are on or not."""
        return cast(np.asarray(x).astype(F), self.precision).astype(self.kind)

    def out_of(self, x):
        """A declared store."""
        return self.low(x) if self.stores else self.settled(x)

    # ---- elementary functions and sums

    def exp(self, x):
        return np.exp(x)

    def softplus(self, x):
        with np.errstate(over="ignore"):
            return np.where(x <= 20, np.log1p(np.exp(x)), x)

    def silu(self, x):
        with np.errstate(over="ignore"):
            return x / (F(1) + np.exp(-x))

    def rsqrt(self, mean_square):
        """1 / sqrt(mean square + epsilon), given in fp64."""
        return self.settled(1 / np.sqrt(mean_square + self.epsilon))

    def matmul(self, x, name):
        """x W^T for the named weight, before any store."""
        return self.settled(x.astype(np.float64) @ self.w[name].T.astype(np.float64))

    def mean_square(self, x):
        return np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)

    def fma(self, total, x, y):
        """total + x y, with one rounding or two."""
        product = x.astype(np.float64) * y
        if not self.fused:
            product = self.settled(product)
        return self.settled(total + product)

    # ---- stored tensors

    def residual(self, before, hidden):
        return before + hidden

    def norm(self, residual):
        scale = self.rsqrt(self.mean_square(residual))
        return self.out_of(residual * scale * self.w["norm.weight"])

    def xz(self, norm):
        return self.out_of(self.matmul(norm, "in_proj.weight"))

    def window(self, x, taps):
        """What the conv sees before the first token."""
        return np.zeros((taps - 1, x.shape[1]), self.kind)

    def conv_sum(self, x, weight, bias):
        taps = weight.shape[1]
        padded = np.concatenate([self.window(x, taps), x])
        total = np.broadcast_to(bias, x.shape).astype(self.kind)
        for k in range(taps):
            total = self.fma(total, padded[k : k + len(x)], weight[:, k])
        return total

    def conv(self, xz):
        x = xz[:, : self.inner]
        total = self.conv_sum(x, self.w["conv1d.weight"], self.w["conv1d.bias"])
        return self.out_of(self.silu(total))

    def x_proj(self, conv):
        return self.out_of(self.matmul(conv, "x_proj.weight"))

    def dt(self, x_proj):
        return self.out_of(self.matmul(x_proj[:, : self.rank], "dt_proj.weight"))

    # ---- from dt, B, C and z to the gated tensor

    def step_size(self, dt):
        return self.softplus(dt + self.w["dt_proj.bias"])

    def A(self):
        return -np.exp(self.w["A_log"])

    def decay(self, step):
        return self.exp(step[:, :, None] * self.A())

    def drive(self, step, conv, B):
        return (step * conv)[:, :, None] * B[:, None, :]

    def scan(self, a, b):
        """All states, (seq, d_inner, d_state)."""
        kind = scan_orders.FP32["fused" if self.fused else "unfused"]
        combine = scan_orders.exactly if self.wide else kind
        wide = a.astype(np.float64), b.astype(np.float64)
        return self.settled(getattr(scan_orders, self.order)(*wide, combine))

    def skip(self, conv):
        return conv * self.w["D"]

    def read_out(self, h, C, skip):
        for n in range(self.n):
            skip = self.fma(skip, h[:, :, n], C[:, n, None])
        return skip

    def gate(self, y, z):
        return y * self.silu(z)

    def gated(self, xz, conv, x_proj, dt):
        B = x_proj[:, self.rank : self.rank + self.n]
        C = x_proj[:, self.rank + self.n :]
        step = self.step_size(dt)
        h = self.scan(self.decay(step), self.drive(step, conv, B))
        y = self.read_out(h, C, self.skip(conv))
        return self.out_of(self.gate(y, xz[:, self.inner :]))

    def out(self, gated):
        return self.out_of(self.matmul(gated, "out_proj.weight"))

    def run(self, before, hidden) -> dict[str, np.ndarray]:
        """All stored tensors of one sequence."""
        s = {}
        for site in STORED:
            s[site] = self.operation(site, s, before, hidden)
        return s

    def again(self, s, before, hidden) -> dict[str, np.ndarray]:
        """Each stored tensor from the given ones before it."""
        return {site: self.operation(site, s, before, hidden) for site in STORED}

    def operation(self, site, s, before, hidden):
        """The operation that ends in a site, on the stored tensors in front of it."""
        given = {
            "residual": lambda: (before, hidden),
            "norm": lambda: (s["residual"],),
            "xz": lambda: (s["norm"],),
            "conv": lambda: (s["xz"],),
            "x_proj": lambda: (s["conv"],),
            "dt": lambda: (s["x_proj"],),
            "gated": lambda: (s["xz"], s["conv"], s["x_proj"], s["dt"]),
            "out": lambda: (s["gated"],),
        }
        return getattr(self, site)(*(self.settled(x) for x in given[site]()))
