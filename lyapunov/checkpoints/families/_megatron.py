"""Megatron's hybrids of Mamba-2, attention and MLPs (nvidia's mamba2-8b and kin)."""

from typing import Any

from ... import sublayers
from ..._errors import CorruptCheckpointError
from .._family import NO_EXPONENT, Family
from .._parts import (
    Described,
    Part,
    TopNames,
    fused_mlp_parts,
    shape_of,
    under,
    without_middle_axis,
)
from .._settings import integer, layer_count, positive, rotary, switch, unsupported
from .._sizes import NetworkSettings, divided
from ..files._files import quote


def _read(args: dict[str, Any], stored: dict[str, Any]) -> Described:
    """The network that the tensors and the arguments of the run describe together."""
    _refuse_others(args)
    d_model = integer(args, "hidden_size", 4096)
    layers = layer_count(args, "num_layers", 56)
    epsilon = positive(args, "norm_epsilon", 1e-5)
    network = NetworkSettings(args, d_model, epsilon)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        prefix = f"decoder.layers.{i}."
        before = len(parts)
        if f"{prefix}mixer.A_log" in stored:
            blocks.append(_mixer_sizes(network, stored, prefix))
            parts.append(_mixer_parts(blocks[-1], prefix, stored))
        if f"{prefix}self_attention.linear_qkv.weight" in stored:
            blocks.append(_attention_sizes(network))
            parts.append(_attention_parts(blocks[-1], prefix, stored))
        if f"{prefix}mlp.linear_fc1.weight" in stored:
            blocks.append(_mlp_sizes(network))
            parts.append(_mlp_parts(blocks[-1], prefix, stored))
        if len(parts) == before:
            raise CorruptCheckpointError(
                f"no mixer, attention or MLP among the tensors of {prefix[:-1]}:"
                f" args count {layers} layers",
                hint="is the checkpoint whole?",
            )
    tied = not switch(args, "untie_embeddings_and_output_weights", False)
    embedding = "embedding.word_embeddings.weight"
    padded = shape_of(embedding, stored)[0]
    known = args.get("vocab_size")
    config = sublayers.NetworkConfig(
        vocab_size=known if type(known) is int and 0 < known <= padded else padded,
        padded_vocab_size=padded,
        d_model=d_model,
        sublayers=tuple(blocks),
        norm_epsilon=epsilon,
        residual_in_fp32=switch(args, "fp32_residual_connection", False),
        tie_embeddings=tied,
    )
    older = "decoder.final_layernorm.weight"
    names = TopNames(
        embedding=embedding,
        final_norm=older if older in stored else "decoder.final_norm.weight",
        head=embedding if tied else "output_layer.weight",
        inside=("decoder.", "embedding.", "output_layer."),
    )
    same = ["output_layer.weight"] if tied else []
    return Described(config, names, parts, same, layers)


def _refuse_others(args: dict[str, Any]) -> None:
    """Refuse arguments of a training run whose network differs."""
    for key, plain, what in (
        ("normalization", "RMSNorm", "LayerNorm"),
        ("apply_layernorm_1p", False, "norms around 1"),
        ("add_bias_linear", False, "biases in linear layers"),
        ("add_qkv_bias", False, "biases of queries, keys and values"),
        ("qk_layernorm", False, "norms of queries and keys"),
        ("rotary_interleaved", False, "interleaved positions"),
        ("num_experts", None, "experts"),
        ("window_size", None, "windows of attention"),
    ):
        found = args.get(key, plain)
        if found != plain and found is not None:
            raise unsupported(
                f"a Megatron model with {what} ({key} = {quote(found, 40)}) is not"
                " covered"
            )


def _mixer_sizes(
    network: NetworkSettings, stored: dict[str, Any], prefix: str
) -> "sublayers.Mamba2Sizes":
    inner = shape_of(f"{prefix}mixer.out_proj.weight", stored)[-1]
    groups = integer(network.settings, "mamba_num_groups", 8)
    return divided(
        sublayers.Mamba2Sizes(
            d_model=network.d_model,
            d_inner=inner,
            d_state=integer(network.settings, "mamba_state_dim", 128),
            heads=shape_of(f"{prefix}mixer.A_log", stored)[0],
            groups=groups,
            d_conv=shape_of(_conv(stored, prefix, "weight"), stored)[-1],
            chunk=128,  # Megatron fixes it
            norm_epsilon=network.epsilon,
            gate_norm_epsilon=1e-5,  # and this
            norm_groups=groups,
        )
    )


