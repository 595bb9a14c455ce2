"""RWKV-4: time mixing and channel mixing, each behind a LayerNorm."""

from typing import Any

from ... import sublayers
from .._family import Family, of_transformers
from .._parts import Described, Part, norm_parts, top_names
from .._settings import integer, layer_count, refuse
from .._sizes import NetworkSettings


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """transformers halves the stream behind every so many blocks, and divides what is
    added to it as often by 2: all of it exactly. So the function is that of the file's
    weights and of the whole stream, with norms whose epsilon is four times as large
    each time."""
    del stored
    network = NetworkSettings.of(settings, 4096, "layer_norm_epsilon", 1e-5)
    d_model, epsilon = network.d_model, network.epsilon
    layers = layer_count(settings, "num_hidden_layers", 32)
    settings = {key: value for key, value in settings.items() if value is not None}
    width = integer(settings, "attention_hidden_size", d_model)
    hidden = integer(settings, "intermediate_size", 4 * d_model)
    every = settings.get("rescale_every", 6)
    if type(every) is not int:
        raise refuse("rescale_every", every, "an integer")
    halved = lambda i: i // every if every > 0 else 0
    own = lambda i: (epsilon * 4.0 ** halved(i), halved(i))
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        blocks.append(sublayers.Rwkv4Sizes(d_model, width, *own(i)))
        blocks.append(sublayers.ChannelMixSizes(d_model, hidden, *own(i)))
        prefix = f"rwkv.blocks.{i}."
        parts.append(time_parts(prefix, d_model, width))
        parts.append(_channel_parts(prefix, d_model, hidden))
    config = network.config(
        blocks,
        vocab_size=50277,
        norm_centred=True,
        norm_epsilon=own(layers)[0],
        embedding_norm_epsilon=epsilon,
    )
    names = top_names(config, "rwkv", "embeddings", "ln_out", "head")._replace(
        inside=("rwkv.", "head."),
        final_norm_bias="rwkv.ln_out.bias",
        embedding_norm="rwkv.blocks.0.pre_ln.weight",
        embedding_norm_bias="rwkv.blocks.0.pre_ln.bias",
    )
    return Described(config, names, parts, (), layers)


def time_parts(prefix: str, d_model: int, width: int) -> dict[str, Part]:
    inside = f"{prefix}attention."
    rows = (("k_proj", "key"), ("v_proj", "value"), ("r_proj", "receptance"))
    return {
        **norm_parts(f"{prefix}ln1", d_model, True),
        **{k: Part(f"{inside}{name}.weight", (width, d_model)) for k, name in rows},
        **_mixes(inside, d_model, "key value receptance"),
        "time_decay": Part(f"{inside}time_decay", (width,)),
        "time_first": Part(f"{inside}time_first", (width,)),
        "out_proj": Part(f"{inside}output.weight", (d_model, width)),
    }


def _channel_parts(prefix: str, d_model: int, hidden: int) -> dict[str, Part]:
    inside = f"{prefix}feed_forward."
    return {
        **norm_parts(f"{prefix}ln2", d_model, True),
        **_mixes(inside, d_model, "key receptance"),
        "up": Part(f"{inside}key.weight", (hidden, d_model)),
        "r_proj": Part(f"{inside}receptance.weight", (d_model, d_model)),
        "down": Part(f"{inside}value.weight", (d_model, hidden)),
    }


def _mixes(inside: str, d_model: int, names: str) -> dict[str, Part]:
    shape, flat = (1, 1, d_model), lambda array: array.reshape(-1)
    return {
        f"mix_{name[0]}": Part(f"{inside}time_mix_{name}", shape, flat)
        for name in names.split()
    }


RWKV = Family(
    "RWKV-4",
    (of_transformers("rwkv"),),
    {"transformers": _read},
    ("any rescale_every", "channels of the recurrence of another number"),
    ("files that RWKV's own code wrote (.pth)", "RWKV-5, RWKV-6 and RWKV-7"),
)
