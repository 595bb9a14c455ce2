"""llama.cpp's hybrids with Mamba-2, as transformers has them.

Read in llama.cpp's `src/models/{falcon-h1,granite-hybrid,nemotron-h}.cpp` and in its
converters: what a model multiplies by is folded into Falcon-H1's weights, and kept
apart in Granite's metadata.
"""

from typing import Any

from ..._errors import UnsupportedCheckpointError
from ._changes import (
    joined,
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


def attention_settings(heads: tuple[int, int, int]) -> dict[str, Any]:
    """What transformers calls heads of queries, of keys and values, and their size."""
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
        | attention_settings(heads)
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
    """Mamba-2 and attention, experts beside an MLP that all share, or that alone; and
    Bamba, of whose heads a half turns."""
    kv = model.by_layer(_KV)
    turns = model.metadata.flag("rope.scaling.finetuned", True)
    # a file without attention says no size of it
    heads = model.heads(model.one_of(_KV, kv) if any(kv) else 1)
    turning, theta = model.turning(heads[2])
    if not turns or turning == heads[2]:
        return _granite(model, kv, heads, theta if turns else None)
    own = "embedding_scale", "residual_scale", "logit_scale", "attention.scale"
    plain = not any(model.metadata.multiplier(key) for key in (*own, "expert_count"))
    if 2 * turning != heads[2] or not plain:
        raise UnsupportedCheckpointError(
            f"{model.shown}: {turning} channels of {heads[2]} of a head turn, which is"
            " not covered of Granite; of Bamba a half",
            hint=_HINT,
        )
    return _bamba(model, kv, heads, theta)


def _bamba(
    model: FileModel, kv: list[int], heads: tuple[int, int, int], theta: float
) -> dict[str, Any]:
    """Mamba-2 and attention, an MLP after each.

    The converter lays the two halves of a whole head side by side, and llama.cpp turns
    the first rows of that in pairs: other pairs than the original's, whose first half
    of a head turns in halves. The model is what llama.cpp computes.
    """
    names, metadata = model.names, model.metadata
    config = model.around("model.embed_tokens.weight", "model.final_layernorm.weight")
    for i, count in enumerate(kv):
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        names.put(f"{ours}input_layernorm.weight", f"{block}attn_norm.weight")
        names.put(f"{ours}pre_ff_layernorm.weight", f"{block}ffn_norm.weight")
        if count:
            turning = heads[2] // 2
            put_attention(names, f"{ours}self_attn.", block, heads, turning)
        else:
            put_mamba2(names, f"{ours}mamba.", block)
        put_mlp(names, f"{ours}feed_forward.", block, "gate", "up", "down")
    mixing = [i for i, count in enumerate(kv) if not count]
    return (
        config
        | _bamba_mixer(model, mixing)
        | attention_settings(heads)
        | {
            "model_type": "bamba",
            "rms_norm_eps": metadata.positive(_RMS),
            "attn_layer_indices": [i for i, count in enumerate(kv) if count],
            "rope_theta": theta,
            "intermediate_size": metadata.integer("feed_forward_length"),
        }
    )


def _granite(
    model: FileModel,
    kv: list[int],
    heads: tuple[int, int, int],
    theta: float | None,
) -> dict[str, Any]:
    """Granite; `theta`: the base of rates, None where nothing turns."""
    names, metadata = model.names, model.metadata
    config = model.around("model.embed_tokens.weight", "model.norm.weight")
    mixing = [i for i, count in enumerate(kv) if not count]
    experts = metadata.natural("expert_count") if metadata.has("expert_count") else 0
    for i in range(model.layers):
        ours, block = f"model.layers.{i}.", f"blk.{i}."
        names.put(f"{ours}input_layernorm.weight", f"{block}attn_norm.weight")
        names.put(f"{ours}post_attention_layernorm.weight", f"{block}ffn_norm.weight")
        if i in mixing:
            put_mamba2(names, f"{ours}mamba.", block)
        else:
            # the converter lays pairs side by side whether heads turn or not
            put_attention(names, f"{ours}self_attn.", block, heads, heads[2])
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
    config |= _bamba_mixer(model, mixing) | attention_settings(heads)
    config |= {
        "model_type": "granitemoehybrid",
        "rms_norm_eps": metadata.positive(_RMS),
        "layer_types": ["attention" if count else "mamba" for count in kv],
        "position_embedding_type": None if theta is None else "rope",
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
    config |= attention_settings(heads) | {
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
