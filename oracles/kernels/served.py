"""vLLM's Mamba-2 layer in NumPy: what it does otherwise than mamba_ssm's.

Written from vLLM 0.33.0: `ops/causal_conv1d.py`, `ops/ssd_state_passing.py`,
`ops/ssd_chunk_scan.py`, `ops/mamba_ssm.py` and
`ops/selective_state_update_replayssm_output_only.py` of `model_executor/layers/mamba`,
`mamba_mixer2.py`, `ir/ops/layernorm.py` and `RowParallelLinear`. Everything else is
`kernels.mamba2`'s.
"""

from itertools import pairwise

import numpy as np

from oracles.kernels.mamba1 import F, cast
from oracles.kernels.mamba2 import Ssd, SsdStep, held as held_by_mamba_ssm


def held(weights: dict, precision: str) -> dict[str, np.ndarray]:
    """Parameters as vLLM holds them: A_log in fp32, all else cast, D as well."""
    cast_all = held_by_mamba_ssm(weights, f"{precision}-cast")
    return cast_all | {"A_log": weights["A_log"].astype(F)}


class Front(Ssd):
    """The stream, the convolution, the norms and the sum over devices.

    **Arguments:**

    - `window`: the format of the cached inputs of the convolution.
    - `cache`: that of the cached state.
    - `eager`: whether the norms' torch operations run one by one.
    - `ranks`: devices; `ring_sum`: whether every addition of their parts is rounded.
    """

    def __init__(
        self,
        *given,
        cache,
        window=None,
        eager=False,
        ranks=1,
        ring_sum=False,
        **options,
    ):
        if isinstance(self, SsdStep):
            options["cache"] = cache
        super().__init__(*given, **options)
        self.cached = cache
        self.of_window = window or self.precision
        self.eager, self.ranks, self.ring_sum = eager, ranks, ring_sum

    def operation(self, site, s, before, hidden):
        if site == "norm" and not self.eager:
            return self.norm(self.settled(before) + self.settled(hidden))
        return super().operation(site, s, before, hidden)

    def residual(self, before, hidden):
        return self.out_of(before + hidden)

    def norm(self, residual):
        hat = residual * self.rsqrt(self.mean_square(residual))
        hat = self.out_of(hat) if self.eager else hat
        return self.out_of(hat * self.w["norm.weight"])

    def as_cached(self, x, form):
        return cast(x.astype(F), form).astype(self.kind) if self.stores else x

    def conv_sum(self, x, weight, bias):
        x = self.as_cached(x, self.of_window)
        taps = weight.shape[1]
        padded = np.concatenate([self.window(x, taps), x])
        total = np.broadcast_to(bias, x.shape).astype(self.kind)
        for k in range(taps):
            product = padded[k : k + len(x)] * weight[:, k]
            if self.of_window == self.precision != "fp32":
                product = self.out_of(product)
            total = self.settled(total + product)
        return total

    def conv(self, xz):
        found = super().conv(xz)
        narrow = self.of_window != "fp32" and self.of_window != self.precision
        return self.as_cached(found, self.of_window) if narrow else found

    def normed(self, y):
        hat = super().normed(y)
        several = self.shape.groups > 1 or self.ranks > 1
        return self.out_of(hat) if self.eager and several else hat

    def gate(self, y, z):
        if not self.eager or "gate_norm.weight" in self.w:
            return super().gate(y, z)
        with np.errstate(over="ignore"):
            return y * self.out_of(z * (1 / (1 + self.exp(-z))))

    def out(self, gated):
        if self.ranks == 1:
            return super().out(gated)
        width = self.inner // self.ranks
        weight, total = self.w["out_proj.weight"], None
        for rank in range(self.ranks):
            own = slice(rank * width, (rank + 1) * width)
            part = gated[:, own].astype(np.float64) @ weight[:, own].T.astype(float)
            part = self.out_of(self.settled(part))
            total = part if total is None else self.settled(total + part)
            total = self.out_of(total) if self.ring_sum else total
        return self.out_of(total)


class ServedScan(Front):
    """A call over a whole text."""

    def handed(self, state):
        return self.operand(self.as_cached(state, self.cached))


class ServedStep(Front, SsdStep):
    """Token by token; the state goes into its cache every `period` tokens."""

    def __init__(self, *given, period=1, **options):
        super().__init__(*given, **options)
        self.period, self.seen = period, 0

    def stored_state(self, state):
        self.seen += 1
        return state if self.seen % self.period else super().stored_state(state)


