"""OpenELM (arXiv 2404.14619), whose code is not in transformers."""

from typing import Any

from ..._errors import UnsupportedCheckpointError
from ...sublayers import AttentionSizes, MlpSizes, NetworkConfig
from .._blocks import fused_mlp_parts, rows
from .._checkpoint import Checkpoint
from .._network import NetworkLayout, Part, TopNames, recognise_network
from .._settings import activation, integer, layer_count, positive, refuse, switch
from ._families import LIST_HINT


_EPSILON = 1e-6  # Apple's code fixes it


def openelm_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "openelm"; each layer has its own."""
    d_model = integer(config, "model_dim", 2048)
    layers = layer_count(config, "num_transformer_layers", 12)
    head_dim = integer(config, "head_dim", 128)
    if not switch(config, "ffn_with_glu", True):
        raise UnsupportedCheckpointError(
            "OpenELM with MLPs without a gate is not covered", hint=LIST_HINT
        )
    if config.get("normalization_layer_name", "rms_norm") != "rms_norm":
        raise UnsupportedCheckpointError(
            "OpenELM with norms other than RMSNorm is not covered", hint=LIST_HINT
        )
    act = activation(config, "swish", "activation_fn_name")
    theta = positive(config, "rope_freq_constant", 10000.0)
    queries = _of_layers(config, "num_query_heads", layers)
    keys = _of_layers(config, "num_kv_heads", layers)
    widths = _of_layers(config, "ffn_multipliers", layers)
    divisor = integer(config, "ffn_dim_divisor", 256)
    sublayers: list[Any] = []
    for heads, kv_heads, width in zip(queries, keys, widths, strict=True):
        if type(heads) is not int or type(kv_heads) is not int or heads % kv_heads:
            raise refuse("num_kv_heads", kv_heads, f"a divisor of {heads}")
        sublayers.append(
            AttentionSizes(
                d_model=d_model,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                rotary=head_dim,
                theta=theta,
                scale=head_dim**-0.5,
                norm_epsilon=_EPSILON,
            )
        )
        sublayers.append(
            MlpSizes(
                d_model=d_model,
                d_hidden=_divisible(float(width) * d_model, divisor),
                activation=act,
                gated=True,
                norm_epsilon=_EPSILON,
            )
        )
    vocab_size = integer(config, "vocab_size", 32000)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=tuple(sublayers),
        norm_epsilon=_EPSILON,
        residual_in_fp32=False,
        tie_embeddings=switch(config, "share_input_output_layers", True),
    )


def _of_layers(config: dict[str, Any], key: str, layers: int) -> list[Any]:
    """A number for each layer; Apple's released files list them all."""
    found = config.get(key)
    numbers = found if isinstance(found, list) else [found] * layers
    plain = [n for n in numbers if isinstance(n, int | float) and 0 < n < 2**31]
    if len(plain) != layers or len(numbers) != layers:
        raise refuse(key, found, f"a list of {layers} positive numbers")
    return plain


def _divisible(size: float, divisor: int) -> int:
    """The nearest multiple of the divisor, not more than a tenth below."""
    near = max(divisor, int(size + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * size else near


def recognise_openelm(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """An OpenELM model; queries, keys and values lie in one tensor."""
    width = config.d_model
    parts: list[dict[str, Part]] = []
    for i, sizes in enumerate(config.sublayers):
        prefix = f"transformer.layers.{i // 2}."
        if isinstance(sizes, MlpSizes):
            own = fused_mlp_parts(
                sizes, f"{prefix}ffn.proj_1.weight", f"{prefix}ffn.proj_2.weight"
            )
            parts.append(own | {"norm": Part(f"{prefix}ffn_norm.weight", (width,))})
            continue
        inside, size = f"{prefix}attn.", sizes.head_dim
        q, kv = sizes.heads * size, sizes.kv_heads * size
        shape, fused = (q + 2 * kv, width), f"{inside}qkv_proj.weight"
        own = {
            "norm": Part(f"{prefix}attn_norm.weight", (width,)),
            "q_proj": Part(fused, shape, rows(0, q)),
            "k_proj": Part(fused, shape, rows(q, q + kv)),
            "v_proj": Part(fused, shape, rows(q + kv, q + 2 * kv)),
            "o_proj": Part(f"{inside}out_proj.weight", (width, q)),
        }
        if f"{inside}q_norm.weight" in checkpoint.tensors:
            own["q_norm"] = Part(f"{inside}q_norm.weight", (size,))
            own["k_norm"] = Part(f"{inside}k_norm.weight", (size,))
        parts.append(own)
    embedding = "transformer.token_embeddings.weight"
    names = TopNames(
        embedding=embedding,
        final_norm="transformer.norm.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=("transformer.",),
    )
    layers = len(config.sublayers) // 2
    buffers = [n for n in checkpoint.tensors if n.endswith("pos_embedding.inv_freq")]
    return recognise_network(
        checkpoint, "openelm", config, names, parts, buffers, layers
    )
