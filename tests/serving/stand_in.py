"""Servers as small torch modules: vLLM's and SGLang's mixers, blocks and metadata.

What they compute is Mamba-1 and Mamba-2 token by token in fp32, with the stores that
mamba_ssm's kernels make in the activations' format: written down here anew, and no
kernel of either server. Blocks, drafts and packed batches are laid out as theirs.
"""

import math
from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn


Part = namedtuple("Part", "request start stop step blocks accepted")
"""One request's share of a call: tokens from `start`, its blocks, and with drafts how
many tokens of the call before were accepted."""


def part(request, start, stop, *blocks, step=False, accepted=None):
    return Part(request, start, stop, step, blocks, accepted)


def silu(x):
    """In fp64 and back: vectors of fp32 end in other instructions than they begin."""
    return nn.functional.silu(x.double()).float()


class Linear(nn.Module):
    """A product, rounded once: a row's does not depend on how many there are."""

    def __init__(self, weight, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.asarray(weight)).to(dtype), False)

    def forward(self, x):
        return (x.double() @ self.weight.double().T).to(x.dtype), None


class Norm(nn.Module):
    """RMS norm; with a residual it is added first, and both are given back."""

    def __init__(self, weight, epsilon, dtype):
        super().__init__()
        self.weight = torch.tensor(np.asarray(weight)).to(dtype)
        self.epsilon = epsilon

    def forward(self, x, residual=None):
        stream = x if residual is None else (x.float() + residual.float()).to(x.dtype)
        wide = stream.double()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        out = (wide * scale * self.weight.double()).to(x.dtype)
        return out if residual is None else (out, stream)


class GatedNorm(nn.Module):
    def __init__(self, weight, epsilon, groups, dtype):
        super().__init__()
        self.weight = torch.tensor(np.asarray(weight)).to(dtype)
        self.epsilon, self.groups = epsilon, groups

    def forward(self, y, gate):
        wide = y.double() * silu(gate.float()).double()
        apart = wide.reshape(len(wide), self.groups, -1)
        apart = apart * torch.rsqrt(
            apart.square().mean(-1, keepdim=True) + self.epsilon
        )
        return (apart.reshape(wide.shape) * self.weight.double()).to(y.dtype)


class Conv(nn.Module):
    def __init__(self, weight, bias, dtype):
        super().__init__()
        weight = torch.tensor(np.asarray(weight)).to(dtype)
        self.weight = nn.Parameter(weight[:, None], False)
        self.bias = torch.tensor(np.asarray(bias)).to(dtype)

    def over(self, padded):
        """(width - 1 + n, channels) -> (n, channels) with SiLU."""
        taps = self.weight[:, 0].float()
        width, n = taps.shape[1], len(padded) - taps.shape[1] + 1
        total = self.bias.float().expand(n, -1).clone()
        for k in range(width):
            total = total + padded[k : k + n].float() * taps[:, k]
        return silu(total).to(padded.dtype)


class Mixer(nn.Module):
    """What both kinds have: blocks, and one request after another."""

    def __init__(self, dtype, cache, spec, blocks, window_dtype):
        super().__init__()
        self.dtype, self.spec = dtype, spec
        self._cache_dtype, self._window_dtype = cache, window_dtype or dtype
        self._blocks = blocks

    def _make_cache(self, state):
        channels, _, width = self.conv1d.weight.shape
        windows = (self._blocks, width - 1 + self.spec, channels)
        # what was there before is nobody's
        noise = torch.Generator().manual_seed(7)
        draw = lambda shape, dtype: torch.randn(shape, generator=noise).to(dtype)
        self.kv_cache = (
            draw(windows, self._window_dtype),
            draw((self._blocks, *state), self._cache_dtype),
        )

    def _sequences(self, inputs, rows, given):
        """Each request's conv output and scan, with what its blocks hold."""
        windows, states = self.kv_cache if given is None else given
        width = self.conv1d.weight.shape[-1]
        out = []
        for one, own in rows:
            u = inputs[own]
            offset = max((one.accepted or 1) - 1, 0)
            block, first = one.blocks[offset if one.step else 0], one.blocks[0]
            window = windows[first][offset : offset + width - 1].to(u.dtype).clone()
            state = states[block].float().clone()
            if one.start == 0 and not one.step:
                window, state = torch.zeros_like(window), torch.zeros_like(state)
            padded = torch.cat([window, u])
            mixed = self.conv1d.over(padded)
            y = []
            if not one.step:
                state, y = self.prefill(state, mixed, own)
            for t in range(len(u)) if one.step else ():
                state, row = self.token(state, mixed[t], own[t])
                y.append(row)
                if one.accepted is not None:
                    states[one.blocks[t]] = state.to(states.dtype)
            if not one.step or one.accepted is None:
                states[first] = state.to(states.dtype)
            if one.step and one.accepted is not None:
                kept = padded[1:]
                windows[first][: len(kept)] = kept.to(windows.dtype)
            else:
                windows[first][: width - 1] = padded[len(u) :].to(windows.dtype)
            out.append(torch.stack(y))
        return torch.cat(out)

    def prefill(self, state, mixed, rows):
        y = []
        for t, row in enumerate(rows):
            state, out = self.token(state, mixed[t], row)
            y.append(out)
        return state, y


