"""Hybrids as llama.cpp's converter writes them."""

from typing import Any

import numpy as np

from .parts import (
    Tensors,
    around,
    attention,
    joined_experts,
    mamba2_mixer,
    mlp,
    negative,
    write_sizes,
    write_ssm,
)


def falcon_h1(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    """All multipliers are folded in; the norm behind has no suffix in its name."""
    fp32 = np.float32
    inner, groups = c.mamba_d_ssm or c.mamba_expand * c.hidden_size, c.mamba_n_groups
    write_sizes(
        writer, c, c.num_hidden_layers, c.intermediate_size, c.num_attention_heads
    )
    write_ssm(writer, inner, c.mamba_d_state, c.mamba_d_conv, c.mamba_n_heads, groups)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_head_count_kv(c.num_key_value_heads)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    state["model.embed_tokens.weight"] *= fp32(c.embedding_multiplier)
    if "lm_head.weight" in state:
        state["lm_head.weight"] *= fp32(c.lm_head_multiplier)
    states = groups * c.mamba_d_state
    sizes = (inner, inner, states, states, c.mamba_n_heads)
    rows = np.repeat(np.asarray(c.ssm_multipliers, fp32), sizes)[:, None]
    yield from around(
        state, "model.embed_tokens.weight", "model.final_layernorm.weight"
    )
    for i in range(c.num_hidden_layers):
        inside, block = f"model.layers.{i}.", f"blk.{i}."
        state[f"{inside}mamba.in_proj.weight"] *= fp32(c.ssm_in_multiplier)
        for name, factor in (
            ("mamba.in_proj", rows),
            ("mamba.out_proj", fp32(c.ssm_out_multiplier)),
            ("self_attn.k_proj", fp32(c.key_multiplier)),
            ("self_attn.o_proj", fp32(c.attention_out_multiplier)),
            ("feed_forward.gate_proj", fp32(c.mlp_multipliers[0])),
            ("feed_forward.down_proj", fp32(c.mlp_multipliers[1])),
            *(
                (f"self_attn.{one}_proj", fp32(c.attention_in_multiplier))
                for one in "qkv"
            ),
        ):
            state[f"{inside}{name}.weight"] *= factor
        yield f"{block}attn_norm.weight", state.pop(f"{inside}input_layernorm.weight")
        yield f"{block}ffn_norm", state.pop(f"{inside}pre_ff_layernorm.weight")
        yield from mamba2_mixer(state, f"{inside}mamba.", block, groups)
        yield from attention(state, f"{inside}self_attn.", block, None)
        yield from mlp(state, f"{inside}feed_forward.", block, "gate", "up", "down")


def granite(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    kinds = c.layers_block_type
    heads = c.num_attention_heads, c.num_key_value_heads
    layers, experts = c.num_hidden_layers, c.num_local_experts
    hidden = c.intermediate_size if experts else c.shared_intermediate_size
    write_sizes(writer, c, layers, hidden, heads[0])
    inner = c.mamba_expand * c.hidden_size
    groups = c.mamba_n_groups
    write_ssm(writer, inner, c.mamba_d_state, c.mamba_d_conv, c.mamba_n_heads, groups)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    attended = [kind in ("attention", "full_attention") for kind in kinds]
    writer.add_head_count_kv([heads[1] if one else 0 for one in attended])
    turns = c.position_embedding_type == "rope"
    writer.add_rope_scaling_finetuned(turns)
    writer.add_rope_dimension_count(c.hidden_size // heads[0])
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_attention_scale(c.attention_multiplier)
    writer.add_embedding_scale(c.embedding_multiplier)
    writer.add_residual_scale(c.residual_multiplier)
    writer.add_logit_scale(c.logits_scaling)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
        writer.add_expert_shared_feed_forward_length(c.shared_intermediate_size)
    yield from around(state, "model.embed_tokens.weight", "model.norm.weight")
    for i in range(layers):
        inside, block = f"model.layers.{i}.", f"blk.{i}."
        yield f"{block}attn_norm.weight", state.pop(f"{inside}input_layernorm.weight")
        behind = f"{inside}post_attention_layernorm.weight"
        yield f"{block}ffn_norm.weight", state.pop(behind)
        if attended[i]:
            yield from attention(state, f"{inside}self_attn.", block, heads)
        else:
            yield from mamba2_mixer(state, f"{inside}mamba.", block, groups)
        shared, of = f"{inside}shared_mlp.", "_shexp" if experts else ""
        gate, up = np.split(state.pop(f"{shared}input_linear.weight"), 2)
        yield f"{block}ffn_gate{of}.weight", gate
        yield f"{block}ffn_up{of}.weight", up
        down = state.pop(f"{shared}output_linear.weight")
        yield f"{block}ffn_down{of}.weight", down
        if experts:
            sparse = f"{inside}block_sparse_moe."
            yield f"{block}ffn_gate_inp.weight", state.pop(f"{sparse}router.weight")
            yield from joined_experts(state, f"{sparse}experts.", block)


def bamba(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    """Halves of a whole head in pairs, of which llama.cpp turns the first."""
    heads = c.num_attention_heads, c.num_key_value_heads
    layers, groups = c.num_hidden_layers, c.mamba_n_groups
    write_sizes(writer, c, layers, c.intermediate_size, heads[0])
    sizes = (c.mamba_expand * c.hidden_size, c.mamba_d_state, c.mamba_d_conv)
    write_ssm(writer, *sizes, c.mamba_n_heads, groups)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    attended = [i in c.attn_layer_indices for i in range(layers)]
    writer.add_head_count_kv([heads[1] if one else 0 for one in attended])
    writer.add_rope_scaling_finetuned(True)
    writer.add_rope_dimension_count(c.hidden_size // heads[0] // 2)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    yield from around(
        state, "model.embed_tokens.weight", "model.final_layernorm.weight"
    )
    for i in range(layers):
        inside, block = f"model.layers.{i}.", f"blk.{i}."
        yield f"{block}attn_norm.weight", state.pop(f"{inside}input_layernorm.weight")
        yield f"{block}ffn_norm.weight", state.pop(f"{inside}pre_ff_layernorm.weight")
        if attended[i]:
            yield from attention(state, f"{inside}self_attn.", block, heads)
        else:
            yield from mamba2_mixer(state, f"{inside}mamba.", block, groups)
        yield from mlp(state, f"{inside}feed_forward.", block, "gate", "up", "down")


def nemotron(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    kinds = c.layers_block_type
    heads = c.num_attention_heads, c.num_key_value_heads
    sparse = "moe" in kinds
    hidden = c.moe_intermediate_size if sparse else c.intermediate_size
    own = ("moe",) if sparse else ("mlp",)
    widths = [hidden if kind in own else 0 for kind in kinds]
    write_sizes(writer, c, len(kinds), widths, heads[0])
    inner = c.mamba_num_heads * c.mamba_head_dim
    sizes = (inner, c.ssm_state_size, c.conv_kernel, c.mamba_num_heads, c.n_groups)
    write_ssm(writer, *sizes)
    attended = [kind in ("attention", "full_attention") for kind in kinds]
    writer.add_head_count_kv([heads[1] if one else 0 for one in attended])
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)
    if sparse:
        writer.add_expert_used_count(c.num_experts_per_tok)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        shared = c.moe_shared_expert_intermediate_size
        writer.add_expert_shared_feed_forward_length(shared)
        writer.add_expert_count(c.n_routed_experts)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_norm(c.norm_topk_prob)
        writer.add_expert_weights_scale(c.routed_scaling_factor)
        writer.add_expert_group_count(c.n_group)
        if getattr(c, "moe_latent_size", None):
            writer.add_moe_latent_size(c.moe_latent_size)
    yield from around(state, "model.embeddings.weight", "model.norm_f.weight")
    for i, kind in enumerate(kinds):
        inside, block = f"model.layers.{i}.mixer.", f"blk.{i}."
        norm = f"model.layers.{i}.norm.weight"
        yield f"{block}attn_norm.weight", state.pop(norm)
        if attended[i]:
            yield from attention(state, inside, block, heads)
        elif kind == "mlp":
            yield from mlp(state, inside, block, "up", "down")
        elif kind == "moe":
            yield f"{block}ffn_gate_inp.weight", state.pop(f"{inside}gate.weight")
            bias = state.pop(f"{inside}gate.e_score_correction_bias")
            yield f"{block}exp_probs_b.bias", bias
            for one in ("up", "down"):
                experts = state.pop(f"{inside}experts.{one}_proj")
                yield f"{block}ffn_{one}_exps.weight", experts
            shared = f"{inside}shared_experts."
            yield from mlp(state, shared, block, "up", "down", of="_shexp")
            for ours, theirs in (("fc1", "down"), ("fc2", "up")):
                if f"{inside}{ours}_latent_proj.weight" in state:
                    latent = state.pop(f"{inside}{ours}_latent_proj.weight")
                    yield f"{block}ffn_latent_{theirs}.weight", latent
        else:
            yield from mamba2_mixer(state, inside, block, c.n_groups)


def qwen3_next(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    """Norms but the gated one hold 1 + weight; of the projections two are made."""
    one = np.float32(1)
    heads = c.num_attention_heads, c.num_key_value_heads
    keys, values = c.linear_num_key_heads, c.linear_num_value_heads
    key_dim, value_dim = c.linear_key_head_dim, c.linear_value_head_dim
    layers, each = c.num_hidden_layers, values // keys
    write_sizes(writer, c, layers, c.intermediate_size, heads[0])
    writer.add_head_count_kv(heads[1])
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    taps = c.linear_conv_kernel_dim
    write_ssm(writer, value_dim * values, key_dim, taps, values, keys)
    interval = getattr(c, "full_attention_interval", 4)
    writer.add_full_attention_interval(interval)
    rope = c.rope_parameters
    share = rope.get("partial_rotary_factor", 0.25)
    writer.add_rope_dimension_count(int(c.head_dim * share))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_expert_count(c.num_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    shared = c.shared_expert_intermediate_size
    writer.add_expert_shared_feed_forward_length(shared)
    yield from around(state, "model.embed_tokens.weight", "model.norm.weight", 1)
    for i in range(layers):
        inside, block = f"model.layers.{i}.", f"blk.{i}."
        norm = state.pop(f"{inside}input_layernorm.weight")
        yield f"{block}attn_norm.weight", norm + one
        norm = state.pop(f"{inside}post_attention_layernorm.weight")
        yield f"{block}post_attention_norm.weight", norm + one
        if c.layer_types[i] == "full_attention":
            own = f"{inside}self_attn."
            for part in "qk":
                norm = state.pop(f"{own}{part}_norm.weight")
                yield f"{block}attn_{part}_norm.weight", norm + one
            yield from attention(state, own, block, None)
        else:
            own = f"{inside}linear_attn."
            rows = state.pop(f"{own}in_proj_qkvz.weight")
            by_head = rows.reshape(keys, -1, rows.shape[1])
            ends = np.cumsum([key_dim, key_dim, each * value_dim])
            parts = np.split(by_head, ends, axis=1)
            q, k, v, z = (part.reshape(-1, rows.shape[1]) for part in parts)
            yield f"{block}attn_qkv.weight", np.concatenate([q, k, v])
            yield f"{block}attn_gate.weight", z
            yield f"{block}ssm_ba.weight", state.pop(f"{own}in_proj_ba.weight")
            yield f"{block}ssm_conv1d.weight", state.pop(f"{own}conv1d.weight")[:, 0]
            yield f"{block}ssm_a", negative(state.pop(f"{own}A_log"))
            yield f"{block}ssm_dt.bias", state.pop(f"{own}dt_bias")
            yield f"{block}ssm_norm.weight", state.pop(f"{own}norm.weight")
            yield f"{block}ssm_out.weight", state.pop(f"{own}out_proj.weight")
        behind = f"{inside}mlp."
        yield f"{block}ffn_gate_inp.weight", state.pop(f"{behind}gate.weight")
        yield from joined_experts(state, f"{behind}experts.", block)
        shared_expert = f"{behind}shared_expert."
        yield from mlp(state, shared_expert, block, "gate", "up", "down", of="_shexp")
        gate = state.pop(f"{behind}shared_expert_gate.weight")
        yield f"{block}ffn_gate_inp_shexp.weight", gate
