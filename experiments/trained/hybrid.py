"""A hybrid of Mamba-2, attention and MLPs: mamba_ssm's settings, and torch for a CPU.

arXiv:2406.07887's mix of layers, 43 % Mamba-2, 7 % attention and 50 % MLP, is one of
seven mixers being attention and an MLP after each: 6, 1 and 7 of 14. mamba_ssm's own
`MambaLMHeadModel` is that network. Attention has no positions, as in the paper; unlike
there MLPs are gated (mamba_ssm has no others) and every head has keys of its own.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from .shapes import ATTENTION_HEADS, ATTENTION_LAYER, VOCABULARY, Shape


_EPSILON = 1e-5


def with_attention(settings: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """config.json of a pure Mamba-2 in mamba_ssm's layout, made that of the hybrid."""
    return settings | {
        "d_intermediate": shape.feed_forward,
        "attn_layer_idx": [ATTENTION_LAYER],
        "attn_cfg": {
            "causal": True,
            "num_heads": ATTENTION_HEADS,
            "qkv_proj_bias": False,
            "out_proj_bias": False,
        },
    }


class Attention(torch.nn.Module):
    """mamba_ssm's MHA without positions: queries, keys and values in one projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj = torch.nn.Linear(width, 3 * width, bias=False)
        self.out_proj = torch.nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: batch x length x width."""
        heads = self.in_proj(x).unflatten(-1, (3, ATTENTION_HEADS, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class GatedMlp(torch.nn.Module):
    """mamba_ssm's GatedMLP: the second half of fc1 is the gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = torch.nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: batch x length x width."""
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(up * F.silu(gate))


class Block(torch.nn.Module):
    """A mixer and an MLP, each after a norm and added to the stream."""

    def __init__(self, mixer: torch.nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width, _EPSILON)
        self.mixer = mixer
        self.norm2 = torch.nn.RMSNorm(width, _EPSILON)
        self.mlp = GatedMlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: batch x length x width."""
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.norm2(x))


class Backbone(torch.nn.Module):
    """The embedding, the blocks and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, shape.width)
        mixers = _mixers(shape)
        sizes = (shape.width, shape.feed_forward)
        self.layers = torch.nn.ModuleList(Block(mixer, *sizes) for mixer in mixers)
        self.norm_f = torch.nn.RMSNorm(shape.width, _EPSILON)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: batch x length."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Hybrid(torch.nn.Module):
    """The network on a CPU, its tensors named as mamba_ssm names them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCABULARY)
        self.backbone = Backbone(shape)
        self.lm_head = torch.nn.Linear(shape.width, VOCABULARY, bias=False)
        torch.nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Logits for the byte after each position."""
        return SimpleNamespace(logits=self.lm_head(self.backbone(ids)))


def _mixers(shape: Shape) -> list[torch.nn.Module]:
    """transformers' Mamba-2 mixers, and attention in its place."""
    import transformers
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = transformers.Mamba2Config(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        state_size=shape.state,
        num_heads=shape.inner // shape.head_dim,
        head_dim=shape.head_dim,
        n_groups=1,
        chunk_size=256,
        layer_norm_epsilon=_EPSILON,
    )
    return [
        Attention(shape.width) if i == ATTENTION_LAYER else Mamba2Mixer(config, i)
        for i in range(shape.layers)
    ]
