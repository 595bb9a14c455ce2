"""MiniMax: lightning attention and attention, experts after each.

Norms stand in the stream: what they put out is multiplied and added to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import sublayers
from .._family import NO_EXPONENT, POSITIONS, SILU, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    expert_parts,
    inside_of,
    norm_parts,
    rows_of_each,
    top_names,
)
from .._settings import (
    covered_layers,
    integer,
    layer_count,
    number,
    refuse,
    silu_only,
)
from .._sizes import NetworkSettings
from ..files._files import disagreeing, quote


if TYPE_CHECKING:
    import numpy as np


_DEFAULTS = {"rope_theta": 1e6, "num_key_value_heads": 8}
_LEAST_SURE = 2.0**-8
"""Buffers may have been rounded to bf16 twice, as slopes and as what is made of them:
2^-9 of itself, and 2^-9 of x exp(-x), each."""


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    settings = _DEFAULTS | settings
    network = NetworkSettings.of(settings, 4096, "rms_norm_eps", 1e-5)
    layers = layer_count(settings, "num_hidden_layers", 32)
    default = ["mamba" if i % 2 else "attention" for i in range(layers)]
    given = settings.get("attn_type_list")
    if given is not None and settings.get("layer_types") is None:
        default = _of_types(given, layers)
    kinds = covered_layers(settings, ("mamba", "attention"), default)
    window = settings.get("sliding_window")
    full = network.llama_attention(
        norm_front=False,
        window=None if window is None else integer(settings, "sliding_window", 1),
        **_factors(settings, "full_attn"),
    )
    linear = sublayers.LightningSizes(
        d_model=network.d_model,
        heads=full.heads,
        head_dim=full.head_dim,
        block=integer(settings, "block_size", 256),
        gate_norm_epsilon=1e-6,
        **_factors(settings, "linear_attn"),
    )
    mlp = network.mlp(14336)
    sparse = network.experts(
        mlp,
        integer(settings, "num_local_experts", 8),
        mlp.d_hidden,
        scoring="softmax",
        shares=True,
        norm_front=False,
        **_factors(settings, "mlp"),
    )
    norm = sublayers.NormSizes(network.d_model, network.epsilon)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, kind in enumerate(kinds):
        prefix = f"model.layers.{i}."
        inside, names = f"{prefix}self_attn.", ("block_sparse_moe.", "mlp.")
        own = inside_of(stored, "gate.weight", *(f"{prefix}{name}" for name in names))
        blocks += [norm, linear if kind == "mamba" else full, norm, sparse]
        parts += [
            norm_parts(f"{prefix}input_layernorm", network.d_model),
            _linear_parts(linear, inside, (i, layers))
            if kind == "mamba"
            else attention_parts(full, stored, inside),
            norm_parts(f"{prefix}post_attention_layernorm", network.d_model),
            _expert_parts(sparse, stored, own),
        ]
    config = network.config(blocks)
    names = top_names(config, "model", "embed_tokens", "norm")
    return Described(config, names, parts, (), layers)


def _of_types(given: object, layers: int) -> list[str]:
    """The older list, of 0 for linear attention and 1 for attention."""
    if not isinstance(given, list) or any(one not in (0, 1) for one in given):
        raise refuse("attn_type_list", given, "a list of 0 and 1")
    if len(given) != layers:
        raise disagreeing(
            f"config.json names {len(given)} layers in attn_type_list, and counts"
            f" {layers}"
        )
    return ["attention" if one else "mamba" for one in given]


def _factors(settings: dict[str, Any], of: str) -> dict[str, Any]:
    """Of the stream that is read, and of what is added to it."""
    return {
        "keeps": number(settings, f"{of}_alpha_factor"),
        "out_multiplier": number(settings, f"{of}_beta_factor"),
    }


def _expert_parts(
    e: sublayers.ExpertsSizes, stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    return {
        "router": Part(f"{prefix}gate.weight", (e.experts, e.d_model)),
        **expert_parts(e, stored, f"{prefix}experts.", names),
    }


def _linear_parts(
    s: sublayers.LightningSizes, prefix: str, place: tuple[int, int]
) -> dict[str, Part]:
    """A head's queries, keys and values lie behind each other in one tensor."""
    import numpy as np

    wide, block = s.heads * s.head_dim, s.block
    shape = (3 * wide, s.d_model)
    parts = {}
    for i, name in enumerate("qkv"):
        take = rows_of_each(s.heads, i * s.head_dim, (i + 1) * s.head_dim)
        parts[f"{name}_proj"] = Part(f"{prefix}qkv_proj.weight", shape, take)
    slopes = slopes_of(s.heads, *place)
    since = np.arange(1, block + 1)
    apart = since[:, None] - since
    between = np.where(apart >= 0, np.exp(-slopes[:, None, None] * abs(apart)), 0.0)
    made = {
        "slope": ("slope_rate", (s.heads, 1, 1), slopes),
        "query_decay": ("", (s.heads, block, 1), np.exp(-slopes[:, None] * since)),
        "key_decay": (
            "", (s.heads, block, 1), np.exp(-slopes[:, None] * (block - since)),
        ),
        "diagonal_decay": ("", (1, s.heads, block, block), between),
    }  # fmt: skip
    for key, (name, size, meant) in made.items():
        where = f"{prefix}{name or key}"
        parts[key] = Part(where, size, _held_to(meant, where))
    return {
        **parts,
        "g_proj": Part(f"{prefix}output_gate.weight", (wide, s.d_model)),
        "gate_norm": Part(f"{prefix}norm.weight", (wide,)),
        "out_proj": Part(f"{prefix}out_proj.weight", (s.d_model, wide)),
    }


def slopes_of(heads: int, layer: int, layers: int) -> np.ndarray:
    """What the code makes the slopes of a layer of, (heads)."""
    import numpy as np

    factor = 1.0 - layer / (layers - 1 + 1e-5) + 1e-5
    return 2.0 ** (-8.0 / heads * np.arange(1, heads + 1)) * factor


def _held_to(meant: np.ndarray, name: str) -> Callable[[Any], Any]:
    """A buffer as it is stored, if it is what config.json makes of it."""

    def take(array: Any) -> Any:
        own = array.reshape(meant.shape)
        apart = abs(own.astype("float64") - meant)
        sure = _LEAST_SURE * (meant if name.endswith("slope_rate") else 1.0)
        if not (apart <= sure).all():
            raise disagreeing(
                f"{quote(name)} is off what the settings in config.json make it by"
                f" {apart.max():.2g}"
            )
        return own

    return take


MINIMAX = Family(
    "MiniMax",
    (of_transformers("minimax"),),
    {"transformers": _read},
    (
        "slopes and decays as they are stored, held to what config.json makes them; a"
        " file in bf16 has them rounded apart, so that whole texts, by the decays, are"
        " another function than steps, by the slopes, which is the reference's",
        "factors of the stream and of what is added; attention in windows",
    ),
    (NO_EXPONENT, SILU, POSITIONS, "files without the buffers of decays"),
)
