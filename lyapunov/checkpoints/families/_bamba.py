"""Bamba: Mamba-2 and attention, an MLP after each."""

from typing import Any

from .._family import NO_EXPONENT, SILU, Family, of_llama_cpp, of_transformers
from .._parts import Described
from .._settings import layer_count, refuse, silu_only
from .._sizes import NetworkSettings
from ._hybrid import bamba_mixer, layers_in_turn


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(settings, 4096, "rms_norm_eps", 1e-5)
    mixer, mlp = bamba_mixer(network), network.mlp(14336)
    # half of each head turns, whatever config.json says of it
    attention = network.llama_attention(share=0.5)
    attended = settings.get("attn_layer_indices") or []
    if not isinstance(attended, list):
        raise refuse("attn_layer_indices", attended, "a list of layers")
    blocks: list[Any] = []
    for i in range(layer_count(settings, "num_hidden_layers", 32)):
        blocks += [attention if i in attended else mixer, mlp]
    return layers_in_turn(stored, network.config(blocks), 2)


BAMBA = Family(
    "Bamba",
    (of_transformers("bamba"), of_llama_cpp("granitehybrid")),
    {"transformers": _read},
    ("attention whose heads turn by half", "biases", "limits of dt"),
    (NO_EXPONENT, SILU),
)