class Ring(Front, SsdStep):
    """ReplaySSM: outputs from the last state that was stored and the tokens since."""

    def __init__(self, *given, period, **options):
        super().__init__(*given, **options)
        self.period = period

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.softplus(self.raw(xz[:, -self.heads :])).astype(self.kind)
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        out = []
        for first in range(0, len(conv), self.period):
            last = min(first + self.period, len(conv))
            for t in range(first, last):
                own = slice(first, t + 1)
                y, after = self.replayed(
                    state, step[own], x[own], B[own], C[t], t + 1 == first + self.period
                )
                out.append(self.settled(y + x[t] * self.skip()[:, 0]))
            state = after
        return np.stack(out).reshape(len(conv), -1)

    def replayed(self, state, step, x, B, c, full):
        """(what c reads, the state), from the ring's tokens, (tokens, heads, ...)."""
        cs = np.cumsum(step * self.A(), axis=0, dtype=self.kind)
        scale = self.settled(self.exp(cs[-1] - cs) * step)
        kept = self.exp(cs[-1])[:, None]
        if not full:
            read = self.settled((state * c[:, None, :]).sum(axis=-1) * kept)
            pairs = self.settled((B * c).sum(axis=-1) * scale)
            return self.settled(read + (pairs[..., None] * x).sum(axis=0)), None
        driven = self.operand(B * scale[..., None])
        new = np.einsum("thn,thp->hpn", driven.astype(float), x.astype(float))
        after = self.settled(state * kept[..., None] + self.settled(new))
        y = self.settled((after * c[:, None, :]).sum(axis=-1))
        return y, self.stored_state(after)


class SglangScan(ServedScan):
    """The same in two calls: the state that the first one leaves is made anew from the
    cached one in front of its last chunk (SGLang 0.5.23, `ssd_chunk_state.py`).

    **Arguments:**

    - `cut`: tokens of the first call. `again`: False passes on the carry, as vLLM does.
    """

    def __init__(self, *given, cut, again=True, **options):
        super().__init__(*given, **options)
        self.cut, self.anew = cut, again

    def passed(self, state, last, new):
        before = self.as_cached(state, self.cached) if self.ends else state
        return super().passed(before, last, new)

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.step_size(xz[:, -self.heads :])
        seq, chunk = len(conv), self.shape.chunk
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        out = []
        for start, end in ((0, self.cut), (self.cut, seq)):
            if start:
                state = self.as_cached(state, self.cached)
            for first in range(start, end, chunk):
                own = slice(first, min(first + chunk, end))
                self.ends = self.anew and own.stop == end
                state, y = self.chunk(state, step[own], x[own], B[own], C[own])
                out.append(y)
        return np.concatenate(out).reshape(seq, -1)


class SglangStream(ServedScan):
    """Several texts in one call, none with a state: chunks are cut in the stream of all
    of them, and sums of decays run through texts that share a chunk (SGLang 0.5.23,
    `ssd_chunk_state.py`, `ssd_state_passing.py`, `ssd_chunk_scan.py`).

    **Arguments:**

    - `lengths`: tokens of each text. `hurried`: a factor of the first one's dt.
    - `apart`: whether each text has chunks of its own, as in vLLM.
    """

    def __init__(self, *given, lengths, hurried=1.0, apart=False, **options):
        super().__init__(*given, **options)
        self.lengths, self.hurried, self.apart = lengths, hurried, apart
        self.owner = np.repeat(np.arange(len(lengths)), lengths)

    def conv_sum(self, x, weight, bias):
        parts = np.split(x, np.cumsum(self.lengths)[:-1])
        summed = [super(SglangStream, self).conv_sum(p, weight, bias) for p in parts]
        return np.concatenate(summed)

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.step_size(xz[:, -self.heads :])
        step[: self.lengths[0]] *= F(self.hurried)
        seq, chunk = len(conv), self.shape.chunk
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        own = [*range(0, seq, chunk)]
        if self.apart:
            ends = np.cumsum([0, *self.lengths])
            own = [t for a, b in pairwise(ends) for t in range(a, b, chunk)]
        out, whose = [], 0
        for first, stop in pairwise([*own, seq]):
            part = slice(first, stop)
            state, y = self.of_texts(
                state, whose, self.owner[part], step[part], x[part], B[part], C[part]
            )
            whose = self.owner[stop - 1]
            out.append(y)
        return np.concatenate(out).reshape(seq, -1)

    def of_texts(self, state, whose, owner, dt, x, B, C):
        """A chunk of several texts; `state` is the text's of number `whose`."""
        by_head = lambda a: a.swapaxes(0, 1)
        cs = self.running(dt * self.A())
        since = self.exp(cs[-1] - cs) * (owner == owner[-1])[:, None]
        driven = self.operand(self.scaled_B(B, since, dt))
        read_x, read_C = self.operand(by_head(x)), self.operand(by_head(C))
        new = self.dot(read_x.swapaxes(1, 2), by_head(driven))
        read = self.dot(read_C, self.handed(state).swapaxes(1, 2))
        before = self.before(read, cs) * (owner == whose)[:, None]
        pairs = self.dot(read_C, self.operand(by_head(B)).swapaxes(1, 2))
        pairs = pairs * (owner[:, None] == owner)
        weights = self.operand(self.weights(pairs, cs, dt))
        y = self.dot(weights, read_x, before)
        y = self.fma(y, by_head(x), self.skip())
        state = state if owner[-1] == whose else np.zeros_like(state)
        return self.passed(state, cs[-1], new), by_head(y)