class MambaMixer(Mixer):
    """Mamba-1, which writes into what it is given."""

    def __init__(self, raw, sizes, prefix, context, dtype, cache, **more):
        super().__init__(dtype, cache, **more)
        self.sizes, self.prefix, self.context = sizes, prefix, context
        self.in_proj = Linear(raw["in_proj"], dtype)
        self.conv1d = Conv(raw["conv_weight"], raw["conv_bias"], dtype)
        self.x_proj, self.dt_proj = (
            Linear(raw[n], dtype) for n in ("x_proj", "dt_proj")
        )
        self.out_proj = Linear(raw["out_proj"], dtype)
        self.A = -torch.exp(torch.tensor(np.asarray(raw["A_log"])).float())
        self.D = torch.tensor(np.asarray(raw["D"])).float()
        self.bias = torch.tensor(np.asarray(raw["dt_bias"])).to(dtype).float()
        self._make_cache((sizes.d_inner, sizes.d_state))

    def forward(self, hidden, output):
        xz, _ = self.in_proj(hidden)
        u, self.z = xz.chunk(2, -1)
        y = self._sequences(u, self.context().rows, None)
        output[: len(y)] = self.out_proj(y)[0]

    def token(self, state, u, row):
        n, rank = self.sizes.d_state, self.sizes.dt_rank
        low = self.x_proj(u[None])[0][0]
        dt = self.dt_proj(low[None, :rank])[0][0].float() + self.bias
        dt = nn.functional.softplus(dt)
        B, C = low[rank : rank + n].float(), low[rank + n :].float()
        x = u.float()
        state = torch.exp(dt[:, None] * self.A) * state + (dt * x)[:, None] * B
        y = state @ C + self.D * x
        y = (y * silu(self.z[row].float())).to(u.dtype)
        return state, y


