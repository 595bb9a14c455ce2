"""llama.cpp's pure Mamba models and Jamba, as transformers has them.

Read in llama.cpp's `src/models/{mamba,mamba2,mamba-base,jamba}.cpp`: dt has no limits,
and the norms over dt, B and C have the epsilon of all others.
"""

from collections.abc import Sequence
from typing import Any

from ..._errors import UnsupportedCheckpointError
from ._model import FileModel
from ._names import put_attention, put_experts, put_mamba1, put_mamba2, put_mlp


_EPSILON = "attention.layer_norm_rms_epsilon"
_CONVOLUTION_BIAS = "ssm_conv1d.bias"


def _backbone(model: FileModel, model_type: str) -> dict[str, Any]:
    """Settings that both kinds have, and everything but the mixers."""
    config = model.around("backbone.embeddings.weight", "backbone.norm_f.weight")
    layers = range(model.layers)
    for i in layers:
        model.names.put(f"backbone.layers.{i}.norm.weight", f"blk.{i}.attn_norm.weight")
    mixer = model.mixer()
    return config | {
        "model_type": model_type,
        "layer_norm_epsilon": model.metadata.positive(_EPSILON),
        "state_size": mixer["state"],
        "conv_kernel": mixer["taps"],
        "expand": _expansion(mixer["inner"], config["hidden_size"]),
        "use_conv_bias": model.agreed(layers, _CONVOLUTION_BIAS),
        "use_bias": False,
        "hidden_act": "silu",
        "residual_in_fp32": True,
    }


def _expansion(inner: int, width: int) -> int | float:
    return inner // width if inner % width == 0 else inner / width


def mamba(model: FileModel) -> dict[str, Any]:
    """Mamba-1, and Falcon Mamba where norms over dt, B and C are asked for."""
    normed = model.metadata.flag("ssm.dt_b_c_rms", False)
    config = _backbone(model, "falcon_mamba" if normed else "mamba")
    for i in range(model.layers):
        inside = f"backbone.layers.{i}.mixer."
        put_mamba1(model.names, inside, f"blk.{i}.", norms=False)
    config["time_step_rank"] = model.mixer()["rank"]
    if normed:
        config["mixer_rms_eps"] = config["layer_norm_epsilon"]
    return config


def mamba2(model: FileModel) -> dict[str, Any]:
    """Mamba-2."""
    config = _backbone(model, "mamba2")
    for i in range(model.layers):
        put_mamba2(model.names, f"backbone.layers.{i}.mixer.", f"blk.{i}.")
    mixer = model.mixer()
    return config | {
        "num_heads": mixer["rank"],
        "head_dim": mixer["inner"] // mixer["rank"],
        "n_groups": model.metadata.integer("ssm.group_count"),
    }


def jamba(model: FileModel) -> dict[str, Any]:
    """Mamba-1 and attention without positions, MLPs and experts."""
    names, metadata = model.names, model.metadata
    config = model.around("model.embed_tokens.weight", "model.final_layernorm.weight")
    kv = model.by_layer("attention.head_count_kv")
    attended = [i for i, count in enumerate(kv) if count]
    mixing = [i for i, count in enumerate(kv) if not count]
    heads = None
    if attended:
        heads = model.heads(model.one_of("attention.head_count_kv", kv))
    sparse = []
    for i in range(model.layers):
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        names.put(f"{ours}input_layernorm.weight", f"{block}attn_norm.weight")
        names.put(f"{ours}pre_ff_layernorm.weight", f"{block}ffn_norm.weight")
        if i in mixing:
            put_mamba1(names, f"{ours}mamba.", block, norms=True)
        else:
            assert heads is not None
            put_attention(names, f"{ours}self_attn.", block, heads)
        inside = f"{ours}feed_forward."
        if names.has(f"{block}ffn_gate_inp.weight"):
            sparse.append(i)
            names.put(f"{inside}router.weight", f"{block}ffn_gate_inp.weight")
            both, down = (f"{inside}experts.{one}_proj" for one in ("gate_up", "down"))
            put_experts(names, both, down, block)
        else:
            put_mlp(names, inside, block, "gate", "up", "down")
    mixer = model.mixer()
    period, offset = _period(model, attended, "attention")
    expert_period, expert_offset = _period(model, sparse, "experts")
    experts = metadata.natural("expert_count") if metadata.has("expert_count") else 0
    config |= {
        "model_type": "jamba",
        "rms_norm_eps": metadata.positive(_EPSILON),
        "hidden_act": "silu",
        "mamba_expand": _expansion(mixer["inner"], config["hidden_size"]),
        "mamba_d_state": mixer["state"],
        "mamba_d_conv": mixer["taps"],
        "mamba_dt_rank": mixer["rank"],
        "mamba_conv_bias": model.agreed(mixing, _CONVOLUTION_BIAS),
        "mamba_proj_bias": False,
        "num_attention_heads": metadata.integer("attention.head_count"),
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_experts": experts if sparse else 1,
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "expert_layer_period": expert_period,
        "expert_layer_offset": expert_offset,
    }
    if heads is not None:
        config |= {"num_key_value_heads": heads[1], "head_dim": heads[2]}
    if sparse:
        config["num_experts_per_tok"] = metadata.integer("expert_used_count")
    return config


def _period(model: FileModel, layers: Sequence[int], what: str) -> tuple[int, int]:
    """Every how many layers one of these comes, and which is the first.

    **Raises:** `UnsupportedCheckpointError` where they come at no such period.
    """
    count = model.layers
    first = layers[0] if layers else count
    period = layers[1] - first if len(layers) > 1 else count + 1
    if list(range(first % period, count, period)) != list(layers):
        raise UnsupportedCheckpointError(
            f"{model.shown} has {what} in layers {list(layers)[:8]}, which come at no"
            " period: not covered of jamba",
            hint="check the checkpoint that it was made from",
        )
    return period, first % period
