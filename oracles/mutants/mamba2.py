"""Mamba-2 kernels broken on purpose, each in one way, by the tensor where it ends."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from oracles.kernels.mamba1 import F, cast
from oracles.kernels.mamba2 import Ssd


class Mutant(NamedTuple):
    """A broken kernel, and the stored tensor where its operation ends."""

    site: str
    methods: dict

    @property
    def kernel(self) -> type[Ssd]:
        return type("Broken", (Ssd,), self.methods)


def scan(**methods):
    return Mutant("scan_output", methods)


def gate(**methods):
    return Mutant("gated", methods)


def fp8(x):
    return x.astype(ml_dtypes.float8_e4m3fn).astype(x.dtype)


def every_other_chunk(change):
    """A way to hand on the state that is wrong at every second chunk."""

    def handed(self, state):
        self.turn = not getattr(self, "turn", False)
        return self.operand(state if self.turn else change(state))

    return handed


def previous_state(self, state):
    before = getattr(self, "kept", np.zeros_like(state))
    self.kept = state
    return self.operand(before)


def weights_of(change):
    """Weights of pairs from (self, pairs, apart, step by source, by target)."""

    def weights(self, pairs, cs, step):
        apart = cs.T[:, :, None] - cs.T[:, None, :]
        return change(self, pairs, apart, step.T[:, None, :], step.T[:, :, None])

    return weights


def exclusive(self, dA):
    cs = np.cumsum(dA, axis=0, dtype=self.kind)
    return np.concatenate([0 * cs[:1], cs[:-1]])


def normed_over_all(self, y):
    return y * self.rsqrt(self.mean_square(y))


def gated_otherwise(self, xz, scan_output):
    """The gate on the other side of the norm."""
    z = xz[:, : self.inner]
    y = self.normed(scan_output) * self.w["gate_norm.weight"]
    return self.out_of(self.gate(y, z))


def low_sums(self, a, b, total):
    return self.low(Ssd.one_dot(self, a, b, total))


def swapped(self, conv):
    x, B, C = Ssd.parts(self, conv)
    return x, C, B


def unweighted(self, xz, scan_output):
    z = xz[:, : self.inner]
    return self.out_of(self.normed(self.gate(scan_output, z)))


def of_size(self, y):
    # the mean over one channel more than there are
    apart = y.reshape(len(y), self.shape.groups, -1)
    size = apart.shape[-1]
    mean = self.mean_square(apart) * size / (size + 1)
    return (apart * self.rsqrt(mean)).reshape(y.shape)


MUTANTS = {
    # the state between chunks
    "state passed on without decay": scan(passed=lambda self, h, last, new: h + new),
    "state decayed twice": scan(
        passed=lambda self, h, last, new: h * self.exp(2 * last)[:, None, None] + new
    ),
    "new state instead of both": scan(passed=lambda self, h, last, new: new),
    "state dropped at every second chunk": scan(
        handed=every_other_chunk(np.zeros_like)
    ),
    "state of the chunk before": scan(handed=previous_state),
    "state handed on in fp8": scan(handed=lambda self, h: fp8(h)),
    "state carried in fp8": scan(
        passed=lambda self, h, last, new: fp8(Ssd.passed(self, h, last, new))
    ),
    "state transposed": scan(
        handed=lambda self, h: self.operand(h.reshape(len(h), h.shape[2], -1)).swapaxes(
            1, 2
        )
    ),
    "state of another head": scan(handed=lambda self, h: self.operand(h[::-1])),
    "read-out of the state without decay": scan(before=lambda self, read, cs: read),
    "read-out of the state decayed a token less": scan(
        before=lambda self, read, cs: Ssd.before(
            self, read, exclusive(self, np.diff(cs, axis=0, prepend=0))
        )
    ),
    "B without its decay": scan(scaled_B=lambda self, B, since, dt: B * dt[..., None]),
    "B without dt": scan(scaled_B=lambda self, B, since, dt: B * since[..., None]),
    # within a chunk
    "sums of decays exclusive": scan(running=exclusive),
    "sums of decays in the low format": scan(
        running=lambda self, dA: self.low(Ssd.running(self, dA))
    ),
    "pairs not masked": scan(
        weights=weights_of(
            lambda self, pairs, apart, dt, _: pairs * self.faded(apart) * dt
        )
    ),
    "own token masked": scan(
        weights=weights_of(
            lambda self, pairs, apart, dt, _: np.tril(
                pairs * self.faded(apart) * dt, -1
            )
        )
    ),
    "pairs without decay": scan(
        weights=weights_of(lambda self, pairs, apart, dt, _: np.tril(pairs * dt))
    ),
    "pairs with the target's dt": scan(
        weights=weights_of(
            lambda self, pairs, apart, _, dt: np.tril(pairs * self.faded(apart) * dt)
        )
    ),
    "pairs without dt": scan(
        weights=weights_of(
            lambda self, pairs, apart, _, __: np.tril(pairs * self.faded(apart))
        )
    ),
    "partial sums in the low format": scan(one_dot=low_sums),
    "B and C swapped": scan(parts=swapped),
    # dt, A, D, groups
    "groups interleaved": scan(
        of_heads=lambda self, B: np.tile(B, (1, self.heads // self.shape.groups, 1))
    ),
    "dt without its bias": scan(raw=lambda self, dt: dt),
    "dt without softplus": scan(softplus=lambda self, x: np.maximum(x, 0)),
    "limits of dt forgotten": scan(
        step_size=lambda self, dt: self.softplus(self.raw(dt)).astype(self.kind)
    ),
    "dt in the low format": scan(
        step_size=lambda self, dt: self.low(Ssd.step_size(self, dt))
    ),
    "A in the low format": scan(A=lambda self: self.low(Ssd.A(self))),
    "A without exp": scan(A=lambda self: -np.abs(self.w["A_log"])),
    "D skipped": scan(skip=lambda self: 0 * Ssd.skip(self)),
    "D in fp8": scan(skip=lambda self: fp8(Ssd.skip(self))),
    # the gated norm
    "norm before the gate": gate(gated=gated_otherwise),
    "norm over all groups": gate(normed=normed_over_all),
    "norm without its weight": gate(gated=unweighted),
    "norm of one channel too many": gate(normed=of_size),
    "gate without silu": gate(gate=lambda self, y, z: y * z),
    "gate a sigmoid": gate(gate=lambda self, y, z: y / (1 + np.exp(-z))),
    "gate stored low": gate(gate=lambda self, y, z: self.low(Ssd.gate(self, y, z))),
}


def read(change):
    """Operands otherwise, where they are rounded at all."""
    return lambda self, x: change(x) if self.stores else Ssd.operand(self, x)


def to_nearest(x):
    bits = np.ascontiguousarray(x).view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(F)


# How an fp32 layer's products may read their operands other than as declared.
OPERANDS = {
    "in bf16": read(lambda x: cast(x, "bf16")),
    "in fp16": read(lambda x: cast(x, "fp16")),
    "rounded to nearest": read(to_nearest),
}
