"""mamba_ssm's Mamba-1 layer in NumPy: fp32 inside, one cast at each stored tensor.

Written from `selective_scan_ref`, causal-conv1d's and the norm's sources, with the
kernels' order where it matters. `mutation` breaks it in one named way. Casts are
ml_dtypes' and NumPy's own.
"""

import ml_dtypes
import numpy as np

from ..bounds import scan_orders


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
    """One layer. Methods take stored tensors (fp32 arrays) and give the next one."""

    def __init__(
        self, w, precision, epsilon=1e-5, mutation=None, order="sequential", fused=True
    ):
        self.w, self.precision, self.mutation = w, precision, mutation
        self.epsilon = 1e-2 if mutation == "wrong epsilon" else epsilon
        self.order, self.fused = order, fused
        self.inner, self.n = w["A_log"].shape
        self.rank = w["dt_proj.weight"].shape[1]

    def out_of(self, x):
        return cast(x.astype(np.float32), self.precision)

    def residual(self, before, hidden):
        if self.mutation == "residual in the low format":
            return self.out_of(before + hidden)
        return before + hidden

    def norm(self, residual):
        mean = np.mean(residual.astype(np.float64) ** 2, axis=-1, keepdims=True)
        scale = (1 / np.sqrt(mean + self.epsilon)).astype(np.float32)
        weight = self.w["norm.weight"]
        if self.mutation == "norm weight skipped":
            weight = np.ones_like(weight)
        if self.mutation == "norm skipped":
            scale = np.ones_like(scale)
        return self.out_of(residual * scale * weight)

    def xz(self, norm):
        return self.out_of(matmul(norm, self.w["in_proj.weight"]))

    def conv(self, xz):
        x, weight = xz[:, : self.inner], self.w["conv1d.weight"]
        taps = weight.shape[1]
        if self.mutation == "conv taps reversed":
            weight = weight[:, ::-1]
        shift = 1 if self.mutation == "conv one token late" else 0
        padded = np.concatenate([np.zeros((taps - 1 + shift, self.inner), F), x])
        total = np.broadcast_to(self.w["conv1d.bias"], x.shape).astype(np.float32)
        if self.mutation == "conv bias dropped":
            total = np.zeros_like(total)
        for k in range(taps):
            product = padded[k : k + len(x)].astype(np.float64) * weight[:, k]
            if not self.fused:
                product = product.astype(np.float32)
            total = (total + product).astype(np.float32)
        if self.mutation == "window forgotten half way":
            half = len(x) // 2
            for t in range(half, min(half + taps - 1, len(x))):
                total[t] = self.w["conv1d.bias"] + sum(
                    x[s] * weight[:, taps - 1 - (t - s)] for s in range(half, t + 1)
                )
        active = self.mutation != "conv not activated"
        return self.out_of(silu(total) if active else total)

    def x_proj(self, conv):
        return self.out_of(matmul(conv, self.w["x_proj.weight"]))

    def dt(self, x_proj):
        return self.out_of(matmul(x_proj[:, : self.rank], self.w["dt_proj.weight"]))

    def gated(self, xz, conv, x_proj, dt):
        z = xz[:, self.inner :]
        B = x_proj[:, self.rank : self.rank + self.n]
        C = x_proj[:, self.rank + self.n :]
        if self.mutation == "B and C swapped":
            B, C = C, B
        dropped = self.mutation == "dt bias dropped"
        raw = dt if dropped else dt + self.w["dt_proj.bias"]
        step = np.abs(raw) if self.mutation == "softplus dropped" else softplus(raw)
        if self.mutation == "dt stored low":
            step = self.out_of(step)
        A = -np.exp(self.w["A_log"])
        if self.mutation == "A without exp":
            A = -np.abs(self.w["A_log"])
        a = np.exp(step[:, :, None] * A)
        drive = conv if self.mutation == "drive without dt" else step * conv
        b = drive[:, :, None] * B[:, None, :]
        h = self.scan(a, b)
        y = conv * (F(0) if self.mutation == "D dropped" else self.w["D"])
        if self.mutation == "state read out low":
            h = self.out_of(h)
        for n in range(self.n):
            y = y + h[:, :, n] * C[:, n, None]
        if self.mutation == "y stored before the gate":
            y = self.out_of(y)
        if self.mutation == "gate dropped":
            return self.out_of(y)
        gate = z if self.mutation == "gate not activated" else silu(z)
        return self.out_of(y * gate)

    def scan(self, a, b):
        if self.mutation == "state stored low":
            state, out = np.zeros_like(b[0]), []
            for decay, drive in zip(a, b, strict=True):
                state = self.out_of(decay * state + drive)
                out.append(state)
            return np.stack(out)
        if self.mutation == "state forgotten half way":
            a = a.copy()
            a[len(a) // 2] = 0
        if self.mutation == "state one token late":
            b = np.concatenate([np.zeros_like(b[:1]), b[:-1]])
        combine = scan_orders.FP32["fused" if self.fused else "unfused"]
        wide = a.astype(np.float64), b.astype(np.float64)
        return getattr(scan_orders, self.order)(*wide, combine).astype(np.float32)

    def out(self, gated):
        return self.out_of(matmul(gated, self.w["out_proj.weight"]))

    def run(self, before, hidden) -> dict[str, np.ndarray]:
        """All stored tensors of one sequence."""
        s = {"residual": self.residual(before, hidden)}
        s["norm"] = self.norm(s["residual"])
        s["xz"] = self.xz(s["norm"])
        s["conv"] = self.conv(s["xz"])
        s["x_proj"] = self.x_proj(s["conv"])
        s["dt"] = self.dt(s["x_proj"])
        s["gated"] = self.gated(s["xz"], s["conv"], s["x_proj"], s["dt"])
        s["out"] = self.out(s["gated"])
        return s

    def again(self, s, before, hidden) -> dict[str, np.ndarray]:
        """Each stored tensor from the given ones before it."""
        return {
            "residual": self.residual(before, hidden),
            "norm": self.norm(s["residual"]),
            "xz": self.xz(s["norm"]),
            "conv": self.conv(s["xz"]),
            "x_proj": self.x_proj(s["conv"]),
            "dt": self.dt(s["x_proj"]),
            "gated": self.gated(s["xz"], s["conv"], s["x_proj"], s["dt"]),
            "out": self.out(s["gated"]),
        }
