"""Delta rules of vLLM and SGLang in NumPy: fp32 inside, one cast at each stored tensor.

Written from vLLM 0.33.0, `third_party/flash_linear_attention/ops`
(`fused_gdn_prefill_post_conv.py`, `chunk_scaled_dot_kkt.py`, `solve_tril.py`,
`wy_fast.py`, `chunk_delta_h.py`, `chunk_o.py`, `fused_recurrent.py`) and
`models/kimi_k3/nvidia/ops/third_party/kda`, and from SGLang 0.5.23's copies of them in
`kernels/ops/attention/fla`. Every operation is a method, so that a subclass can compute
a wrong one. Products are summed in fp64 and rounded once, which is within the bound of
any accumulator; casts are NumPy's and ml_dtypes' own.
"""

from typing import Any

import numpy as np

from oracles.kernels.mamba1 import F, cast, silu, softplus
from oracles.kernels.mamba2 import cut
from oracles.kernels.mamba3 import sigmoid


TILE, LOG2_E = 16, F(1.4426950216293335)


def held(weights: dict, precision: str, fp32: tuple) -> dict[str, np.ndarray]:
    """Parameters as a server holds them: the named ones in fp32, all else cast."""
    return {
        name: x.astype(F) if name in fp32 else cast(x.astype(F), precision)
        for name, x in weights.items()
    }


def product(subscripts: str, *operands) -> np.ndarray:
    """Summed in fp64, rounded once."""
    wide = [x.astype(np.float64) for x in operands]
    return np.einsum(subscripts, *wide).astype(F)


