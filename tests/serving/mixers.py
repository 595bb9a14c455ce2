"""Mixers as small torch modules: Mamba-1 and Mamba-2, in blocks as servers keep them.

Token by token, or chunk by chunk in a prefill of Mamba-2, in fp32, with the stores that
mamba_ssm's kernels make in the activations' format: written down here anew, and no
kernel of either server.
"""

from typing import Any

import numpy as np
import torch
from torch import nn


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
    weight: Any
    bias: Any

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

    conv1d: Any
    kv_cache: Any
    token: Any

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
        assert residual is not None
        return (hidden.float() + residual.float()).to(self.dtype)

    def compute_logits(self, hidden):
        return (hidden.double() @ self.embedding.double().T).float()
