"""Megatron's hybrids of Mamba-2, attention and MLPs (nvidia's mamba2-8b and kin)."""

from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ...sublayers import AttentionSizes, Mamba2Sizes, MlpSizes, NetworkConfig
from .._blocks import rows
from .._checkpoint import Checkpoint
from .._network import (
    NetworkLayout,
    Part,
    TopNames,
    recognise_network,
    without_middle_axis,
)
from .._settings import integer, layer_count, positive, rotary, switch
from ..files._files import quote
from ._families import LIST_HINT
from ._mamba_config import divided


def megatron_config(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the training run, refused where the network differs."""
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
        found = config.get(key, plain)
        if found != plain and found is not None:
            raise UnsupportedCheckpointError(
                f"a Megatron model with {what} ({key} = {quote(found, 40)}) is not"
                " covered",
                hint=LIST_HINT,
            )
    return config


def recognise_megatron(checkpoint: Checkpoint, args: dict[str, Any]) -> NetworkLayout:
    """The network that the tensors and the arguments describe together."""
    stored = checkpoint.tensors
    d_model = integer(args, "hidden_size", 4096)
    layers = layer_count(args, "num_layers", 56)
    epsilon = positive(args, "norm_epsilon", 1e-5)
    sublayers: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        prefix = f"decoder.layers.{i}."
        before = len(parts)
        if f"{prefix}mixer.A_log" in stored:
            sizes = _mixer_sizes(checkpoint, args, prefix, d_model, epsilon)
            sublayers.append(sizes)
            parts.append(_mixer_parts(sizes, prefix, stored))
        if f"{prefix}self_attention.linear_qkv.weight" in stored:
            attention = _attention_sizes(args, d_model, epsilon)
            sublayers.append(attention)
            parts.append(_attention_parts(attention, prefix, stored))
        if f"{prefix}mlp.linear_fc1.weight" in stored:
            mlp = _mlp_sizes(args, d_model, epsilon)
            sublayers.append(mlp)
            parts.append(_mlp_parts(mlp, prefix, stored))
        if len(parts) == before:
            raise CorruptCheckpointError(
                f"no mixer, attention or MLP among the tensors of {prefix[:-1]}:"
                f" args count {layers} layers",
                hint="is the checkpoint whole?",
            )
    tied = not switch(args, "untie_embeddings_and_output_weights", False)
    embedding = "embedding.word_embeddings.weight"
    padded = checkpoint.shape(embedding)[0]
    known = args.get("vocab_size")
    config = NetworkConfig(
        vocab_size=known if type(known) is int and 0 < known <= padded else padded,
        padded_vocab_size=padded,
        d_model=d_model,
        sublayers=tuple(sublayers),
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
    return recognise_network(
        checkpoint, "megatron", config, names, parts, same, layers=layers
    )


def _mixer_sizes(
    checkpoint: Checkpoint, args: dict, prefix: str, d_model: int, epsilon: float
) -> Mamba2Sizes:
    inner = checkpoint.shape(f"{prefix}mixer.out_proj.weight")[-1]
    groups = integer(args, "mamba_num_groups", 8)
    return divided(
        Mamba2Sizes(
            d_model=d_model,
            d_inner=inner,
            d_state=integer(args, "mamba_state_dim", 128),
            heads=checkpoint.shape(f"{prefix}mixer.A_log")[0],
            groups=groups,
            d_conv=checkpoint.shape(_conv(checkpoint.tensors, prefix, "weight"))[-1],
            chunk=128,  # Megatron fixes it
            norm_epsilon=epsilon,
            gate_norm_epsilon=1e-5,  # and this
            norm_groups=groups,
        )
    )


def _attention_sizes(args: dict, d_model: int, epsilon: float) -> AttentionSizes:
    heads = integer(args, "num_attention_heads", 32)
    kv_heads = heads
    if args.get("group_query_attention"):
        kv_heads = integer(args, "num_query_groups", heads)
    head_dim = d_model // heads
    if args.get("kv_channels") is not None:
        head_dim = integer(args, "kv_channels", head_dim)
    turning = 0, 10000.0
    if args.get("position_embedding_type", "none") == "rope":
        rope = {
            "partial_rotary_factor": args.get("rotary_percent"),
            "rope_theta": args.get("rotary_base"),
        }
        turning = rotary(rope, head_dim, share=1.0)
    return AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=turning[0],
        theta=turning[1],
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
    )


def _mlp_sizes(args: dict, d_model: int, epsilon: float) -> MlpSizes:
    activation = "gelu"
    if args.get("squared_relu"):
        activation = "relu_squared"
    elif args.get("swiglu"):
        activation = "silu"
    return MlpSizes(
        d_model=d_model,
        d_hidden=integer(args, "ffn_hidden_size", 4 * d_model),
        activation=activation,
        gated=bool(args.get("swiglu")),
        norm_epsilon=epsilon,
    )


def _norm(stored: dict, prefix: str, alone: str, fused: str, width: int) -> Part:
    """A norm before a layer lies alone, or with the projection after it."""
    name = f"{prefix}{fused}.layer_norm_weight"
    return Part(name if name in stored else f"{prefix}{alone}.weight", (width,))


def _conv(stored: dict, prefix: str, what: str) -> str:
    newer = f"{prefix}mixer.conv1d_{what}"
    return newer if newer in stored else f"{prefix}mixer.conv1d.{what}"


def _mixer_parts(c: Mamba2Sizes, prefix: str, stored: dict) -> dict[str, Part]:
    conv = c.d_inner + 2 * c.groups * c.d_state
    inside = f"{prefix}mixer."
    shape = (c.d_inner + conv + c.heads, c.d_model)
    return {
        "norm": _norm(stored, prefix, "norm", "mixer.in_proj", c.d_model),
        "in_proj": Part(f"{inside}in_proj.weight", shape),
        "conv_weight": Part(
            _conv(stored, prefix, "weight"), (conv, 1, c.d_conv), without_middle_axis
        ),
        "conv_bias": Part(_conv(stored, prefix, "bias"), (conv,)),
        "dt_bias": Part(f"{inside}dt_bias", (c.heads,)),
        "A_log": Part(f"{inside}A_log", (c.heads,)),
        "D": Part(f"{inside}D", (c.heads,)),
        "gate_norm": Part(f"{inside}norm.weight", (c.d_inner,)),
        "out_proj": Part(f"{inside}out_proj.weight", (c.d_model, c.d_inner)),
    }


def _attention_parts(c: AttentionSizes, prefix: str, stored: dict) -> dict[str, Part]:
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


def _mlp_parts(c: MlpSizes, prefix: str, stored: dict) -> dict[str, Part]:
    first = f"{prefix}mlp.linear_fc1.weight"
    parts = {
        "norm": _norm(stored, prefix, "pre_mlp_layernorm", "mlp.linear_fc1", c.d_model),
        "down": Part(f"{prefix}mlp.linear_fc2.weight", (c.d_model, c.d_hidden)),
    }
    if not c.gated:
        return parts | {"up": Part(first, (c.d_hidden, c.d_model))}
    shape = (2 * c.d_hidden, c.d_model)
    return parts | {
        "gate": Part(first, shape, rows(0, c.d_hidden)),
        "up": Part(first, shape, rows(c.d_hidden, 2 * c.d_hidden)),
    }