class Delta:
    """A Gated DeltaNet of vLLM: `run` gives what it stores, (tokens, ...) by site.

    **Arguments:**

    - `weights`: by canonical name, as `held` gives them. `sizes`: of the sublayer.
    - `precision`: of the model. `cache`, `window`: formats of state and convolution.
    - `steps`: token by token; the state is stored every `period` tokens.
    - `eager`: whether the norm in front reads the rounded stream and rounds twice.
    - `calls`: tokens of each call of a prefill.
    """

    rates_rounded = False
    pairs_in_tf32 = True
    merges_in_tf32 = False
    conv_products_rounded = True
    exp: Any = staticmethod(np.exp)
    in_logs = F(1)

    def __init__(
        self, weights, sizes, precision, *, cache, window=None, steps=False, period=1,
        eager=False, calls=(),
    ):  # fmt: skip
        self.w, self.sizes, self.precision = weights, sizes, precision
        self.cache, self.window = cache, window or precision
        self.steps, self.period, self.eager = steps, period, eager
        self.calls = calls
        self.heads = len(weights["A_log"])
        self.keys = weights["q_proj"].shape[0]

    def out_of(self, x):
        return cast(x.astype(F), self.precision)

    def operand(self, x):
        """What a product reads of a tensor of fp32 models."""
        return cut(x) if self.precision == "fp32" else x

    def run(self, before, hidden) -> dict[str, np.ndarray]:
        seen: dict[str, Any] = {"residual": self.out_of(before + hidden)}
        x = seen["norm"] = self.norm(before, hidden)
        project = lambda name: self.out_of(product("tc,rc->tr", x, self.w[name]))
        for site in "qkv":
            seen[site] = project(f"{site}_proj")
        seen |= self.gate_inputs(x, project)
        seen["rate_logit"] = project("b_proj")
        mixed = np.concatenate([seen[site] for site in "qkv"], axis=-1)
        seen["conv"] = self.conv(mixed)
        cut_heads = lambda a, heads: a.reshape(len(a), heads, -1)
        q, k, v = np.split(seen["conv"], [self.keys, 2 * self.keys], axis=-1)
        own = self.key_heads()
        q, k, v = cut_heads(q, own), cut_heads(k, own), cut_heads(v, self.heads)
        q, k = self.unit(q), self.unit(k)
        if not self.steps:
            seen |= {"q_unit": q, "k_unit": k}
        rate, gate = self.rate(seen["rate_logit"]), self.gate(seen)
        each = lambda a: np.repeat(a, self.heads // own, axis=1)
        given = each(q), each(k), v, rate, gate
        y = self.by_steps(*given) if self.steps else self.by_chunks(seen, *given)
        seen["scan_output"] = y
        seen["gated"] = self.gated(y, seen["z"])
        seen["out"] = self.out_of(
            product("tc,rc->tr", seen["gated"], self.w["out_proj"])
        )
        return seen

    def key_heads(self) -> int:
        return self.sizes.key_heads

    def gate_inputs(self, x, project):
        del x
        return {"z": project("z_proj"), "gate_logit": project("a_proj")}

    def norm(self, before, hidden):
        total = before + hidden
        read = self.out_of(total) if self.eager else total
        square = np.mean(read.astype(np.float64) ** 2, axis=-1, keepdims=True)
        hat = read / np.sqrt(square.astype(F) + F(self.sizes.norm_epsilon))
        hat = self.out_of(hat) if self.eager else hat
        offset = getattr(self.sizes, "norm_offset", 0.0)
        return self.out_of(hat * (self.w["norm"] + F(offset)))

    def conv(self, mixed):
        x, weight = cast(mixed, self.window), self.w["conv_weight"]
        taps = weight.shape[1]
        padded = np.concatenate([np.zeros((taps - 1, x.shape[1]), F), x])
        total = np.zeros_like(x)
        for tap in range(taps):
            total = total + self.conv_product(
                padded[tap : tap + len(x)], weight[:, tap]
            )
        return self.out_of(silu(total))

    def conv_product(self, x, tap):
        rounds = self.conv_products_rounded and self.window == self.precision
        return self.out_of(x * tap) if rounds else x * tap

    def unit(self, x):
        total = np.sum(x.astype(np.float64) ** 2, axis=-1, keepdims=True).astype(F)
        return self.unit_stored(x / np.sqrt(total + F(1e-6)))

    def unit_stored(self, x):
        return x if self.steps else self.out_of(x)

    def rate(self, logit):
        rate = sigmoid(logit) * F(getattr(self.sizes, "rate_scale", 1.0))
        return self.out_of(rate) if self.rates_rounded else rate

    def gate(self, seen):
        """Log gates, (tokens, heads, 1)."""
        step = softplus(seen["gate_logit"] + self.w["dt_bias"])
        return (-np.exp(self.w["A_log"]) * step)[..., None]

    def handed_over(self, state):
        """The state that a call, or a step, leaves in the cache."""
        return cast(state, self.cache)

    def as_read(self, state):
        """The state in front of a chunk."""
        return self.operand(self.out_of(state))

    def by_steps(self, q, k, v, rate, gate):
        state = np.zeros((self.heads, v.shape[2], k.shape[2]), F)
        scale, out = F(k.shape[2] ** -0.5), []
        for t in range(len(v)):
            state = state * np.exp(gate[t])[:, None]
            missed = v[t] - product("hvk,hk->hv", state, k[t])
            write = missed * rate[t][:, None]
            state = state + write[..., None] * k[t][:, None]
            out.append(product("hvk,hk->hv", state, q[t] * scale))
            if (t + 1) % self.period == 0:
                state = self.handed_over(state)
        return self.out_of(np.stack(out))

    def by_chunks(self, seen, q, k, v, rate, gate):
        state = np.zeros((self.heads, v.shape[2], k.shape[2]), F)
        parts: list[dict[str, np.ndarray]] = []
        begin = 0
        for tokens in self.calls or (len(v),):
            if begin:
                state = self.handed_over(state)
            for first in range(begin, begin + tokens, self.sizes.chunk):
                last = min(first + self.sizes.chunk, begin + tokens)
                own = [a[first:last] for a in (q, k, v, rate, gate)]
                state, found = self.chunk(state, *own)
                parts.append(found)
            begin += tokens
        joined = {site: np.concatenate([p[site] for p in parts]) for site in parts[0]}
        y = joined.pop("scan_output")
        seen |= joined
        return y

    def elapsed(self, gate):
        """Sums of log gates, in logarithms to the base of `exp`."""
        return np.cumsum(gate.astype(np.float64), axis=0).astype(F) * self.in_logs

    def chunk(self, state, q, k, v, rate, gate):
        """(the state behind it, what is stored, (tokens, ...) by site)."""
        G = self.elapsed(gate)
        system, pairs = self.pairs(q, k, rate, G)
        inverse = self.out_of(self.inverse(system))
        column = rate[..., None]
        v_beta = self.out_of(v * column)
        k_beta = self.out_of(k * column * self.exp(G))
        u = self.out_of(product("hij,jhv->ihv", inverse, v_beta))
        w = product("hij,jhk->ihk", self.operand(inverse), self.operand(k_beta))
        w = self.out_of(w)
        handed = self.as_read(state)
        write = u - product("jhk,hvk->jhv", self.operand(w), handed)
        fresh = self.out_of(write)
        keys, left = self.kept(k, write, G)
        decay = np.swapaxes(self.exp(G[-1])[None], 0, 1)
        after = state * decay + product(
            "jhv,jhk->hvk", self.operand(self.out_of(left)), self.operand(keys)
        )
        y = self.read(q, G, handed, pairs, fresh)
        width, rows = self.sizes.chunk, np.moveaxis(inverse, 0, 1)
        wide = np.zeros((*rows.shape[:2], width), F)
        wide[..., : rows.shape[2]] = rows
        found = {"u": u, "w": w, "v_new": fresh, "scan_output": self.out_of(y)}
        if self.precision == "fp32":
            # what products read of these is not what is stored
            del found["w"], found["v_new"]
        return after, found | {"inverse": wide}

    def pairs(self, q, k, rate, G):
        """A, and the weights of pairs that are stored: (heads, tokens, tokens)."""
        tokens = len(q)
        g = G[..., 0].T
        apart = self.exp(np.minimum(g[:, :, None] - g[:, None], F(0)))
        if self.pairs_in_tf32:
            alike = product("ihk,jhk->hij", cut(k * rate[..., None]), k) * apart
        else:
            alike = product("ihk,jhk->hij", k, k) * apart * rate.T[..., None]
        seen = product("ihk,jhk->hij", q, k) * apart
        below = np.tril(np.ones((tokens, tokens), F), -1)
        return alike * below, self.out_of(np.tril(seen))

    def paired(self, x):
        return cut(x) if self.pairs_in_tf32 else x

    def merged(self, x):
        return cut(x) if self.merges_in_tf32 else x

    def inverse(self, system):
        """(1 + A)^-1 by tiles of 16: substitution, and products of tiles."""
        tokens = system.shape[-1]
        count = -(-tokens // TILE)
        found = np.zeros_like(system)
        at = [slice(i * TILE, min((i + 1) * TILE, tokens)) for i in range(count)]
        for i in range(count):
            own = system[:, at[i], at[i]]
            tile = np.broadcast_to(np.eye(own.shape[-1], dtype=F), own.shape).copy()
            for row in range(1, own.shape[-1]):
                tile[:, row] -= product("hj,hjk->hk", own[:, row], tile)
            found[:, at[i], at[i]] = tile
        dot = lambda x, y: product("hij,hjk->hik", self.merged(x), self.merged(y))
        for apart in range(1, count):
            for i in range(apart, count):
                j = i - apart
                total = F(0)
                for m in range(j, i):
                    total = total + dot(system[:, at[i], at[m]], found[:, at[m], at[j]])
                found[:, at[i], at[j]] = -dot(found[:, at[i], at[i]], total)
        return found

    def kept(self, k, write, G):
        """Keys and writes as they are multiplied for the chunk's end."""
        return k, write * self.exp(G[-1] - G)

    def read(self, q, G, handed, pairs, fresh):
        scale = F(q.shape[2] ** -0.5)
        before = product("ihk,hvk->ihv", q, handed) * self.exp(G)
        return before * scale + product("hij,jhv->ihv", pairs, fresh) * scale

    def gated(self, y, z):
        square = np.mean(y.astype(np.float64) ** 2, axis=-1, keepdims=True).astype(F)
        hat = y / np.sqrt(square + F(self.sizes.gate_norm_epsilon))
        z = z.reshape(y.shape)
        found = hat * self.w["gate_norm"] * self.output_gate(z)
        return self.out_of(found.reshape(len(y), -1))

    def output_gate(self, z):
        return silu(z)


class Sglang(Delta):
    """SGLang's: rates in the model's format, merges of tiles in TF32."""

    rates_rounded, pairs_in_tf32, merges_in_tf32 = True, False, True


class Kimi(Delta):
    """Kimi Linear of both stacks: a gate for every channel of a key."""

    merges_in_tf32 = True
    conv_products_rounded = False
    exp: Any = staticmethod(np.exp2)
    in_logs = LOG2_E

    def key_heads(self) -> int:
        return self.heads

    def gate_inputs(self, x, project):
        found = {}
        for site, name in (("forget", "f"), ("z", "g")):
            low = found[f"{site}_low"] = project(f"{name}_down")
            found[site] = self.out_of(product("tc,rc->tr", low, self.w[f"{name}_up"]))
        return found

    def gate(self, seen):
        step = softplus(seen["forget"] + self.w["dt_bias"])
        step = step.reshape(len(step), self.heads, -1)
        return -np.exp(self.w["A_log"])[:, None] * step

    def pairs(self, q, k, rate, G):
        tokens, heads = len(q), self.heads
        system, seen = (np.zeros((heads, tokens, tokens), F) for _ in range(2))
        scale = F(q.shape[2] ** -0.5)
        for first in range(0, tokens, TILE):
            rows = slice(first, min(first + TILE, tokens))
            since = self.exp(G[rows] - G[first])
            front = self.exp(G[first] - G[:first])
            earlier = self.paired(k[:first] * front)
            for into, x in ((system, k), (seen, q)):
                later = self.paired(x[rows] * since)
                into[:, rows, :first] = product("ihk,jhk->hij", later, earlier)
            apart = G[rows][:, None] - G[rows][None]
            faded = k[rows][None] * self.exp(np.minimum(apart, F(0)))
            for into, x in ((system, k), (seen, q)):
                into[:, rows, rows] = product("ihk,ijhk->hij", x[rows], faded)
        below = np.tril(np.ones((tokens, tokens), F), -1)
        system = system * rate.T[..., None] * below
        return system, self.out_of(np.tril(seen) * scale)

    def kept(self, k, write, G):
        return self.out_of(k * self.exp(G[-1] - G)), write

    def read(self, q, G, handed, pairs, fresh):
        scaled = self.scaled(q * F(q.shape[2] ** -0.5))
        reads = self.operand(self.out_of(scaled * self.exp(G)))
        before = product("ihk,hvk->ihv", reads, handed)
        return before + product("hij,jhv->ihv", pairs, fresh)

    def scaled(self, q):
        return self.out_of(q)

    def output_gate(self, z):
        return sigmoid(z)
