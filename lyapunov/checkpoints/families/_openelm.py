"""OpenELM: a Transformer whose heads and widths change from layer to layer."""

from dataclasses import replace
from typing import Any

from .._family import NO_EXPONENT, Family
from .._parts import Described, Part, ending, fused_mlp_parts, rows, top_names
from .._settings import integer, layer_count, positive, refuse, switch, unsupported
from .._sizes import NetworkSettings


_EPSILON = 1e-6  # Apple's code fixes it


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Each layer has sizes of its own; queries, keys and values lie in one tensor."""
    d_model = integer(settings, "model_dim", 2048)
    layers = layer_count(settings, "num_transformer_layers", 12)
    head_dim = integer(settings, "head_dim", 128)
    if not switch(settings, "ffn_with_glu", True):
        raise unsupported("OpenELM with MLPs without a gate is not covered")
    if settings.get("normalization_layer_name", "rms_norm") != "rms_norm":
        raise unsupported("OpenELM with norms other than RMSNorm is not covered")
    network = NetworkSettings(settings, d_model, _EPSILON)
    like = network.mlp(1, size="model_dim", act="swish", act_key="activation_fn_name")
    turning = head_dim, positive(settings, "rope_freq_constant", 10000.0)
    each = ("num_query_heads", "num_kv_heads", "ffn_multipliers")
    queries, keys, widths = (_of_layers(settings, key, layers) for key in each)
    divisor = integer(settings, "ffn_dim_divisor", 256)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, (heads, kv_heads) in enumerate(zip(queries, keys, strict=True)):
        if type(heads) is not int or type(kv_heads) is not int or heads % kv_heads:
            raise refuse("num_kv_heads", kv_heads, f"a divisor of {heads}")
        mlp = replace(like, d_hidden=_divisible(float(widths[i]) * d_model, divisor))
        blocks += [network.attention((heads, kv_heads), head_dim, turning), mlp]
        prefix = f"transformer.layers.{i}."
        inside, fused = f"{prefix}attn.", f"{prefix}attn.qkv_proj.weight"
        q, kv = heads * head_dim, kv_heads * head_dim
        shape = (q + 2 * kv, d_model)
        own = {
            "norm": Part(f"{prefix}attn_norm.weight", (d_model,)),
            "q_proj": Part(fused, shape, rows(0, q)),
            "k_proj": Part(fused, shape, rows(q, q + kv)),
            "v_proj": Part(fused, shape, rows(q + kv, q + 2 * kv)),
            "o_proj": Part(f"{inside}out_proj.weight", (d_model, q)),
        }
        if f"{inside}q_norm.weight" in stored:
            own["q_norm"] = Part(f"{inside}q_norm.weight", (head_dim,))
            own["k_norm"] = Part(f"{inside}k_norm.weight", (head_dim,))
        behind = fused_mlp_parts(mlp, f"{prefix}ffn.proj_1", f"{prefix}ffn.proj_2")
        behind["norm"] = Part(f"{prefix}ffn_norm.weight", (d_model,))
        parts += [own, behind]
    tied = switch(settings, "share_input_output_layers", True)
    config = network.config(blocks, tie_embeddings=tied)
    names = top_names(config, "transformer", "token_embeddings", "norm")
    buffers = ending(stored, "pos_embedding.inv_freq")
    return Described(config, names, parts, buffers, layers)


def _of_layers(settings: dict[str, Any], key: str, layers: int) -> list[Any]:
    """A number for each layer; Apple's released files list them all."""
    found = settings.get(key)
    numbers = found if isinstance(found, list) else [found] * layers
    plain = [n for n in numbers if isinstance(n, int | float) and 0 < n < 2**31]
    if len(plain) != layers or len(numbers) != layers:
        raise refuse(key, found, f"a list of {layers} positive numbers")
    return plain


def _divisible(size: float, divisor: int) -> int:
    """The nearest multiple of the divisor, not more than a tenth below."""
    near = max(divisor, int(size + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * size else near


OPENELM = Family(
    "OpenELM",
    ("Apple's own (model_type openelm): model.safetensors",),
    {"transformers": _read},
    ("heads and widths that change from layer to layer",),
    (NO_EXPONENT, "MLPs without a gate, norms other than RMSNorm"),
)
