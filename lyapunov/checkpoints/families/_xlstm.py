"""xLSTM with matrix cells alone (xLSTM-7B): an mLSTM and an MLP a block."""

from typing import Any

from ... import sublayers
from .._family import Family, of_transformers
from .._parts import Described, Part, norm_parts, rows, top_names
from .._settings import integer, layer_count, positive, refuse, switch, unsupported
from .._sizes import NetworkSettings
from ..files._files import disagreeing


_SINGLE = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "g_proj": "ogate_preact",
    "i_proj": "igate_preact", "f_proj": "fgate_preact",
}  # fmt: skip


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    del stored
    settings = {key: value for key, value in settings.items() if value is not None}
    network = NetworkSettings.of(settings, 4096, "norm_eps", 1e-6)
    d_model, epsilon = network.d_model, network.epsilon
    embedded = integer(settings, "embedding_dim", d_model)
    layers = layer_count(settings, "num_hidden_layers", 32)
    blocks_said = layer_count(settings, "num_blocks", layers)
    for name, one, other in (
        ("embedding_dim", embedded, d_model), ("num_blocks", blocks_said, layers),
    ):  # fmt: skip
        if one != other:
            raise disagreeing(f"config.json says {name} = {one}, and {other} as well")
    if switch(settings, "use_bias", False):
        raise unsupported("config.json says use_bias = true: biases are not covered")
    if not switch(settings, "norm_reduction_force_float32", True):
        raise unsupported(
            "config.json says norm_reduction_force_float32 = false: norms in the"
            " model's own format are not covered"
        )
    mode = settings.get("weight_mode", "single")
    if mode not in ("single", "fused"):
        raise refuse("weight_mode", mode, "single or fused")
    heads = integer(settings, "num_heads", 8)
    keys, values = (
        int(d_model * positive(settings, name, default))
        for name, default in (("qk_dim_factor", 0.5), ("v_dim_factor", 1.0))
    )
    if keys % heads or values % heads or not keys or not values:
        raise disagreeing(
            f"config.json: {keys} channels of keys and {values} of values do not fall"
            f" into {heads} heads"
        )
    mixer = sublayers.MLSTMSizes(
        d_model,
        heads,
        keys // heads,
        values // heads,
        epsilon,
        epsilon,
        positive(settings, "gate_soft_cap", 15.0),
        positive(settings, "eps", 1e-6),
        integer(settings, "chunk_size", 64),
    )
    hidden, multiple = (
        d_model * positive(settings, "ffn_proj_factor", 2.667),
        integer(settings, "ffn_round_up_to_multiple_of", 64),
    )
    hidden = int((hidden + multiple - 1) // multiple * multiple)
    mlp = sublayers.MlpSizes(d_model, hidden, "silu", True, epsilon)
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        prefix = f"backbone.blocks.{i}."
        parts.append(mlstm_parts(mixer, prefix, mode == "fused"))
        parts.append(_mlp_parts(mlp, prefix, mode == "fused"))
    config = network.config(
        [mixer, mlp] * layers,
        vocab_size=50304,
        logits_soft_cap=positive(settings, "output_logit_soft_cap", 30.0),
    )
    names = top_names(config, "backbone", "embeddings", "out_norm")
    return Described(config, names, parts, (), layers)


def mlstm_parts(m: "sublayers.MLSTMSizes", prefix: str, fused: bool) -> dict[str, Part]:
    inside, keys, values = (
        f"{prefix}mlstm_layer.",
        m.heads * m.key_dim,
        m.heads * m.value_dim,
    )
    sizes = {"q": keys, "k": keys, "v": values, "g": values}
    parts = norm_parts(f"{prefix}norm_mlstm", m.d_model) | {
        "gate_norm": Part(f"{inside}multihead_norm.weight", (values,)),
        "out_proj": Part(f"{inside}out_proj.weight", (m.d_model, values)),
    }
    gates = dict.fromkeys("if", m.heads)
    for name, of in (("qkv_opreact", sizes), ("ifgate_preact", gates)):
        total, first = sum(of.values()), 0
        for key, size in of.items():
            own, take, count = _SINGLE[f"{key}_proj"], None, size
            if fused:
                own, take, count = name, rows(first, first + size), total
            shape = (count, m.d_model)
            parts[f"{key}_proj"] = Part(f"{inside}{own}.weight", shape, take)
            if key in gates:
                parts[f"{key}_bias"] = Part(f"{inside}{own}.bias", (count,), take)
            first += size
    return parts


def _mlp_parts(m: "sublayers.MlpSizes", prefix: str, fused: bool) -> dict[str, Part]:
    inside, hidden = f"{prefix}ffn.", m.d_hidden
    parts = norm_parts(f"{prefix}norm_ffn", m.d_model)
    parts["down"] = Part(f"{inside}proj_down.weight", (m.d_model, hidden))
    for place, (key, name) in enumerate((("gate", "proj_up_gate"), ("up", "proj_up"))):
        shape, take = (hidden, m.d_model), None
        if fused:
            name, shape = "proj_up_gate_z", (2 * hidden, m.d_model)
            take = rows(place * hidden, (place + 1) * hidden)
        parts[key] = Part(f"{inside}{name}.weight", shape, take)
    return parts


XLSTM = Family(
    "xLSTM",
    (of_transformers("xlstm"),),
    {"transformers": _read},
    ("weights one by one and fused", "soft caps of gates and logits"),
    (
        "biases (use_bias)",
        "sLSTM blocks, which transformers does not have",
        "transformers' chunkwise kernel: calls of chunk_size tokens and more",
    ),
)
