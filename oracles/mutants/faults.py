"""Ways to break a kernel: what `mutants.mamba1` is made of.

A mutant replaces methods of `kernels.mamba1.Kernel` that end in one stored tensor.
`strength` scales what it does: the tensor before its store is right + strength times
(broken - right), so that small defects of every kind can be made, too.
"""

import functools
from typing import NamedTuple

import ml_dtypes
import numpy as np

from oracles.kernels.mamba1 import F, Kernel, cast


CHUNK = 16


class Mutant(NamedTuple):
    """A broken kernel, and the stored tensor where its operation ends."""

    site: str
    methods: dict

    def kernel(self, w, precision, strength=1.0, **options) -> Kernel:
        """One that is broken; by `strength`, with the stores of the right one."""
        kind = type("Broken", (Kernel,), self.methods)
        broken = kind(w, precision, **options)
        if strength == 1.0:
            return broken
        mixed = Kernel(w, precision, **options)
        options = {k: v for k, v in options.items() if k != "wide"}
        # where fp32 holds no share of a difference, fp64 does
        before = [c(w, precision, wide=True, **options) for c in (Kernel, kind)]

        def blended(*given):
            right, wrong = (
                getattr(k, self.site)(*(k.settled(x) for x in given)) for k in before
            )
            with np.errstate(over="ignore"):
                return mixed.out_of(mixed.settled(right + strength * (wrong - right)))

        setattr(mixed, self.site, blended)
        return mixed


def mutant(site, **methods):
    return Mutant(site, methods)


def parameter(site, name, change):
    """A mutant whose only fault is in one of its parameters."""

    def init(self, w, *given, **options):
        Kernel.__init__(self, w, *given, **options)
        self.w[name] = self.settled(change(self, self.w[name]))

    return Mutant(site, {"__init__": init})


def product(site, name, how):
    """A mutant whose only fault is how the product with one weight is taken."""

    def matmul(self, x, named):
        if named != name:
            return Kernel.matmul(self, x, named)
        return self.settled(how(self, x, self.w[named]))

    return Mutant(site, {"matmul": matmul})


def store(site, how):
    """A mutant whose only fault is the store of one tensor."""

    def stored(self, *given):
        exact = Kernel(self.w, self.precision, stores=False, wide=self.wide)
        return self.settled(how(self, getattr(exact, site)(*given)))

    return Mutant(site, {site: stored})


# ---- how things are done wrong


def toward_zero(k, x):
    """Bits cut off: the number next to the rounded one where that is too large."""
    x = x.astype(np.float64)
    near = cast(x.astype(F), k.precision)
    kind = ml_dtypes.bfloat16 if k.precision == "bf16" else np.float16
    below = np.nextafter(near.astype(kind), kind(0)).astype(np.float64)
    return np.where(np.abs(near) > np.abs(x), below, near)


def twice(k, x):
    """Through the other 16-bit format."""
    other = "fp16" if k.precision == "bf16" else "bf16"
    return k.low(cast(x.astype(F), other))


def at_random(k, x):
    """Up or down by chance, as stochastic rounding does."""
    x, down = x.astype(np.float64), toward_zero(k, x)
    kind = ml_dtypes.bfloat16 if k.precision == "bf16" else np.float16
    away = np.where(x < 0, -np.inf, np.inf).astype(kind)
    up = np.nextafter(down.astype(kind), away).astype(np.float64)
    share = np.where(up == down, 0, (x - down) / np.where(up == down, 1, up - down))
    return np.where(np.random.default_rng(5).random(x.shape) < share, up, down)


def low_accumulator(k, x, W):
    """Every partial sum in the low format."""
    total = np.zeros((len(x), len(W)))
    for j in range(x.shape[1]):
        total = k.low(total + x[:, j, None].astype(np.float64) * W[:, j])
    return total


def low_partials(k, x, W):
    """Split-K: the partial products are stored low before they are added."""
    half = x.shape[1] // 2
    first, rest = x[:, :half] @ W[:, :half].T, x[:, half:] @ W[:, half:].T
    return k.low(first) + k.low(rest)


def low_operands(bits):
    """Operands with so few significand bits, as TF32 has 11."""

    def how(k, x, W):
        cut = [np.frexp(v.astype(np.float64)) for v in (x, W)]
        x, W = (np.ldexp(np.rint(np.ldexp(m, bits)), e - bits) for m, e in cut)
        return x @ W.T

    return how


def short(k, x, W):
    """The last channel is never read."""
    return x[:, :-1] @ W[:, :-1].T


def as_stored_transposed(k, W):
    """The bytes of the transposed matrix, read in its place."""
    return np.ascontiguousarray(W.T).reshape(W.shape)


def blocks_swapped(k, W):
    half = k.inner // 2
    return np.concatenate([W[half : k.inner], W[:half], W[k.inner :]])


