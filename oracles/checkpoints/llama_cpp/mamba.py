"""Pure Mamba models and Jamba as llama.cpp's converter writes them."""

from typing import Any

from .parts import (
    Tensors,
    around,
    attention,
    joined_experts,
    mamba1_mixer,
    mamba2_mixer,
    mlp,
    write_sizes,
    write_ssm,
)


def mamba(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    write_sizes(writer, c, c.num_hidden_layers, 0, 0)
    inner = c.intermediate_size
    write_ssm(writer, inner, c.state_size, c.conv_kernel, c.time_step_rank)
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)
    writer.add_ssm_dt_b_c_rms(c.model_type == "falcon_mamba")
    yield from around(state, "backbone.embeddings.weight", "backbone.norm_f.weight")
    for i in range(c.num_hidden_layers):
        inside, block = f"backbone.layers.{i}.", f"blk.{i}."
        yield f"{block}attn_norm.weight", state.pop(f"{inside}norm.weight")
        yield from mamba1_mixer(state, f"{inside}mixer.", block)


def mamba2(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    write_sizes(writer, c, c.num_hidden_layers, 0, 0)
    inner = c.num_heads * c.head_dim
    write_ssm(writer, inner, c.state_size, c.conv_kernel, c.num_heads, c.n_groups)
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)
    yield from around(state, "backbone.embeddings.weight", "backbone.norm_f.weight")
    for i in range(c.num_hidden_layers):
        inside, block = f"backbone.layers.{i}.", f"blk.{i}."
        yield f"{block}attn_norm.weight", state.pop(f"{inside}norm.weight")
        yield from mamba2_mixer(state, f"{inside}mixer.", block, c.n_groups)


def jamba(c: Any, state: dict[str, Any], writer: Any) -> Tensors:
    layers = c.num_hidden_layers
    heads = c.num_attention_heads, c.num_key_value_heads
    write_sizes(writer, c, layers, c.intermediate_size, heads[0])
    inner = c.mamba_expand * c.hidden_size
    write_ssm(writer, inner, c.mamba_d_state, c.mamba_d_conv, c.mamba_dt_rank)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    period, offset = c.attn_layer_period, c.attn_layer_offset
    attended = [i % period == offset for i in range(layers)]
    writer.add_head_count_kv([heads[1] if one else 0 for one in attended])
    writer.add_expert_count(c.num_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    yield from around(
        state, "model.embed_tokens.weight", "model.final_layernorm.weight"
    )
    for i in range(layers):
        inside, block = f"model.layers.{i}.", f"blk.{i}."
        yield f"{block}attn_norm.weight", state.pop(f"{inside}input_layernorm.weight")
        yield f"{block}ffn_norm.weight", state.pop(f"{inside}pre_ff_layernorm.weight")
        if attended[i]:
            yield from attention(state, f"{inside}self_attn.", block, None)
        else:
            mixer = f"{inside}mamba."
            yield from mamba1_mixer(state, mixer, block)
            for one in ("dt", "b", "c"):
                norm = state.pop(f"{mixer}{one}_layernorm.weight")
                yield f"{block}ssm_{one}_norm.weight", norm
        behind = f"{inside}feed_forward."
        if f"{behind}router.weight" in state:
            yield f"{block}ffn_gate_inp.weight", state.pop(f"{behind}router.weight")
            yield from joined_experts(state, f"{behind}experts.", block)
        else:
            yield from mlp(state, behind, block, "gate", "up", "down")
