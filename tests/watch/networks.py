"""Small networks of other people's sorts, with state-space blocks inside.

Their blocks are written for this: Mamba-1 in torch, token by token; Mamba-3 through
the NumPy oracle; Mamba-2 is transformers' own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from oracles.networks.mamba3 import mamba3, shapes


WIDTH, LENGTH, CLASSES = 8, 32, 5


class Mamba1Block(nn.Module):
    """A port of Mamba-1: the parameters are named and shaped as everywhere."""

    def __init__(self, width: int = WIDTH, d_state: int = 4, rank: int = 2):
        super().__init__()
        inner = 2 * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(0.5 * torch.randn(inner, d_state))
        self.D = nn.Parameter(torch.randn(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def activated(self, x: torch.Tensor) -> torch.Tensor:
        """What is behind the convolution."""
        return F.silu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to the same."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        u = self.activated(u)
        sizes = [self.dt_proj.in_features, *[self.A_log.shape[1]] * 2]
        dt, B, C = self.x_proj(u).split(sizes, dim=-1)
        dt = F.softplus(self.dt_proj(dt)).float()
        A = -torch.exp(self.A_log.float())
        state, y = torch.zeros(len(x), *A.shape), []
        for t in range(x.shape[1]):
            decay = torch.exp(dt[:, t, :, None] * A)
            fed = (dt[:, t] * u[:, t].float())[..., None] * B[:, t, None].float()
            state = decay * state + fed
            y.append((state * C[:, t, None].float()).sum(-1))
        scanned = torch.stack(y, 1) + u.float() * self.D.float()
        return self.out_proj((scanned * F.silu(z.float())).to(x.dtype))


class Mamba3Block(nn.Module):
    """A port of Mamba-3, with the attributes that mamba_ssm's class has."""

    num_bc_heads, chunk_size, A_floor = 1, 16, 1e-4

    def __init__(self, width: int = WIDTH, d_state: int = 8, headdim: int = 4):
        super().__init__()
        self.ssm = {"d_state": d_state, "headdim": headdim, "ngroups": 1}
        names = shapes(
            {"ssm_cfg": self.ssm, "d_model": width, "vocab_size": 1, "n_layer": 1}
        )
        prefix = "backbone.layers.0.mixer."
        for name, shape in names.items():
            if name.startswith(prefix):
                self._draw(name.removeprefix(prefix), shape)

    def _draw(self, name: str, shape: tuple[int, ...]) -> None:
        module, _, leaf = name.rpartition(".")
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.3
        value = scale * torch.randn(shape)
        place: Any = self
        if module:
            if not hasattr(self, module):
                self.add_module(module, nn.Module())
            place = getattr(self, module)
        if module.endswith("norm"):
            value, place.eps = value + 1.0, 1e-5
        place.register_parameter(leaf, nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to the same."""
        weights = {n: p.detach().double().numpy() for n, p in self.named_parameters()}
        rows = [mamba3(row.double().numpy(), weights, self.ssm) for row in x.detach()]
        return torch.from_numpy(np.stack(rows)).to(x.dtype)


def mamba2_block(width: int = WIDTH) -> nn.Module:
    """transformers' Mamba-2, with weights that no constructor makes."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=width,
        num_heads=4,
        head_dim=4,
        state_size=8,
        n_groups=2,
        chunk_size=16,
    )
    block = Mamba2Mixer(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return block


class BothWays(nn.Module):
    """A byte classifier that reads both ways, with a block a way."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.forth, self.back = Mamba1Block(), Mamba1Block()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, seq) to logits (batch, classes)."""
        x = self.embed(tokens)
        read = self.norm(x)
        x = x + self.forth(read) + self.back(read.flip(1)).flip(1)
        return self.head(x.mean(1))


class FourWays(nn.Module):
    """Image restoration: one block reads rows and columns, forth and back."""

    def __init__(self):
        super().__init__()
        self.block = Mamba1Block()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) to the same."""
        batch, high, wide, channels = image.shape
        rows = image.reshape(batch, -1, channels)
        columns = image.transpose(1, 2).reshape(batch, -1, channels)
        seen = self.block(rows) + self.block(rows.flip(1)).flip(1)
        other = self.block(columns) + self.block(columns.flip(1)).flip(1)
        other = other.reshape(batch, wide, high, channels).transpose(1, 2)
        return image + seen.reshape(image.shape) + other


class PostNormUNet(nn.Module):
    """A U-net of Mamba-2 whose norms come behind the blocks."""

    def __init__(self):
        super().__init__()
        self.down, self.up = mamba2_block(), mamba2_block()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to a mask of the same shape."""
        skip = self.norms[0](x + self.down(x))
        half = skip[:, ::2]
        wide = self.norms[1](half + self.up(half)).repeat_interleave(2, dim=1)
        return torch.sigmoid(skip + wide)