def moved(shift):
    """Tokens that come too late (or too early)."""

    def how(x):
        out = np.zeros_like(x)
        if shift > 0:
            out[shift:] = x[:-shift]
        else:
            out[:shift] = x[-shift:]
        return out

    return how


def conv_with(inputs=None, weight=None, bias=None, total=None, after=None):
    """A conv, one of whose parts is changed."""
    same = lambda k, x: x

    def conv(self, xz):
        x = (inputs or same)(self, xz[:, : self.inner])
        w = (weight or same)(self, self.w["conv1d.weight"])
        b = (bias or same)(self, self.w["conv1d.bias"])
        sums = (total or same)(self, self.conv_sum(x, w, b))
        return self.out_of((after or (lambda k, v: k.silu(v)))(self, sums))

    return mutant("conv", conv=conv)


def windows_forgotten(k, x, starts):
    """The conv's inputs, once for each stretch, with nothing before the stretch."""
    ends = [*starts[1:], len(x)]
    weight, bias = k.w["conv1d.weight"], k.w["conv1d.bias"]
    parts = [
        k.conv_sum(x[s:e], weight, bias) for s, e in zip(starts, ends, strict=True)
    ]
    return np.concatenate(parts)


def forgetting(starts_of):
    def conv(self, xz):
        x = xz[:, : self.inner]
        sums = windows_forgotten(self, x, starts_of(len(x)))
        return self.out_of(self.silu(sums))

    return mutant("conv", conv=conv)


def gated_with(**parts):
    """A mutant between dt and the gate; each part is given the right one."""
    methods = {}
    for name, how in parts.items():
        right = getattr(Kernel, name)
        methods[name] = functools.partialmethod(_call, how, right)
    return Mutant("gated", methods)


def _call(self, how, right, *given):
    return how(self, functools.partial(right, self), *given)


def with_B_and_C(change):
    def gated(self, xz, conv, x_proj, dt):
        x_proj = x_proj.copy()
        B = x_proj[:, self.rank : self.rank + self.n].copy()
        C = x_proj[:, self.rank + self.n :].copy()
        x_proj[:, self.rank :] = np.concatenate(change(B, C), axis=1)
        return Kernel.gated(self, xz, conv, x_proj, dt)

    return mutant("gated", gated=gated)


def low_steps(store_, read=None):
    """A scan whose state goes through `store_` after every token."""

    def scan(k, right, a, b):
        state, out = np.zeros_like(b[0]), []
        for decay, drive in zip(a, b, strict=True):
            exact = k.settled(decay * state + drive)
            state = k.settled(store_(k, exact))
            out.append(exact if read == "before the store" else state)
        return np.stack(out)

    return gated_with(scan=scan)


def scan_of(change):
    """A scan with other decays and drives."""
    return gated_with(scan=lambda k, right, a, b: right(*change(k, a.copy(), b.copy())))


def reset(starts_of):
    def change(k, a, b):
        a[starts_of(len(a))] = 0
        return a, b

    return scan_of(change)


def from_another_sequence(k, a, b):
    """A cache that was not cleared: it holds what another sequence left."""
    b[0] += a[0] * np.random.default_rng(7).normal(size=b[0].shape).astype(b.dtype)
    return a, b


def prefix_one_late(k, a, b):
    """A chunk's first token takes the state of the one before the last."""
    states = [Kernel.scan(k, a[:CHUNK], b[:CHUNK])]
    for s in range(CHUNK, len(a), CHUNK):
        first = b[s : s + CHUNK].copy()
        first[0] += a[s] * states[-1][-2]
        states.append(Kernel.scan(k, a[s : s + CHUNK], first))
    return np.concatenate(states)


def dropped(index, axis):
    def how(x):
        x = x.copy()
        x[(slice(None),) * axis + (index,)] = 0
        return x

    return how


def in_the_middle(length):
    return [0, length // 2]


def at_chunks(length):
    return list(range(0, length, CHUNK))


def wrapped(k, x):
    """An offset of five bits: tokens from 32 on are read from the start."""
    return x[np.arange(len(x)) % 32]


def layer_norm(self, residual):
    centred = residual - residual.mean(axis=-1, keepdims=True)
    return Kernel.norm(self, centred)


def low_mean(self, x):
    return self.low(Kernel.mean_square(self, x)).astype(np.float64)


def low_squares(self, x):
    squares = self.low(x.astype(F) ** 2).astype(np.float64)
    return np.mean(squares, axis=-1, keepdims=True)


def epsilon_outside(self, mean_square):
    return self.settled(1 / (np.sqrt(mean_square) + self.epsilon))


def projected(site, name, ways):
    return {f"{name}: {what}": product(site, name, how) for what, how in ways.items()}
