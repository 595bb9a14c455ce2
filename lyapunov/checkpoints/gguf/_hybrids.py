"""llama.cpp's hybrids with Mamba-2 or the gated delta rule, as transformers has them.

Read in llama.cpp's `src/models/{falcon-h1,granite-hybrid,nemotron-h,qwen3next}.cpp` and
in its converters: what a model multiplies by is folded into Falcon-H1's weights, and
kept apart in Granite's metadata; norms of Qwen3-Next hold 1 + weight.
"""

from typing import Any

from ..._errors import UnsupportedCheckpointError
from ._changes import (
    by_key_heads,
    joined,
    less_one,
    log_of_negative,
    reshaped,
    with_middle_axis,
)
from ._model import FileModel
from ._names import put_attention, put_experts, put_mamba2, put_mlp


_RMS = "attention.layer_norm_rms_epsilon"
_KV = "attention.head_count_kv"
_CONVOLUTION_BIAS = "ssm_conv1d.bias"
_HINT = "check the checkpoint that it was made from"


def _bamba_mixer(model: FileModel, layers: list[int]) -> dict[str, Any]:
    """A Mamba-2 mixer as hybrids call its settings."""
    mixer = model.mixer()
    return {
        "mamba_d_ssm": mixer["inner"],
        "mamba_n_heads": mixer["rank"],
        "mamba_d_head": mixer["inner"] // mixer["rank"],
        "mamba_n_groups": model.metadata.integer("ssm.group_count"),
        "mamba_d_state": mixer["state"],
        "mamba_d_conv": mixer["taps"],
        "mamba_conv_bias": model.agreed(layers, _CONVOLUTION_BIAS),
        "mamba_proj_bias": False,
        "hidden_act": "silu",
    }


def _attention(heads: tuple[int, int, int]) -> dict[str, Any]:
    names = "num_attention_heads", "num_key_value_heads", "head_dim"
    return dict(zip(names, heads, strict=True))


def falcon_h1(model: FileModel) -> dict[str, Any]:
    """Mamba-2 and attention side by side, then an MLP."""
    names, metadata = model.names, model.metadata
    config = model.around("model.embed_tokens.weight", "model.final_layernorm.weight")
    heads = model.heads(model.one_of(_KV, model.by_layer(_KV)))
    turning, theta = model.turning(heads[2])
    if turning != heads[2]:
        raise metadata.refuse("rope.dimension_count", f"{heads[2]}, a whole head")
    metadata.demand_absent("attention.scale", "a scale of the scores")
    layers = list(range(model.layers))
    normed = model.agreed(layers, "ssm_norm.weight")
    for i in layers:
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        names.put(f"{ours}input_layernorm.weight", f"{block}attn_norm.weight")
        # the converter writes it without a suffix
        behind = f"{block}ffn_norm"
        behind = behind if names.has(behind) else f"{behind}.weight"
        names.put(f"{ours}pre_ff_layernorm.weight", behind)
        put_mamba2(names, f"{ours}mamba.", block)
        put_attention(names, f"{ours}self_attn.", block, heads)
        put_mlp(names, f"{ours}feed_forward.", block, "gate", "up", "down")
    return (
        config
        | _bamba_mixer(model, layers)
        | _attention(heads)
        | {
            "model_type": "falcon_h1",
            "rms_norm_eps": metadata.positive(_RMS),
            "rope_theta": theta,
            "intermediate_size": metadata.integer("feed_forward_length"),
            "mamba_rms_norm": normed,
            "mamba_norm_before_gate": False,
        }
    )


def granite_hybrid(model: FileModel) -> dict[str, Any]:
    """Mamba-2 and attention, experts beside an MLP that all share, or that alone."""
    names, metadata = model.names, model.metadata
    config = model.around("model.embed_tokens.weight", "model.norm.weight")
    kv = model.by_layer(_KV)
    mixing = [i for i, count in enumerate(kv) if not count]
    turns = metadata.flag("rope.scaling.finetuned", True)
    # a file without attention says no size of it
    heads = model.heads(model.one_of(_KV, kv) if any(kv) else 1)
    turning, theta = model.turning(heads[2])
    if turns and turning != heads[2]:
        raise UnsupportedCheckpointError(
            f"{model.shown}: {turning} channels of {heads[2]} of a head turn (Bamba),"
            " which is not covered of granitehybrid",
            hint=_HINT,
        )
    experts = metadata.natural("expert_count") if metadata.has("expert_count") else 0
    for i in range(model.layers):
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        names.put(f"{ours}input_layernorm.weight", f"{block}attn_norm.weight")
        names.put(f"{ours}post_attention_layernorm.weight", f"{block}ffn_norm.weight")
        if i in mixing:
            put_mamba2(names, f"{ours}mamba.", block)
        else:
            # the converter lays pairs side by side whether heads turn or not
            put_attention(names, f"{ours}self_attn.", block, heads, turning)
        shared, of = f"{ours}shared_mlp.", "_shexp" if experts else ""
        both = [f"{block}ffn_{one}{of}.weight" for one in ("gate", "up")]
        names.put(f"{shared}input_linear.weight", *both, change=joined(0))
        names.put(f"{shared}output_linear.weight", f"{block}ffn_down{of}.weight")
        if experts:
            inside = f"{ours}block_sparse_moe."
            router = f"{inside}router.layer.weight"
            names.put(router, f"{block}ffn_gate_inp.weight")
            into, out = (f"{inside}{one}_linear.weight" for one in ("input", "output"))
            put_experts(names, into, out, block)
    width, shared = metadata.integer("feed_forward_length"), "shared_intermediate_size"
    config |= _bamba_mixer(model, mixing) | _attention(heads)
    config |= {
        "model_type": "granitemoehybrid",
        "rms_norm_eps": metadata.positive(_RMS),
        "layer_types": ["attention" if count else "mamba" for count in kv],
        "position_embedding_type": "rope" if turns else None,
        "rope_theta": theta,
        "embedding_multiplier": metadata.multiplier("embedding_scale") or 1.0,
        "residual_multiplier": metadata.multiplier("residual_scale") or 1.0,
        "logits_scaling": metadata.multiplier("logit_scale") or 1.0,
        "attention_multiplier": metadata.multiplier("attention.scale")
        or heads[2] ** -0.5,
        "num_local_experts": experts,
        shared: width,
    }
    if experts:
        metadata.demand_absent("expert_weights_scale", "a scale of experts", (0, 1))
        config |= {
            "intermediate_size": width,
            shared: metadata.integer("expert_shared_feed_forward_length"),
            "num_experts_per_tok": metadata.integer("expert_used_count"),
        }
    return config