def _attention_sizes(network: NetworkSettings) -> "sublayers.AttentionSizes":
    args = network.settings
    heads = integer(args, "num_attention_heads", 32)
    kv_heads = heads
    if args.get("group_query_attention"):
        kv_heads = integer(args, "num_query_groups", heads)
    head_dim = network.d_model // heads
    if args.get("kv_channels") is not None:
        head_dim = integer(args, "kv_channels", head_dim)
    turning = 0, 10000.0
    if args.get("position_embedding_type", "none") == "rope":
        rope = {
            "partial_rotary_factor": args.get("rotary_percent"),
            "rope_theta": args.get("rotary_base"),
        }
        turning = rotary(rope, head_dim, share=1.0)
    return network.attention((heads, kv_heads), head_dim, turning)


def _mlp_sizes(network: NetworkSettings) -> "sublayers.MlpSizes":
    args = network.settings
    gated = bool(args.get("swiglu"))
    act = "relu2" if args.get("squared_relu") else "silu" if gated else "gelu"
    return network.mlp(
        4 * network.d_model, size="ffn_hidden_size", act=act, act_key="", gated=gated
    )


def _norm(stored: dict, prefix: str, alone: str, fused: str, width: int) -> Part:
    """A norm before a layer lies alone, or with the projection after it."""
    name = f"{prefix}{fused}.layer_norm_weight"
    return Part(name if name in stored else f"{prefix}{alone}.weight", (width,))


def _conv(stored: dict, prefix: str, what: str) -> str:
    newer = f"{prefix}mixer.conv1d_{what}"
    return newer if newer in stored else f"{prefix}mixer.conv1d.{what}"


def _mixer_parts(
    c: "sublayers.Mamba2Sizes", prefix: str, stored: dict
) -> dict[str, Part]:
    conv = c.d_inner + 2 * c.groups * c.d_state
    taps, bias = (_conv(stored, prefix, what) for what in ("weight", "bias"))
    parts = {
        "in_proj": Part("in_proj.weight", (c.d_inner + conv + c.heads, c.d_model)),
        "dt_bias": Part("dt_bias", (c.heads,)),
        "A_log": Part("A_log", (c.heads,)),
        "D": Part("D", (c.heads,)),
        "gate_norm": Part("norm.weight", (c.d_inner,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    return {
        "norm": _norm(stored, prefix, "norm", "mixer.in_proj", c.d_model),
        "conv_weight": Part(taps, (conv, 1, c.d_conv), without_middle_axis),
        "conv_bias": Part(bias, (conv,)),
        **under(f"{prefix}mixer.", parts),
    }


def _attention_parts(
    c: "sublayers.AttentionSizes", prefix: str, stored: dict
) -> dict[str, Part]:
    """Rows of linear_qkv are, group by group, its queries, its key and its value."""
    fused = f"{prefix}self_attention.linear_qkv"
    shared, size = c.heads // c.kv_heads, c.head_dim
    shape = (c.kv_heads * (shared + 2) * size, c.d_model)

    def take(start: int, stop: int):
        def rows_of_groups(array):
            apart = array.reshape(c.kv_heads, shared + 2, size, -1)
            return apart[:, start:stop].reshape(-1, array.shape[1])

        return rows_of_groups

    inside = "self_attention.linear_qkv"
    return {
        "norm": _norm(stored, prefix, "input_layernorm", inside, c.d_model),
        "q_proj": Part(f"{fused}.weight", shape, take(0, shared)),
        "k_proj": Part(f"{fused}.weight", shape, take(shared, shared + 1)),
        "v_proj": Part(f"{fused}.weight", shape, take(shared + 1, shared + 2)),
        "o_proj": Part(
            f"{prefix}self_attention.linear_proj.weight", (c.d_model, c.heads * size)
        ),
    }


def _mlp_parts(c: "sublayers.MlpSizes", prefix: str, stored: dict) -> dict[str, Part]:
    first, second = f"{prefix}mlp.linear_fc1", f"{prefix}mlp.linear_fc2"
    norm = _norm(stored, prefix, "pre_mlp_layernorm", "mlp.linear_fc1", c.d_model)
    if c.gated:
        return {"norm": norm, **fused_mlp_parts(c, first, second)}
    return {
        "norm": norm,
        "down": Part(f"{second}.weight", (c.d_model, c.d_hidden)),
        "up": Part(f"{first}.weight", (c.d_hidden, c.d_model)),
    }


MEGATRON = Family(
    "Megatron hybrids (nvidia mamba2-8b, mamba2-hybrid-8b)",
    ("Megatron: model_optim_rng.pt, one file or one a tensor-parallel rank",),
    {"megatron": _read},
    ("mixers, attention and MLPs, with norms alone or fused with projections",),
    (
        NO_EXPONENT,
        "pipeline-parallel and torch_dist checkpoints",
        "LayerNorm, biases of linear layers, experts",
    ),
)