class Regressor(nn.Module):
    """A motion sensor's regressor of Mamba-3."""

    def __init__(self):
        super().__init__()
        self.block = Mamba3Block()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to (batch, 3)."""
        return self.head(self.block(x)[:, -1])


class InsideATransformer(nn.Module):
    """Attention, then a block behind its own RMSNorm, batch in the middle."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.block = SequenceFirst()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(seq, batch, width) to the same."""
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.block(self.norm(x))


class SequenceFirst(Mamba1Block):
    """The same block for (seq, batch, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(seq, batch, width) to the same."""
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class OtherNames(nn.Module):
    """Mamba-1 under names that nobody else has."""

    def __init__(self):
        super().__init__()
        self.core = [Mamba1Block()]  # a list: no submodule
        for name, value in self.core[0].named_parameters():
            self.register_parameter(name.replace(".", "_of_"), value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to the same."""
        return self.core[0](x)


def made(network: Callable[[], Any], seed: int = 0) -> Any:
    """A network with seeded weights."""
    torch.manual_seed(seed)
    return network().eval()


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """A seeded normal input."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def selective_scan_in_torch(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False
):
    """A scan of one's own, called like `selective_scan_fn`; B and C by group."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    dt = F.softplus(delta) if delta_softplus else delta
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in (B, C))
    state, y = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        decay = torch.exp(dt[..., t, None] * A)
        state = decay * state + (dt * u)[..., t, None] * B[..., t]
        y.append((state * C[..., t]).sum(-1))
    out = torch.stack(y, -1)
    out = out if D is None else out + u * D[:, None]
    return out if z is None else out * F.silu(z)


def chunk_scan_in_torch(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False
):
    """A scan of one's own, called like `mamba_chunk_scan_combined`."""
    del chunk_size
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    B, C = (a.repeat_interleave(x.shape[2] // a.shape[2], dim=2) for a in (B, C))
    state, y = torch.zeros(*x[:, 0].shape, B.shape[-1]), []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        fed = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = decay * state + fed
        y.append((state * C[:, t, :, None]).sum(-1))
    out = torch.stack(y, 1)
    out = out if D is None else out + x * D[:, None]
    return out if z is None else out * F.silu(z)


class FourDirections(nn.Module):
    """VMamba's kind: four directions in one scan, a group each, an offset on dt and
    nothing else around it."""

    def __init__(self, directions: int = 4, d_state: int = 4):
        super().__init__()
        channels = directions * WIDTH
        self.x_proj = nn.Linear(WIDTH, directions * (2 * d_state + WIDTH))
        self.rates = nn.Parameter(0.5 * torch.randn(channels, d_state))
        self.skip = nn.Parameter(torch.randn(channels))
        self.offset = nn.Parameter(torch.randn(channels))
        self.scan, self.shape = selective_scan_in_torch, (directions, d_state)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) to the same."""
        batch, high, wide, channels = image.shape
        directions, d_state = self.shape
        rows = image.reshape(batch, -1, channels)
        columns = image.transpose(1, 2).reshape(batch, -1, channels)
        ways = torch.stack([rows, columns, rows.flip(1), columns.flip(1)], 1)
        made = self.x_proj(rows).reshape(batch, high * wide, directions, -1)
        dt, B, C = made.split([WIDTH, d_state, d_state], dim=-1)
        y = self.scan(
            ways.transpose(2, 3).reshape(batch, directions * channels, -1),
            dt.permute(0, 2, 3, 1).reshape(batch, directions * channels, -1),
            -torch.exp(self.rates),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            self.skip,
            delta_bias=self.offset,
            delta_softplus=True,
        )
        y = y.reshape(batch, directions, channels, -1).sum(1)
        return image + y.transpose(1, 2).reshape(image.shape)


class Heads(nn.Module):
    """A scan of Mamba-2 with a gate inside, and no convolution."""

    def __init__(self, heads: int = 2, d_state: int = 8, groups: int = 1):
        super().__init__()
        self.sizes = heads, WIDTH // heads, d_state, groups
        rows = 2 * WIDTH + heads + 2 * groups * d_state
        self.made = nn.Linear(WIDTH, rows)
        self.rates = nn.Parameter(0.5 * torch.randn(heads))
        self.skip, self.offset = (nn.Parameter(torch.randn(heads)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, width) to the same."""
        heads, _, d_state, groups = self.sizes
        wide = groups * d_state
        u, z, dt, B, C = self.made(x).split([WIDTH, WIDTH, heads, wide, wide], dim=-1)
        by = lambda a, parts: a.reshape(*a.shape[:2], parts, -1)
        y = chunk_scan_in_torch(
            by(u, heads),
            dt,
            -torch.exp(self.rates),
            by(B, groups),
            by(C, groups),
            16,
            D=self.skip,
            z=by(z, heads),
            dt_bias=self.offset,
            dt_softplus=True,
        )
        return x + y.flatten(2)