def nemotron_h(model: FileModel) -> dict[str, Any]:
    """One norm and one of Mamba-2, attention, an MLP or experts a layer."""
    names, metadata = model.names, model.metadata
    config = model.around("backbone.embeddings.weight", "backbone.norm_f.weight")
    kv, hidden = model.by_layer(_KV), model.by_layer("feed_forward_length")
    experts = metadata.natural("expert_count") if metadata.has("expert_count") else 0
    behind = "moe" if experts else "mlp"
    kinds = [
        behind if width else "attention" if count else "mamba"
        for count, width in zip(kv, hidden, strict=True)
    ]
    heads = model.heads(model.one_of(_KV, kv) if any(kv) else 1)
    metadata.demand_absent("attention.scale", "a scale of the scores")
    for i, kind in enumerate(kinds):
        inside, block = f"backbone.layers.{i}.mixer.", f"blk.{i}."
        names.put(f"backbone.layers.{i}.norm.weight", f"{block}attn_norm.weight")
        if kind == "mamba":
            put_mamba2(names, inside, block)
        elif kind == "attention":
            # nothing turns; the converter lays pairs side by side all the same
            put_attention(names, inside, block, heads, heads[2])
        elif kind == "mlp":
            put_mlp(names, inside, block, "up", "down")
        else:
            _nemotron_experts(names, inside, block)
    # the newest converters write both epsilons, the first of other norms
    epsilon = _RMS if metadata.has(_RMS) else "attention.layer_norm_epsilon"
    mixer = model.mixer()
    mixing = [i for i, kind in enumerate(kinds) if kind == "mamba"]
    config |= _attention(heads) | {
        "model_type": "nemotron_h",
        "layer_norm_epsilon": metadata.positive(epsilon),
        "layers_block_type": kinds,
        "mamba_hidden_act": "silu",
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": mixer["rank"],
        "mamba_head_dim": mixer["inner"] // mixer["rank"],
        "ssm_state_size": mixer["state"],
        "n_groups": metadata.integer("ssm.group_count"),
        "conv_kernel": mixer["taps"],
        "use_conv_bias": model.agreed(mixing, _CONVOLUTION_BIAS),
        "use_bias": False,
    }
    if "mlp" in kinds:
        config["intermediate_size"] = model.one_of("feed_forward_length", hidden)
    if experts:
        config |= _nemotron_sizes(model, hidden, experts)
    return config


def _nemotron_experts(names: Any, inside: str, block: str) -> None:
    names.put(f"{inside}gate.weight", f"{block}ffn_gate_inp.weight")
    bias = f"{inside}gate.e_score_correction_bias"
    names.put(bias, f"{block}exp_probs_b.bias")
    for one in ("up", "down"):
        names.put(f"{inside}experts.{one}_proj", f"{block}ffn_{one}_exps.weight")
    put_mlp(names, f"{inside}shared_experts.", block, "up", "down", of="_shexp")
    for ours, theirs in (("fc1", "down"), ("fc2", "up")):
        latent = f"{inside}{ours}_latent_proj.weight"
        names.put_if(latent, f"{block}ffn_latent_{theirs}.weight")


def _nemotron_sizes(
    model: FileModel, hidden: list[int], experts: int
) -> dict[str, Any]:
    metadata = model.metadata
    if metadata.has("expert_feed_forward_length"):
        width = metadata.integer("expert_feed_forward_length")
    else:
        width = model.one_of("feed_forward_length", hidden)
    groups = metadata.multiplier("expert_group_count") or 1
    best = metadata.multiplier("expert_group_used_count") or 1
    found = {
        "n_routed_experts": experts,
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": width,
        "moe_shared_expert_intermediate_size": metadata.integer(
            "expert_shared_feed_forward_length"
        ),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "routed_scaling_factor": metadata.multiplier("expert_weights_scale") or 1.0,
        "n_group": int(groups),
        "topk_group": int(best),
    }
    if metadata.has("moe_latent_size"):
        found["moe_latent_size"] = metadata.integer("moe_latent_size")
    return found


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
        | _attention(heads)
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
