"""Every parameter that a kind of sublayer can have, drawn in its stored shape."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lyapunov.sublayers import AbstractSublayer

from .every_kind import SIZES


RANK = 2  # of adapters
WIDTH = 8


def around(d_model: int = WIDTH, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {
        **dict.fromkeys(("norm", "norm_bias"), (width,)),
        **dict.fromkeys(("norm_behind", "norm_behind_bias"), (d_model,)),
    }


def adapters(name: str, rows: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}_adapter_down": (RANK, width),
        f"{name}_adapter_up": (rows, RANK),
    }


def mamba1(s) -> dict[str, tuple[int, ...]]:
    own = s.d_inner // s.heads
    norms = {"dt_norm": s.dt_rank, "B_norm": s.d_state, "C_norm": s.d_state}
    return {
        **around(),
        "in_proj": (2 * s.d_inner, s.d_model),
        "in_proj_bias": (2 * s.d_inner,),
        "conv_weight": (s.d_inner, s.d_conv),
        **dict.fromkeys(("conv_bias", "dt_bias", "D"), (s.d_inner,)),
        "x_proj": (s.heads, s.dt_rank + 2 * s.d_state, own),
        "dt_proj": (s.heads, own, s.dt_rank),
        "A_log": (s.d_inner, s.d_state),
        "out_proj": (s.d_model, s.d_inner),
        "out_proj_bias": (s.d_model,),
        **{f"{n}{end}": (w,) for n, w in norms.items() for end in ("", "_bias")},
    }


def mamba2(s) -> dict[str, tuple[int, ...]]:
    mixed = s.d_inner + 2 * s.groups * s.d_state
    return {
        **around(),
        "in_proj": (s.d_inner + mixed + s.heads, s.d_model),
        "in_proj_bias": (s.d_inner + mixed + s.heads,),
        "conv_weight": (mixed, s.d_conv),
        "conv_bias": (mixed,),
        **dict.fromkeys(("dt_bias", "A_log", "D"), (s.heads,)),
        "gate_norm": (s.d_inner,),
        "out_proj": (s.d_model, s.d_inner),
        "out_proj_bias": (s.d_model,),
    }


def mamba3(s) -> dict[str, tuple[int, ...]]:
    rank, head_dim = s.rank or 1, s.d_inner // s.heads
    rows = 2 * s.d_inner + 2 * rank * s.groups * s.d_state + 3 * s.heads + s.angles
    of_rank = dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), (s.heads, rank, head_dim))
    found: dict[str, tuple[int, ...]] = {
        **around(),
        "in_proj": (rows, s.d_model),
        **dict.fromkeys(("dt_bias", "D"), (s.heads,)),
        **dict.fromkeys(("B_bias", "C_bias"), (s.heads, rank, s.d_state)),
        **{f"{n}_norm{end}": (s.d_state,) for n in "BC" for end in ("", "_bias")},
        "gate_norm": (s.d_inner,),
        "out_proj": (s.d_model, s.d_inner),
    }
    return found if s.rank is None else found | of_rank


def gated_delta(s) -> dict[str, tuple[int, ...]]:
    keys, values = s.key_heads * s.key_dim, s.value_heads * s.value_dim
    return {
        "norm": (s.d_model,),
        **dict.fromkeys(("q_proj", "k_proj"), (keys, s.d_model)),
        **dict.fromkeys(("v_proj", "z_proj"), (values, s.d_model)),
        **dict.fromkeys(("a_proj", "b_proj"), (s.value_heads, s.d_model)),
        "conv_weight": (2 * keys + values, s.d_conv),
        "conv_bias": (2 * keys + values,),
        **dict.fromkeys(("dt_bias", "A_log"), (s.value_heads,)),
        "gate_norm": (s.value_dim,),
        "out_proj": (s.d_model, values),
    }


def kimi_delta(s) -> dict[str, tuple[int, ...]]:
    keys, values = s.heads * s.key_dim, s.heads * s.value_dim
    found: dict[str, tuple[int, ...]] = {
        "norm": (s.d_model,),
        **dict.fromkeys(("q_proj", "k_proj"), (keys, s.d_model)),
        "v_proj": (values, s.d_model),
        "b_proj": (s.heads, s.d_model),
        "conv_weight": (2 * keys + values, s.d_conv),
        "conv_bias": (2 * keys + values,),
        "dt_bias": (keys,),
        "A_log": (s.heads,),
        "gate_norm": (s.value_dim,),
        "out_proj": (s.d_model, values),
    }
    for name, rows in (("f", keys), ("g", values)):
        if s.gate_rank is None:
            found[f"{name}_proj"] = (rows, s.d_model)
        else:
            found[f"{name}_down"] = (s.gate_rank, s.d_model)
            found[f"{name}_up"] = (rows, s.gate_rank)
    return found


def short_conv(s) -> dict[str, tuple[int, ...]]:
    return {
        **dict.fromkeys(("norm", "norm_bias", "conv_bias"), (s.d_model,)),
        "in_proj": (3 * s.d_model, s.d_model),
        "in_proj_bias": (3 * s.d_model,),
        "conv_weight": (s.d_model, s.d_conv),
        "out_proj": (s.d_model, s.d_model),
        "out_proj_bias": (s.d_model,),
    }


def rg_lru(s) -> dict[str, tuple[int, ...]]:
    each = s.d_inner // s.heads
    return {
        "norm": (s.d_model,),
        **dict.fromkeys(("x_proj", "y_proj"), (s.d_inner, s.d_model)),
        **dict.fromkeys(("x_bias", "y_bias", "conv_bias"), (s.d_inner,)),
        "conv_weight": (s.d_inner, s.d_conv),
        **dict.fromkeys(("input_gate", "decay_gate"), (s.heads, each, each)),
        **dict.fromkeys(("input_gate_bias", "decay_gate_bias"), (s.d_inner,)),
        "decay_logit": (s.d_inner,),
        "out_proj": (s.d_model, s.d_inner),
        "out_bias": (s.d_model,),
    }


def rwkv4(s) -> dict[str, tuple[int, ...]]:
    mixes = ("norm", "norm_bias", "mix_k", "mix_v", "mix_r")
    return {
        **dict.fromkeys(mixes, (s.d_model,)),
        **dict.fromkeys(("k_proj", "v_proj", "r_proj"), (s.width, s.d_model)),
        **dict.fromkeys(("time_decay", "time_first"), (s.width,)),
        "out_proj": (s.d_model, s.width),
    }


def channel_mix(s) -> dict[str, tuple[int, ...]]:
    return {
        **dict.fromkeys(("norm", "norm_bias", "mix_k", "mix_r"), (s.d_model,)),
        "up": (s.d_hidden, s.d_model),
        "r_proj": (s.d_model, s.d_model),
        "down": (s.d_model, s.d_hidden),
    }


def lightning(s) -> dict[str, tuple[int, ...]]:
    wide, names = s.heads * s.head_dim, ("q_proj", "k_proj", "v_proj", "g_proj")
    return {
        **dict.fromkeys(names, (wide, s.d_model)),
        "out_proj": (s.d_model, wide),
        "gate_norm": (wide,),
        "slope": (s.heads,),
        **dict.fromkeys(("query_decay", "key_decay"), (s.heads, s.block)),
        "diagonal_decay": (s.heads, s.block, s.block),
    }


def norm(s) -> dict[str, tuple[int, ...]]:
    return {"norm": (s.d_model,)}


def mlstm(s) -> dict[str, tuple[int, ...]]:
    keys, values = s.heads * s.key_dim, s.heads * s.value_dim
    return {
        "norm": (s.d_model,),
        **dict.fromkeys(("q_proj", "k_proj"), (keys, s.d_model)),
        **dict.fromkeys(("v_proj", "g_proj"), (values, s.d_model)),
        **dict.fromkeys(("i_proj", "f_proj"), (s.heads, s.d_model)),
        **dict.fromkeys(("i_bias", "f_bias"), (s.heads,)),
        "gate_norm": (values,),
        "out_proj": (s.d_model, values),
    }


def latents(s, width: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, rank, more in (("q", s.q_rank, 0), ("kv", s.kv_rank, s.shared_key)):
        if rank:
            found[f"{name}_down"] = (rank + more, width)
            found[f"{name}_down_bias"] = (rank + more,)
            names = (f"{name}_down_norm", f"{name}_down_norm_bias")
            found |= dict.fromkeys(names, (rank,))
    return found


def attention(s) -> dict[str, tuple[int, ...]]:
    width = s.width or s.d_model
    value_dim = s.value_dim or s.head_dim
    rows = {
        "q": (s.heads * s.head_dim, s.q_rank or width),
        "k": (s.kv_heads * (s.head_dim - s.shared_key), s.kv_rank or width),
        "v": (s.kv_heads * value_dim, s.kv_rank or width),
    }
    found: dict[str, tuple[int, ...]] = around(s.d_model, width) | latents(s, width)
    for name, (count, of) in rows.items():
        found |= {f"{name}_proj": (count, of), f"{name}_bias": (count,)}
        found |= adapters(name, count, of)
    if s.gates:
        gates = s.gates * s.heads
        found |= {"g_proj": (gates, width), "g_bias": (gates,)}
    for name, size in (("q", s.head_dim), ("k", s.head_dim - s.shared_key)):
        found |= dict.fromkeys((f"{name}_norm", f"{name}_norm_bias"), (size,))
    if s.d_conv:
        mixed = sum(count for count, _ in rows.values())
        found |= {"conv_weight": (mixed, s.d_conv), "conv_bias": (mixed,)}
    inner = s.heads * value_dim
    return found | {"o_proj": (s.d_model, inner), "o_bias": (s.d_model,)}


def mlp(s) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = around()
    for name in ("up", "gate") if s.gated else ("up",):
        found |= {name: (s.d_hidden, s.d_model), f"{name}_bias": (s.d_hidden,)}
        found |= adapters(name, s.d_hidden, s.d_model)
    return found | {"down": (s.d_model, s.d_hidden), "down_bias": (s.d_model,)}


def experts(s) -> dict[str, tuple[int, ...]]:
    width = s.width or s.d_model
    found = {
        **around(),
        "router": (s.experts, s.d_model),
        "router_bias": (s.experts,),
        "up": (s.experts, s.d_hidden, width),
        "down": (s.experts, width, s.d_hidden),
    }
    if s.gated:
        found["gate"] = found["up"]
    if s.width is not None:
        found |= {"to_latent": (width, s.d_model), "to_latent_bias": (width,)}
        found |= {"from_latent": (s.d_model, width), "from_latent_bias": (s.d_model,)}
    if s.shared is not None:
        found |= {f"shared_{n}": shape for n, shape in mlp(s.shared).items()}
    if s.shared_routed:
        found["shared_router"] = (1, s.d_model)
    return found


def shared(s) -> dict[str, tuple[int, ...]]:
    found = mlp(s.mlp) | attention(s.attention)
    norms = dict.fromkeys(("mlp_norm", "mlp_norm_bias"), (s.mlp.d_model,))
    return found | norms | {"linear": (s.mlp.d_model,) * 2}


def selective_scan(s) -> dict[str, tuple[int, ...]]:
    return {
        "A_log": (s.channels, s.d_state),
        **dict.fromkeys(("dt_bias", "D"), (s.channels,)),
    }


def chunk_scan(s) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("A_log", "dt_bias", "D"), (s.heads,))


SHAPES = {
    "mamba1": mamba1, "mamba2": mamba2, "mamba3": mamba3, "attention": attention,
    "mlp": mlp, "experts": experts, "shared": shared, "gated_delta": gated_delta,
    "kimi_delta": kimi_delta, "short_conv": short_conv, "rg_lru": rg_lru,
    "rwkv4": rwkv4, "channel_mix": channel_mix, "lightning": lightning, "norm": norm,
    "mlstm": mlstm, "selective_scan": selective_scan, "chunk_scan": chunk_scan,
}  # fmt: skip


def parameters(sublayer: AbstractSublayer, *without: str, seed: int = 0):
    """What the flow takes, drawn; all that the kind can have but for some names."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[sublayer.kind](sublayer)
    drawn = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    if "time_decay" in drawn:
        drawn["time_decay"] -= 4.0  # what remembers the tokens of more than one call
    get = lambda n: None if n in without or n not in drawn else jnp.asarray(drawn[n])
    return sublayer.parameters(get)


