"""mamba_ssm's Mamba-3 layer of higher rank, and token by token, in NumPy.

Written from `mamba3_mimo_fwd.py`, `mamba3_mimo_rotary_step.py` and `mamba3_step_fn.py`
of mamba_ssm 2.3.2, as `mamba3` is from the kernels of rank 1.
"""

import numpy as np

from oracles.kernels.mamba1 import F
from oracles.kernels.mamba3 import PI, Siso, sigmoid


class Mimo(Siso):
    """One layer of higher rank, chunk by chunk; all operands in the model's format."""

    @property
    def operands(self):
        return self.precision

    def pairs(self):
        i = np.arange(self.angles)
        return i, i + self.n // 2

    def by_rank(self, x, name):
        return x[:, None] * self.w[name].swapaxes(0, 1)

    def stored_angle(self, angle):
        return angle

    def shares(self, trap, dt):
        dt = self.narrow(dt)
        other = self.narrow(dt * sigmoid(-trap))
        return dt * sigmoid(trap), np.concatenate([other[1:], 0 * other[:1]])

    def scanned(self, s, xz):
        _, x, _, _, raw, rate, trap, angle = self.split(xz)
        heads = self.heads // self.shape.groups
        low = {name: self.narrow(self.w[name]) for name in ("B_bias", "C_bias")}
        k, q = (
            self.narrow(
                np.repeat(s[f"{a}_norm"], heads, axis=2)
                + low[f"{a}_bias"].swapaxes(0, 1)
            )
            for a in "BC"
        )
        dt = self.step_size(raw)
        gamma, ahead = self.shares(trap, dt)
        v = self.narrow(x[:, None] * self.narrow(self.w["mimo_x"]).swapaxes(0, 1))
        own = self.of_the_token(q, k, gamma, v)
        angle = self.stored_angle(self.angle(angle, dt))
        k, q = (self.narrow(self.turned(a, angle)) for a in (k, q))
        weight = self.narrow(ahead + gamma)
        s |= {"q_turned": q, "k_turned": k, "v_ranked": v}
        k = s["k_weighed"] = self.narrow(k * weight[:, None, :, None])
        return self.chunks(self.decay(rate, dt), k, q, v) + own

    def of_the_token(self, q, k, gamma, v):
        by_head = lambda a: a.swapaxes(1, 2)
        pairs = self.narrow(self.dot(by_head(q), by_head(k).swapaxes(2, 3)))
        total = np.zeros_like(v)
        for s in range(self.rank):
            term = self.narrow(by_head(pairs[..., s, None]) * v[:, s][:, None])
            total = self.narrow(total + term)
        total = self.narrow(total * gamma[:, None, :, None])
        return self.narrow(total + self.w["D"][:, None] * v)

    def left(self, k, v, since):
        return self.narrow(k * since), v

    def half_gate(self, z):
        half = F(0.5) * z
        return half * self.tanh(half) + half

    def gated(self, s, y, z):
        if self.shape.gate_norm:
            s["scan_output"] = y = self.narrow(y)
            y = self.head_norm(y) * self.gate(self.by_rank(z, "mimo_z"))
            y = self.settled(self.by_rank_sum(y))
        else:
            gate = s["silu_z"] = self.narrow(self.half_gate(self.by_rank(z, "mimo_z")))
            out = self.narrow(self.w["mimo_o"]).swapaxes(0, 1)
            y = s["gated_rank"] = self.narrow(y * self.narrow(out * gate))
            total = y[:, 0]
            for r in range(1, self.rank):
                total = self.narrow(total + y[:, r])
            y = total
        s["gated"] = self.low(y).reshape(len(y), -1)

    def by_rank_sum(self, y):
        """sum over ranks of y times mimo_o, in fp32."""
        return (y * self.w["mimo_o"].swapaxes(0, 1)).sum(axis=1, dtype=F)


class Step(Mimo):
    """The layer token by token, of any rank; the state is in fp32."""

    def pairs(self):
        return Mimo.pairs(self) if "mimo_x" in self.w else Siso.pairs(self)

    def by_rank(self, x, name):
        return Mimo.by_rank(self, x, name) if name in self.w else x[:, None]

    def by_rank_sum(self, y):
        return Mimo.by_rank_sum(self, y) if "mimo_o" in self.w else y[:, 0]

    def accurate(self, angle, dt):
        tanh = sigmoid(F(2) * angle) * F(2) - F(1)
        steps = tanh[:, None] * dt[:, :, None] * PI
        return np.cumsum(steps, axis=0, dtype=F)

    def cos_sin(self, angle):
        return np.cos(angle)[:, None], np.sin(angle)[:, None]

    def kept(self, state):
        """What the cache gives back."""
        return state

    def scanned(self, s, xz):
        _, x, _, _, raw, rate, trap, angle = self.split(xz)
        heads = self.heads // self.shape.groups
        dt = self.step_size(raw)
        share = s["trapezoid"] = self.low(sigmoid(trap))
        angle = self.accurate(angle, dt)
        for a, name in (("B", "k"), ("C", "q")):
            biased = np.repeat(s[f"{a}_norm"], heads, axis=2)
            biased = biased + self.w[f"{a}_bias"].swapaxes(0, 1)
            s[f"{name}_turned"] = self.low(self.turned(biased, angle))
        k, q = s["k_turned"], s["q_turned"]
        alpha = np.exp(self.decay(rate, dt))
        gamma, beta = share * dt, (F(1) - share) * dt * alpha
        state = np.zeros((self.heads, self.size, self.n), F)
        last_k, last_x, out = 0 * k[0], 0 * x[0], []
        for t in range(len(x)):
            new = np.zeros_like(state)
            for weight, x_, k_ in ((gamma, x[t], k[t]), (beta, last_x, last_k)):
                v = self.by_rank((x_ * weight[t][:, None])[None], "mimo_x")[0]
                for r in range(self.rank):
                    new = new + v[r][:, :, None] * k_[r][:, None, :]
            state = state * alpha[t][:, None, None] + new
            y = (state[None] * q[t][:, :, None]).sum(axis=-1, dtype=F)
            v = self.by_rank(x[t][None], "mimo_x")[0]
            out.append(y + self.w["D"][:, None] * v)
            state, last_k, last_x = self.kept(state), k[t], x[t]
        return np.stack(out)

    def gated(self, s, y, z):
        if self.shape.gate_norm:
            s["scan_output"] = y = self.low(y)
            y = self.head_norm(y) * self.gate(self.by_rank(z, "mimo_z"))
        else:
            y = y * self.half_gate(self.by_rank(z, "mimo_z"))
        s["gated"] = self.low(self.by_rank_sum(y)).reshape(len(y), -1)
