"""Mamba-3 kernels broken on purpose, each in one way, by the tensors where it shows."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from oracles.kernels.mamba1 import cast
from oracles.kernels.mamba3 import PI, F, Siso, sigmoid
from oracles.kernels.mamba3_ranks import Mimo


class Mutant(NamedTuple):
    """What is broken in NumPy's layer, and the stored tensors in which it ends."""

    sites: tuple[str, ...]
    methods: dict

    def of(self, kind: type[Siso]) -> type[Siso]:
        """The broken layer."""
        return type("Broken", (kind,), self.methods)


def keys(**methods):
    return Mutant(("k_weighed",), methods)


def turning(**methods):
    return Mutant(("q_turned", "k_weighed"), methods)


def scan(**methods):
    return Mutant(("gated",), methods)


def own_next(self, trap, dt):
    """What this token, not the next one, would take."""
    return sigmoid(trap) * dt, (F(1) - sigmoid(trap)) * dt


def euler(self, trap, dt):
    return dt, 0 * dt


def only_gamma(self, trap, dt):
    return sigmoid(trap) * dt, 0 * dt


def swapped(self, trap, dt):
    other = sigmoid(trap) * dt
    return (F(1) - sigmoid(trap)) * dt, np.concatenate([other[1:], 0 * other[:1]])


def steps(self, angle, dt):
    return (self.tanh(angle) * PI)[:, None] * dt[:, :, None]


def not_added(self, angle, dt):
    return steps(self, angle, dt)


def forgotten_at_chunks(self, angle, dt):
    size = self.shape.chunk
    each = steps(self, angle, dt)
    cut = [np.cumsum(each[i : i + size], axis=0) for i in range(0, len(each), size)]
    return np.concatenate(cut).astype(F)


def without_dt(self, angle, dt):
    return self.less_turns(
        np.cumsum(steps(self, angle, np.ones_like(dt)), axis=0, dtype=F)
    )


def a_token_late(self, angle, dt):
    right = Siso.angle(self, angle, dt)
    return np.concatenate([0 * right[:1], right[:-1]])


def without_pi(self, angle, dt):
    each = self.tanh(angle)[:, None] * dt[:, :, None]
    return np.cumsum(each, axis=0, dtype=F)


def halves(self):
    i = np.arange(self.angles)
    return i, i + self.n // 2


def backwards(self, angle):
    cos, sin = Siso.cos_sin(self, angle)
    return cos, -sin


def previous_state(self, state):
    before = getattr(self, "kept", np.zeros_like(state))
    self.kept = state
    return self.narrow(before)


def fp8(x):
    return x.astype(ml_dtypes.float8_e4m3fn).astype(F)


def with_own(self, weights, tokens):
    token = np.repeat(np.arange(tokens), self.rank)
    return np.where(token[:, None] >= token[None, :], weights, F(0))


def later_too(self, weights, tokens):
    return weights


def of_the_token(change):
    def own(self, q, k, gamma, v):
        pairs = (q * k).sum(axis=-1)
        return change(self, pairs, gamma[:, None], self.w["D"])[..., None] * v

    return own


MUTANTS = {
    "the next token's share is this one's": keys(shares=own_next),
    "gamma alone": keys(shares=only_gamma),
    "lambda the other way round": Mutant(("k_weighed", "gated"), {"shares": swapped}),
    "Euler's rule": Mutant(("k_weighed", "gated"), {"shares": euler}),
    "angles not added up": turning(angle=not_added),
    "angles forgotten at every chunk": turning(angle=forgotten_at_chunks),
    "angles without dt": turning(angle=without_dt),
    "angles a token late": turning(angle=a_token_late),
    "angles without pi": turning(angle=without_pi),
    "angles without tanh": turning(tanh=lambda self, x: x),
    "halves turn, not neighbours": turning(pairs=halves),
    "turned backwards": turning(cos_sin=backwards),
    "not turned": turning(turned=lambda self, x, angle: x),
    "the state in fp8 at every chunk": scan(handed=lambda self, h: fp8(h)),
    "the state of a chunk before": scan(handed=previous_state),
    "no state handed on": scan(handed=lambda self, h: 0 * h),
    "pairs without decay": scan(
        between=lambda self, cs: np.ones((cs.shape[1], len(cs), len(cs)), F)
    ),
    "the token itself twice": scan(causal=with_own),
    "later tokens too": scan(causal=later_too),
    "what is left, not faded": scan(left=lambda self, k, v, since: (k, v)),
    "no D": scan(of_the_token=of_the_token(lambda self, p, gamma, D: p * gamma)),
    "no gamma": scan(of_the_token=of_the_token(lambda self, p, gamma, D: p + D)),
    "D alone": scan(of_the_token=of_the_token(lambda self, p, gamma, D: 0 * p + D)),
    "a sigmoid for a gate": scan(gate=lambda self, z: sigmoid(z)),
    "A at its slowest": scan(
        decay=lambda self, rate, dt: 0 * rate - F(self.shape.floor) * dt
    ),
}


def neighbours(self):
    i = np.arange(self.angles)
    return 2 * i, 2 * i + 1


RANKED = {
    "neighbours turn, not halves": Mutant(
        ("k_turned", "q_turned", "k_weighed"), {"pairs": neighbours}
    ),
    "the first rank for all": Mutant(
        ("gated_rank",),
        {
            "of_the_token": lambda self, q, k, gamma, v: Mimo.of_the_token(
                self, q, k, gamma, 0 * v + v[:, :1]
            )
        },
    ),
    "gamma of the token before": Mutant(
        ("k_weighed", "gated_rank"),
        {
            "shares": lambda self, trap, dt: [
                np.roll(a, 1, axis=0) for a in Mimo.shares(self, trap, dt)
            ]
        },
    ),
    "keys not faded": Mutant(
        ("gated_rank",), {"left": lambda self, k, v, since: (k, v)}
    ),
    "a gate of z itself": Mutant(("silu_z",), {"half_gate": lambda self, z: z}),
}

STEPS = {
    "the state in bf16": scan(kept=lambda self, h: cast(h, "bf16")),
    "angles never kept": Mutant(
        ("q_turned", "k_turned"),
        {"accurate": lambda self, angle, dt: steps(self, angle, dt)},
    ),
    "twice the decay": scan(
        decay=lambda self, rate, dt: 2 * Siso.decay(self, rate, dt)
    ),
    "turned backwards": Mutant(
        ("q_turned", "k_turned"),
        {"cos_sin": lambda self, a: (np.cos(a)[:, None], -np.sin(a)[:, None])},
    ),
}