def width_of(sublayer) -> int:
    """Channels that it reads: of the stream, and of what stands beside it."""
    inner = sublayer.attention if sublayer.kind == "shared" else sublayer
    return (inner.kind == "attention" and inner.width) or inner.d_model


change = dataclasses.replace
_a = change(
    SIZES["attention"], rotary=4, theta=10.0, clip=1.0, d_conv=2, key_multiplier=2.0,
    in_multiplier=2.0, out_multiplier=2.0,
)  # fmt: skip
_l = change(
    _a,
    d_conv=0,
    clip=None,
    rotary=2,
    q_rank=3,
    kv_rank=3,
    shared_key=2,
    value_dim=6,
    gates=6,
    window=3,
    norm_offset=1.0,
)
_m = change(
    SIZES["mlp"], activation="gelu_new", gate_multiplier=2.0, down_multiplier=2.0,
    out_multiplier=2.0,
)  # fmt: skip
VARIANTS: list[tuple[AbstractSublayer, tuple[str, ...]]] = [
    (SIZES["mamba1"], ()),
    (SIZES["mamba2"], ()),
    (
        change(
            SIZES["mamba2"], in_multiplier=2.0, out_multiplier=2.0,
            row_multipliers=(1.0, 2.0, 3.0, 4.0, 5.0),
        ),
        ("gate_norm",),
    ),
    (SIZES["mamba3"], ()),
    (SIZES["mamba3"], ("gate_norm",)),
    (change(SIZES["mamba3"], rank=None), ()),
    (SIZES["gated_delta"], ()),
    (SIZES["kimi_delta"], ()),
    (change(SIZES["kimi_delta"], gate_rank=None, gate_lower_bound=-5.0), ()),
    (SIZES["short_conv"], ()),
    (SIZES["rg_lru"], ()),
    (SIZES["rwkv4"], ()),
    (SIZES["channel_mix"], ()),
    (SIZES["lightning"], ()),
    (SIZES["norm"], ()),
    (SIZES["mlstm"], ()),
    (SIZES["selective_scan"], ()),
    (change(SIZES["selective_scan"], groups=2, gated=False), ()),
    (SIZES["chunk_scan"], ()),
    (change(SIZES["chunk_scan"], groups=2, gated=False), ()),
    (_a, ()),
    (_l, ()),
    (change(_l, gates=1), ()),
    (change(_a, d_conv=0, clip=None), ()),
    (_m, ()),
    (change(_m, gated=False), ()),
    (
        change(
            SIZES["experts"], width=4, activation="gelu_new", routed_multiplier=2.0,
            out_multiplier=2.0,
            shared=change(_m, norm_front=False, norm_behind=False),
        ),
        (),
    ),
    (
        change(
            SIZES["experts"], experts=4, groups=2, shared_routed=True,
            norm_offset=1.0,
        ),
        (),
    ),
    (change(SIZES["shared"], attention=_a, mlp=_m), ()),
    (change(SIZES["shared"], attention=_l, mlp=_m), ()),
]  # fmt: skip
"""Sublayers that between them have every switch on, and parameters to leave out."""
