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
