"""One decode step of mamba_ssm's Mamba-1 after another, in NumPy.

Written from `Mamba.step`, `selective_state_update.py` (Triton) and
`causal_conv1d_update.cu`: fp32 inside, a cache whose formats are ml_dtypes', naive
softplus, read-out before the state is stored. `mutation` breaks it in one named way.
"""

import ml_dtypes
import numpy as np

from oracles.kernels.mamba1 import F, Kernel, cast, matmul, silu


CACHES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


def softplus(x):
    """log(exp(x) + 1) in fp32, and x above 20."""
    with np.errstate(over="ignore"):
        return np.where(x <= 20, np.log(np.exp(x) + F(1)), x)


class Step(Kernel):
    """One layer, token by token. Methods take stored tensors, as `Kernel`'s do."""

    def __init__(self, w, precision, cache, mutation=None, scaled=False, **options):
        super().__init__(w, precision, **options)
        self.mutation = mutation
        self.cache, self.scaled = CACHES[cache], scaled

    def stored_state(self, h):
        """What the cache gives back; scaled: one power of two a channel."""
        if not self.scaled:
            return h.astype(self.cache).astype(F)
        largest = float(ml_dtypes.finfo(self.cache).max)
        scale = np.ones(len(h), F)
        for i, m in enumerate(np.abs(h).max(axis=1).astype(np.float64)):
            if m > 0:
                scale[i] = 2.0 ** np.ceil(np.log2(m / largest))
        scale = scale[:, None]
        return (h / scale).astype(self.cache).astype(F) * scale

    def xz(self, norm):
        return self.out_of(matmul(norm, self.w["in_proj.weight"]))

    def conv(self, xz):
        x, weight = xz[:, : self.inner], self.w["conv1d.weight"]
        window = np.zeros((weight.shape[1], self.inner), F)
        out = []
        for token in x:
            window = np.concatenate([window[1:], token[None]])
            total = self.w["conv1d.bias"]
            for k in range(len(window)):
                wide = window[k].astype(np.float64) * weight[:, k]
                total = (total + wide).astype(F)
            out.append(silu(total))
        return self.out_of(np.stack(out))

    def gated(self, xz, conv, x_proj, dt):
        z = xz[:, self.inner :]
        B = x_proj[:, self.rank : self.rank + self.n]
        C = x_proj[:, self.rank + self.n :]
        A = -np.exp(self.w["A_log"])
        state, out = np.zeros((self.inner, self.n), F), []
        for t in range(len(conv)):
            raw = dt[t] + self.w["dt_proj.bias"]
            if self.mutation == "softplus with log1p":
                step = np.where(raw <= 20, np.log1p(np.exp(raw)), raw)
            else:
                step = softplus(raw)
            dB = step[:, None] * B[t]
            state = state * np.exp(step[:, None] * A) + dB * conv[t][:, None]
            carried = self.stored_state(state)
            if self.mutation == "state never stored":
                carried = state
            if self.mutation == "state stored twice lower":
                carried = cast(cast(carried, "bf16") * F(1 + 2**-7), "bf16")
            if self.mutation == "stale state":
                carried = np.zeros_like(state) if t == len(conv) // 2 else carried
            if self.mutation == "state rounded before the read-out":
                state = carried
            y = (state * C[t]).sum(axis=1, dtype=F) + conv[t] * self.w["D"]
            with np.errstate(over="ignore"):
                y = y * (z[t] * (F(1) / (F(1) + np.exp(-z[t]))))
            out.append(y)
            state = carried
        return self.out_of(np.stack(out))
