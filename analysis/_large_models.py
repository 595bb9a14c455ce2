"""Large hybrids of random weights, at published widths, as deep as is asked for."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._first_answer_models import quickly_drawn, save


Shapes = dict[str, tuple[int, ...]]

NEMOTRON = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
"""Nemotron-H-8B's 24 M (Mamba-2), 4 * (attention) and 24 - (MLP), as NVIDIA's
NemotronHModelProvider8B names them."""
ATTENTION_OF_GRANITE = (5, 15, 25, 35)
GRANITE = 80
"""Sublayers of Granite-4-H-Small: 36 Mamba-2 and 4 attentions, each with experts
behind."""
WHOLE = {"nemotron-h-8b": len(NEMOTRON), "granite-4-h-small": GRANITE}
WHOLE["granite-4-h-tiny"] = GRANITE


class Widths(NamedTuple):
    """Of a Mamba-2 with convolution over x, B and C, in heads of 64 channels."""

    d_model: int
    heads: int
    groups: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    d_state: int = 128

    def mamba2(self, prefix: str) -> Shapes:
        """Stored names and shapes of the mixer."""
        inner = 64 * self.heads
        conv = inner + 2 * self.groups * self.d_state
        own = {
            "in_proj.weight": (inner + conv + self.heads, self.d_model),
            "conv1d.weight": (conv, 1, 4),
            "conv1d.bias": (conv,),
            "dt_bias": (self.heads,),
            "A_log": (self.heads,),
            "D": (self.heads,),
            "norm.weight": (inner,),
            "out_proj.weight": (self.d_model, inner),
        }
        return {f"{prefix}.{name}": shape for name, shape in own.items()}

    def attention(self, prefix: str) -> Shapes:
        """Stored names and shapes of queries, keys, values and output."""
        inner, kv = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q": inner, "k": kv, "v": kv}
        own: Shapes = {
            f"{prefix}.{name}_proj.weight": (count, self.d_model)
            for name, count in rows.items()
        }
        return own | {f"{prefix}.o_proj.weight": (self.d_model, inner)}


class Experts(NamedTuple):
    """Of a mixture: how many, how many a token goes through, and their widths."""

    count: int
    chosen: int
    hidden: int
    shared: int
    logits_scaling: float


NEMOTRON_WIDTHS = Widths(4096, 128, 8, 32, 8, 128, 131_072)
GRANITES = {
    "granite-4-h-small": (
        Widths(4096, 128, 1, 32, 8, 128, 100_352),
        Experts(72, 10, 768, 1536, 16.0),
    ),
    "granite-4-h-tiny": (
        Widths(1536, 48, 1, 12, 4, 128, 100_352),
        Experts(64, 6, 512, 1024, 6.0),
    ),
}


def write(folder: Path, name: str, sublayers: int, *, sparse: bool = False) -> None:
    """The checkpoint, a file a layer; nothing is held but one layer.

    **Arguments:**

    - `name`: a key of `WHOLE`.
    - `sublayers`: of Nemotron the first ones of the whole, so that depths differ in
      nothing but depth; of Granite fewer than the whole are every kind in turn.
    - `sparse`: matrices are holes in the files, which take no disk and are zeros.
    """
    config, groups = (
        _nemotron(sublayers)
        if name == "nemotron-h-8b"
        else _granite(*GRANITES[name], sublayers // 2)
    )
    rng = np.random.default_rng(0)

    def drawn() -> Iterator[dict[str, Any]]:
        for group in groups:
            yield {
                key: shape
                if sparse and math.prod(shape) > 2**20
                else quickly_drawn(key, shape, rng)
                for key, shape in group.items()
            }

    save(folder, config, drawn())


def _nemotron(sublayers: int) -> tuple[dict, list[Shapes]]:
    w, hidden = NEMOTRON_WIDTHS, 21504
    pattern = NEMOTRON[:sublayers]
    config = {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "vocab_size": w.vocabulary,
        "hidden_size": w.d_model,
        "intermediate_size": hidden,
        "hybrid_override_pattern": pattern,
        "num_attention_heads": w.query_heads,
        "num_key_value_heads": w.kv_heads,
        "head_dim": w.head_dim,
        "ssm_state_size": w.d_state,
        "mamba_num_heads": w.heads,
        "mamba_head_dim": 64,
        "n_groups": w.groups,
        "chunk_size": 128,
        "torch_dtype": "bfloat16",
    }
    groups: list[Shapes] = []
    for i, kind in enumerate(pattern):
        layer = f"backbone.layers.{i}"
        mixer = f"{layer}.mixer"
        mlp: Shapes = {
            f"{mixer}.up_proj.weight": (hidden, w.d_model),
            f"{mixer}.down_proj.weight": (w.d_model, hidden),
        }
        made = {"M": w.mamba2(mixer), "*": w.attention(mixer), "-": mlp}[kind]
        groups.append({f"{layer}.norm.weight": (w.d_model,)} | made)
    rows = w.vocabulary, w.d_model
    groups.append({"backbone.embeddings.weight": rows})
    groups.append({"lm_head.weight": rows, "backbone.norm_f.weight": (w.d_model,)})
    return config, groups


def _granite(w: Widths, e: Experts, layers: int) -> tuple[dict, list[Shapes]]:
    kinds = [
        "attention"
        if (i in ATTENTION_OF_GRANITE if 2 * layers == GRANITE else i % 2)
        else "mamba"
        for i in range(layers)
    ]
    config = {
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "vocab_size": w.vocabulary,
        "hidden_size": w.d_model,
        "intermediate_size": e.hidden,
        "shared_intermediate_size": e.shared,
        "num_local_experts": e.count,
        "num_experts_per_tok": e.chosen,
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "num_attention_heads": w.query_heads,
        "num_key_value_heads": w.kv_heads,
        "position_embedding_type": "nope",
        "mamba_n_heads": w.heads,
        "mamba_d_head": 64,
        "mamba_d_state": w.d_state,
        "mamba_n_groups": w.groups,
        "mamba_d_conv": 4,
        "mamba_expand": 64 * w.heads // w.d_model,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "embedding_multiplier": 12,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125,
        "logits_scaling": e.logits_scaling,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    groups: list[Shapes] = []
    for i, kind in enumerate(kinds):
        layer = f"model.layers.{i}"
        mixer = (
            w.mamba2(f"{layer}.mamba")
            if kind == "mamba"
            else w.attention(f"{layer}.self_attn")
        )
        inside = f"{layer}.block_sparse_moe"
        groups.append(
            {f"{layer}.input_layernorm.weight": (w.d_model,)}
            | mixer
            | {
                f"{layer}.post_attention_layernorm.weight": (w.d_model,),
                f"{inside}.router.layer.weight": (e.count, w.d_model),
                f"{inside}.input_linear.weight": (e.count, 2 * e.hidden, w.d_model),
                f"{inside}.output_linear.weight": (e.count, w.d_model, e.hidden),
                f"{layer}.shared_mlp.input_linear.weight": (2 * e.shared, w.d_model),
                f"{layer}.shared_mlp.output_linear.weight": (w.d_model, e.shared),
            }
        )
    rows = w.vocabulary, w.d_model
    groups.append(
        {"model.embed_tokens.weight": rows, "model.norm.weight": (w.d_model,)}
    )
    return config, groups