class MambaMixer2(Mixer):
    """Mamba-2, in vLLM's way of being called and in SGLang's."""

    def __init__(self, raw, sizes, prefix, context, dtype, cache, **more):
        super().__init__(dtype, cache, **more)
        self.sizes, self.prefix, self.context = sizes, prefix, context
        self.in_proj = Linear(raw["in_proj"], dtype)
        self.conv1d = Conv(raw["conv_weight"], raw["conv_bias"], dtype)
        self.norm = GatedNorm(
            raw["gate_norm"], sizes.gate_norm_epsilon, sizes.norm_groups, dtype
        )
        self.out_proj = Linear(raw["out_proj"], dtype)
        # as mamba_ssm, whose flow these dumps follow; vLLM reads A_log in fp32
        A_log = torch.tensor(np.asarray(raw["A_log"])).to(dtype)
        self.A = -torch.exp(A_log.float())
        self.D = torch.tensor(np.asarray(raw["D"])).float()
        self.bias = torch.tensor(np.asarray(raw["dt_bias"])).to(dtype).float()
        head_dim = sizes.d_inner // sizes.heads
        self._make_cache((sizes.heads, head_dim, sizes.d_state))

    def forward(self, hidden_states, output=None, layer_cache=None, metadata=None):
        own = self.sizes
        zxbcdt, _ = self.in_proj(hidden_states)
        inputs = zxbcdt[:, own.d_inner : -own.heads]
        self.dt = zxbcdt[:, -own.heads :]
        cache = None
        if layer_cache is not None:
            cache = layer_cache.conv[0].transpose(-1, -2), layer_cache.temporal
        y = self._sequences(inputs, self.context().rows, cache)
        out = self.out_proj(self.norm(y, zxbcdt[:, : own.d_inner]))[0]
        return out if layer_cache is None else (out, None, None)

    def prefill(self, state, mixed, rows):
        """Chunk by chunk, with the stores of mamba_ssm's kernels."""
        own, y = self.sizes, []
        rounded = lambda a: a.to(self.dtype).float()
        spread = lambda a: a.reshape(len(a), own.groups, -1).repeat_interleave(
            own.heads // own.groups, 1
        )
        for first in range(0, len(rows), own.chunk):
            part = mixed[first : first + own.chunk].float()
            x = part[:, : own.d_inner].reshape(len(part), own.heads, -1)
            B, C = (spread(a) for a in part[:, own.d_inner :].chunk(2, -1))
            dt = self.dt[list(rows[first : first + own.chunk])].float() + self.bias
            dt = nn.functional.softplus(dt)
            passed = torch.cumsum(dt * self.A, 0)
            apart = (passed[:, None] - passed[None]).clamp(max=0)
            weight = torch.einsum("lhn,shn->lsh", C, B) * torch.exp(apart) * dt[None]
            causal = torch.ones(len(part), len(part)).tril()[..., None]
            weight = rounded(weight * causal)
            since = torch.exp(passed)[..., None]
            before = torch.einsum("lhn,hpn->lhp", C, rounded(state)) * since
            inside = torch.einsum("lsh,shp->lhp", weight, x)
            y += list((before + inside + self.D.reshape(own.heads, -1) * x).flatten(1))
            scale = (torch.exp(passed[-1] - passed) * dt)[..., None]
            made = torch.einsum("shp,shn->hpn", x, rounded(B * scale))
            state = state * torch.exp(passed[-1])[:, None, None] + made
        return state, [row.to(mixed.dtype) for row in y]

    def token(self, state, u, row):
        own = self.sizes
        heads, groups, n = own.heads, own.groups, own.d_state
        x = u[: own.d_inner].float().reshape(heads, -1)
        B, C = (
            part.float().reshape(groups, n).repeat_interleave(heads // groups, 0)
            for part in u[own.d_inner :].chunk(2)
        )
        dt = nn.functional.softplus(self.dt[row].float() + self.bias)
        decay = torch.exp(dt * self.A)[:, None, None]
        state = decay * state + (dt[:, None] * x)[..., None] * B[:, None]
        y = torch.einsum("hpn,hn->hp", state, C) + self.D.reshape(heads, -1) * x
        return state, y.reshape(-1).to(u.dtype)


class Block(nn.Module):
    def __init__(self, mixer, norm, backend):
        super().__init__()
        self.mixer, self.norm, self.backend = mixer, norm, backend

    def forward(self, hidden, residual):
        if residual is None:
            residual, hidden = hidden, self.norm(hidden)
        else:
            hidden, residual = self.norm(hidden, residual)
        if self.backend is not None:  # SGLang's: no call of the module
            return self.backend(self.mixer, hidden), residual
        if isinstance(self.mixer, MambaMixer2):
            return self.mixer(hidden), residual
        output = torch.empty_like(hidden)
        self.mixer(hidden, output)
        return output, residual


class Network(nn.Module):
    def __init__(self, model, blocks, dtype):
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.dtype = dtype
        rows = np.asarray(model.embedding_rows(np.arange(model.config.vocab_size)))
        self.embedding = torch.tensor(rows).to(dtype)

    def forward(self, input_ids=None, positions=None, forward_batch=None):
        hidden, residual = self.embedding[input_ids], None
        for block in self.layers:
            hidden, residual = block(hidden, residual)
        return (hidden.float() + residual.float()).to(self.dtype)

    def compute_logits(self, hidden):
        return (hidden.double() @ self.embedding.double().T).float()


@dataclass
class Server:
    """One model, its blocks, and requests that are run in whatever calls a test says.

    `texts` are the requests' tokens. `before` is run in front of a call, with its
    number: copies of blocks, and faults.
    """

    model: Any
    texts: dict[str, np.ndarray]
    precision: str = "fp32"
    cache: torch.dtype = torch.float32
    spec: int = 0
    window_dtype: Any = None
    sglang: bool = False
    before: dict[int, Callable] = field(default_factory=dict)

    def __post_init__(self):
        names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = names[self.precision]
        kinds = {"mamba1": MambaMixer, "mamba2": MambaMixer2}
        self.now, blocks = None, []
        for layer, sizes in enumerate(self.model.config.sublayers):
            raw = self.model.raw_parameters(layer)
            mixer = kinds[sizes.kind](
                raw, sizes, f"layers.{layer}.mixer", lambda: self.now, dtype,
                self.cache, spec=self.spec, blocks=12, window_dtype=self.window_dtype,
            )  # fmt: skip
            norm = Norm(raw["norm"], sizes.norm_epsilon, dtype)
            blocks.append(Block(mixer, norm, self._backend if self.sglang else None))
        self.network = Network(self.model, blocks, dtype)
        self.request_ids: list[str] = []

    @property
    def mixers(self):
        return [block.mixer for block in self.network.layers]

    @property
    def worker(self):
        """What vLLM's `collective_rpc` gives to a function."""
        batch = SimpleNamespace(req_ids=self.request_ids)
        runner = SimpleNamespace(get_model=lambda: self.network, input_batch=batch)
        return SimpleNamespace(model_runner=runner)

    def context(self):
        """vLLM's forward context."""
        return SimpleNamespace(
            attn_metadata={one.prefix: self.now.metadata for one in self.mixers}
        )

    def run(self, *calls, around=None):
        """Run calls, each a list of parts; decoding ones go first in vLLM, last in
        SGLang."""
        with around or nullcontext(), torch.no_grad():
            for number, parts in enumerate(calls):
                parts = sorted(parts, key=lambda p: p.step == self.sglang)
                if number in self.before:
                    self.before[number](self)
                self._call(parts)

    def copy(self, source, target):
        """A copy of a block's bytes, in every layer."""
        for one in self.mixers:
            for tensor in one.kv_cache:
                tensor[target] = tensor[source]

    def _call(self, parts):
        rows, first = [], 0
        for one in parts:
            size = one.stop - one.start
            rows.append((one, range(first, first + size)))
            first += size
        ids = [self.texts[p.request][p.start : p.stop] for p in parts]
        places = [np.arange(p.start, p.stop) for p in parts]
        self.request_ids[:] = [f"{p.request}-0a1b2c3d" for p in parts]
        self.now = SimpleNamespace(rows=rows, metadata=metadata(parts, self.spec))
        tensors = {
            "input_ids": torch.tensor(np.concatenate(ids)),
            "positions": torch.tensor(np.concatenate(places)),
        }
        if self.sglang:
            tensors["forward_batch"] = forward_batch(parts)
        hidden = self.network(**tensors)
        last = [own[-1] for one, own in rows for _ in [0]]
        drafted = [i for one, own in rows if one.accepted for i in own]
        self.network.compute_logits(hidden[drafted or last])

    def _backend(self, mixer, hidden):
        windows, states = mixer.kv_cache
        cache = SimpleNamespace(conv=[windows.transpose(-1, -2)], temporal=states)
        blocks = torch.tensor([one.blocks[0] for one, _ in self.now.rows])
        given = SimpleNamespace(mamba_cache_indices=blocks)
        return mixer.forward(hidden_states=hidden, layer_cache=cache, metadata=given)[0]


def metadata(parts, spec):
    """vLLM's, of one call."""
    steps = [p for p in parts if p.step]
    prefills = [p for p in parts if not p.step]
    ends = lambda some: torch.tensor(np.cumsum([0, *(p.stop - p.start for p in some)]))
    padded = [[*p.blocks, *[0] * (1 + spec - len(p.blocks))] for p in steps]
    return SimpleNamespace(
        num_decodes=len(steps),
        num_prefills=len(prefills),
        num_decode_tokens=sum(p.stop - p.start for p in steps),
        num_prefill_tokens=sum(p.stop - p.start for p in prefills),
        query_start_loc_d=ends(steps) if steps and spec else None,
        query_start_loc_p=ends(prefills) if prefills else None,
        has_initial_states_p=torch.tensor([p.start > 0 for p in prefills]),
        state_indices_tensor_d=torch.tensor(padded) if steps else None,
        state_indices_tensor_p=torch.tensor([p.blocks[0] for p in prefills]),
        num_accepted_tokens=torch.tensor([p.accepted or 1 for p in steps])
        if spec and steps
        else None,
    )


def forward_batch(parts):
    """SGLang's, of one call."""
    decoding = all(p.step for p in parts)
    extended = [p for p in parts if not p.step]
    mode = SimpleNamespace(is_decode=lambda: decoding, is_target_verify=lambda: False)
    return SimpleNamespace(
        rids=[p.request for p in parts],
        batch_size=len(parts),
        forward_mode=mode,
        extend_seq_lens_cpu=[p.stop - p.start for p in extended],
        extend_prefix_lens_cpu=[p.start for p in extended],
    )


def quantised(state):
    """SGLang's int8 store there and back, in NumPy: one scale a (head, state)."""
    wide = state.float().numpy()
    amax = np.maximum(np.abs(wide).max(-2, keepdims=True), np.float32(1e-8))
    scale = torch.tensor(amax / np.float32(127)).to(state.dtype)
    scale = scale.float().numpy()
    q = np.clip(np.rint(wide / scale), -127, 127).astype(np.int8)
    assert math.isfinite(float(scale.max()))
    return torch.tensor(q.astype(np.float32) * scale).to(state.dtype)
