"""llama.cpp's Qwen3-Next, with the gated delta rule, as transformers has it.

Read in llama.cpp's `src/models/qwen3next.cpp` and in its converter: norms but the gated
one hold 1 + weight, and one projection is two, by kind and not by key head.
"""

from typing import Any

from ._changes import (
    by_key_heads,
    less_one,
    log_of_negative,
    reshaped,
    with_middle_axis,
)
from ._hybrids import attention_settings
from ._model import FileModel
from ._names import put_attention, put_experts, put_mlp


_RMS = "attention.layer_norm_rms_epsilon"
_KV = "attention.head_count_kv"
# of queries and keys before the delta rule: transformers' own, and llama.cpp's norms'
_KEY_EPSILON = 1e-6


def qwen3_next(model: FileModel) -> dict[str, Any]:
    """The gated delta rule and gated attention, experts after each."""
    names, metadata = model.names, model.metadata
    config = model.around(
        *("model.embed_tokens.weight", "model.norm.weight"), change=less_one
    )
    heads = model.heads(metadata.integer(_KV))
    turning, theta = model.turning(heads[2])
    if metadata.has("attention.recurrent_layers"):
        flags = metadata.flags("attention.recurrent_layers", model.blocks)
    else:
        period = 4  # llama.cpp's own, where the file has none
        if metadata.has("full_attention_interval"):
            period = metadata.integer("full_attention_interval")
        flags = [(i + 1) % period != 0 for i in range(model.blocks)]
    flags = flags[: model.layers]
    epsilon = metadata.positive(_RMS)
    if any(flags) and abs(epsilon / _KEY_EPSILON - 1) > 1e-6:
        raise metadata.refuse(_RMS, "1e-6, with which queries and keys are normalised")
    mixer = model.mixer()
    key_heads, value_heads = metadata.integer("ssm.group_count"), mixer["rank"]
    sizes = (key_heads, mixer["state"], value_heads // key_heads)
    order = by_key_heads(*sizes, mixer["inner"] // value_heads)
    for i, recurrent in enumerate(flags):
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        for norm, theirs in (
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "post_attention_norm"),
        ):
            weight = f"{ours}{norm}.weight"
            names.put(weight, f"{block}{theirs}.weight", change=less_one)
        if recurrent:
            _delta(names, f"{ours}linear_attn.", block, order)
        else:
            _gated_attention(names, f"{ours}self_attn.", block, heads)
        _qwen_experts(names, f"{ours}mlp.", block)
    return (
        config
        | attention_settings(heads)
        | {
            "model_type": "qwen3_next",
            "hidden_act": "silu",
            "rms_norm_eps": epsilon,
            "layer_types": [
                "linear_attention" if one else "full_attention" for one in flags
            ],
            "rope_theta": theta,
            "partial_rotary_factor": turning / heads[2],
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": value_heads,
            "linear_key_head_dim": mixer["state"],
            "linear_value_head_dim": mixer["inner"] // value_heads,
            "linear_conv_kernel_dim": mixer["taps"],
            "num_experts": metadata.integer("expert_count"),
            "num_experts_per_tok": metadata.integer("expert_used_count"),
            "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
            "shared_expert_intermediate_size": metadata.integer(
                "expert_shared_feed_forward_length"
            ),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )


def _delta(names: Any, inside: str, block: str, order: Any) -> None:
    """A gated delta rule; older files have the projections as transformers has them."""
    projections = f"{inside}in_proj_qkvz.weight"
    if names.has(f"{block}ssm_in.weight"):
        names.put(projections, f"{block}ssm_in.weight")
    else:
        both = (f"{block}attn_{one}.weight" for one in ("qkv", "gate"))
        names.put(projections, *both, change=order)
    names.put(f"{inside}in_proj_ba.weight", f"{block}ssm_ba.weight")
    weight = f"{block}ssm_conv1d.weight"
    names.put(f"{inside}conv1d.weight", weight, change=with_middle_axis)
    names.put(f"{inside}A_log", f"{block}ssm_a", change=log_of_negative(-1))
    names.put(f"{inside}dt_bias", f"{block}ssm_dt.bias")
    names.put(f"{inside}norm.weight", f"{block}ssm_norm.weight")
    names.put(f"{inside}out_proj.weight", f"{block}ssm_out.weight")


def _gated_attention(
    names: Any, inside: str, block: str, heads: tuple[int, int, int]
) -> None:
    """Attention whose queries come with gates, in twice as many rows."""
    put_attention(names, inside, block, heads, gates=True)
    for one in "qk":
        norm = f"{inside}{one}_norm.weight"
        names.put(norm, f"{block}attn_{one}_norm.weight", change=less_one)


def _qwen_experts(names: Any, inside: str, block: str) -> None:
    names.put(f"{inside}gate.weight", f"{block}ffn_gate_inp.weight")
    both, down = (f"{inside}experts.{one}_proj" for one in ("gate_up", "down"))
    put_experts(names, both, down, block)
    shared = f"{inside}shared_expert."
    put_mlp(names, shared, block, "gate", "up", "down", of="_shexp")
    gate = f"{block}ffn_gate_inp_shexp.weight"
    names.put(f"{inside}shared_expert_gate.weight", gate, change=reshaped(1, -1))
