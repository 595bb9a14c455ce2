"""GPT-NeoX (Pythia), a Transformer for contrast."""

from typing import Any

from .._family import NO_EXPONENT, POSITIONS, Family, of_transformers
from .._parts import Described, Part, ending, linear_parts, norm_parts, top_names
from .._settings import head_size, integer, layer_count, positive, rotary, switch
from .._sizes import NetworkSettings


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Query, key and value lie in one tensor, head by head."""
    width = integer(settings, "hidden_size", 6144)
    heads = integer(settings, "num_attention_heads", 64)
    head_dim = head_size(settings, width, heads)
    turning = rotary(
        settings,
        head_dim,
        share=positive(settings, "rotary_pct", 0.25),
        theta=positive(settings, "rotary_emb_base", 10000.0),
    )
    epsilon = positive(settings, "layer_norm_eps", 1e-5)
    network = NetworkSettings(settings, width, epsilon)
    attention = network.attention((heads, heads), head_dim, turning, norm_centred=True)
    beside = switch(settings, "use_parallel_residual", True)
    mlp = network.mlp(24576, act="gelu", gated=False, norm_centred=True, beside=beside)
    layers = layer_count(settings, "num_hidden_layers", 44)
    config = network.config(
        [attention, mlp] * layers, vocab_size=50432, norm_centred=True
    )
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        prefix = f"gpt_neox.layers.{i}."
        inside, hidden = f"{prefix}attention.", mlp.d_hidden
        own = norm_parts(f"{prefix}input_layernorm", width, True)
        own |= linear_parts("o_proj", f"{inside}dense", (width, width), stored)
        for j, name in enumerate("qkv"):
            fused, take = f"{inside}query_key_value", _of_each_head(j, heads)
            shape = (3 * width, width)
            own |= linear_parts(f"{name}_proj", fused, shape, stored, take)
        parts += [
            own,
            {
                **norm_parts(f"{prefix}post_attention_layernorm", width, True),
                "up": Part(f"{prefix}mlp.dense_h_to_4h.weight", (hidden, width)),
                "up_bias": Part(f"{prefix}mlp.dense_h_to_4h.bias", (hidden,)),
                "down": Part(f"{prefix}mlp.dense_4h_to_h.weight", (width, hidden)),
                "down_bias": Part(f"{prefix}mlp.dense_4h_to_h.bias", (width,)),
            },
        ]
    names = top_names(config, "gpt_neox", "embed_in", "final_layer_norm", "embed_out")
    names = names._replace(
        inside=("gpt_neox.", "embed_out."),
        final_norm_bias="gpt_neox.final_layer_norm.bias",
    )
    ends = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
    return Described(config, names, parts, ending(stored, *ends), layers)


def _of_each_head(j: int, heads: int) -> Any:
    def take(array: Any) -> Any:
        apart = array.reshape(heads, 3, -1, *array.shape[1:])
        return apart[:, j].reshape(-1, *array.shape[1:])

    return take


GPT_NEOX = Family(
    "GPT-NeoX (Pythia)",
    (of_transformers("gpt_neox"),),
    {"transformers": _read},
    ("attention and MLP side by side or in turn",),
    (NO_EXPONENT, POSITIONS),
)
