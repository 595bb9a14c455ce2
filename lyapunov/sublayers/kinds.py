"""What a sublayer of each kind is: its flow, its parameters, its first state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..arithmetic import Weight
from . import attention, experts, mamba1, mamba2, mamba3, mlp, shared
from .config import (
    AttentionSizes,
    ExpertsSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    Mamba3Sizes,
    MlpSizes,
    SharedSizes,
)
from .norm import Norm


Get = Callable[[str], Any]
"""A parameter in fp64 by its canonical name; None where the model has none."""


class Kind(NamedTuple):
    """A kind of sublayer: its flow, how its parameters are put together from stored
    ones, and whether it has a state of fixed size."""

    flow: Callable
    build: Callable[[Any, Get], Any]
    recurrent: bool


def _mamba1(sizes: Mamba1Sizes, get: Get) -> mamba1.Mamba1Parameters:
    conv_bias = get("conv_bias")
    norms = {}
    if sizes.mixer_norm_epsilon is not None:
        norms = {
            name: _norm(get, name, sizes.mixer_norm_epsilon, False)
            for name in ("dt_norm", "B_norm", "C_norm")
        }
    x_proj, dt_proj = get("x_proj"), get("dt_proj")
    alone = sizes.heads == 1
    return mamba1.Mamba1Parameters(
        norm=get("norm"),
        norm_bias=get("norm_bias"),
        in_proj=Weight(get("in_proj")),
        in_proj_bias=get("in_proj_bias"),
        conv_weight=get("conv_weight"),
        conv_bias=jnp.zeros(sizes.d_inner) if conv_bias is None else conv_bias,
        x_proj=Weight(x_proj) if alone else tuple(Weight(w) for w in x_proj),
        dt_proj=Weight(dt_proj) if alone else tuple(Weight(w) for w in dt_proj),
        dt_bias=get("dt_bias"),
        A_log=get("A_log"),
        D=get("D"),
        out_proj=Weight(get("out_proj")),
        out_proj_bias=get("out_proj_bias"),
        norm_epsilon=sizes.norm_epsilon,
        norm_centred=sizes.norm_centred,
        **norms,
    )


def _mamba2(sizes: Mamba2Sizes, get: Get) -> mamba2.Mamba2Parameters:
    conv_weight, conv_bias = get("conv_weight"), get("conv_bias")
    D: Any = get("D")
    if D.size != sizes.d_inner:
        D = jnp.repeat(D, sizes.d_inner // sizes.heads)
    return mamba2.Mamba2Parameters(
        norm=get("norm"),
        norm_bias=get("norm_bias"),
        in_proj=Weight(get("in_proj")),
        in_proj_bias=get("in_proj_bias"),
        conv_weight=conv_weight,
        conv_bias=jnp.zeros(conv_weight.shape[0]) if conv_bias is None else conv_bias,
        dt_bias=get("dt_bias"),
        A_log=get("A_log"),
        D=D,
        gate_norm=get("gate_norm"),
        out_proj=Weight(get("out_proj")),
        out_proj_bias=get("out_proj_bias"),
        norm_epsilon=sizes.norm_epsilon,
        gate_norm_epsilon=sizes.gate_norm_epsilon,
        groups=sizes.groups,
        norm_groups=sizes.norm_groups,
        norm_before_gate=sizes.norm_before_gate,
        dt_limit=sizes.dt_limit,
        chunk=sizes.chunk,
        norm_centred=sizes.norm_centred,
        in_multiplier=sizes.in_multiplier,
        row_multipliers=sizes.row_multipliers,
        out_multiplier=sizes.out_multiplier,
    )


def _mamba3(sizes: Mamba3Sizes, get: Get) -> mamba3.Mamba3Parameters:
    def by_rank(name):
        array = get(name)  # stored with heads first
        return None if array is None else jnp.swapaxes(array, 0, 1)

    gate_norm = get("gate_norm")
    return mamba3.Mamba3Parameters(
        norm=_norm(get, "norm", sizes.norm_epsilon, sizes.norm_centred),
        in_proj=Weight(get("in_proj")),
        dt_bias=get("dt_bias"),
        B_norm=_norm(get, "B_norm", sizes.mixer_norm_epsilon, False),
        C_norm=_norm(get, "C_norm", sizes.mixer_norm_epsilon, False),
        D=get("D"),
        gate_norm=None if gate_norm is None else gate_norm.reshape(sizes.heads, -1),
        out_proj=Weight(get("out_proj")),
        gate_norm_epsilon=sizes.mixer_norm_epsilon,
        groups=sizes.groups,
        angles=sizes.angles,
        least_rate=sizes.least_rate,
        chunk=sizes.chunk,
        B_bias=jnp.swapaxes(get("B_bias"), 0, 1),
        C_bias=jnp.swapaxes(get("C_bias"), 0, 1),
        mimo_x=by_rank("mimo_x"),
        mimo_z=by_rank("mimo_z"),
        mimo_o=by_rank("mimo_o"),
    )


def _norm(get: Get, name: str, epsilon: float, centred: bool) -> Norm:
    return Norm(get(name), get(f"{name}_bias"), epsilon, centred)


def _weight(get: Get, name: str) -> Any:
    matrix = get(name)
    return None if matrix is None else Weight(matrix)


def _adapter(get: Get, name: str) -> Any:
    down = _weight(get, f"{name}_adapter_down")
    return down and mlp.LowRank(down, _weight(get, f"{name}_adapter_up"))


def _around(sizes: AttentionSizes | MlpSizes, get: Get) -> dict[str, Any]:
    """Norms in front of and behind a sublayer, and the multiplier of its output."""
    make = lambda name: _norm(get, name, sizes.norm_epsilon, sizes.norm_centred)
    return {
        "norm": make("norm") if sizes.norm_front else None,
        "norm_behind": make("norm_behind") if sizes.norm_behind else None,
        "out_multiplier": sizes.out_multiplier,
    }


def _attention(sizes: AttentionSizes, get: Get) -> attention.AttentionParameters:
    head_norms = {
        name: None
        if get(name) is None
        else _norm(get, name, sizes.norm_epsilon, sizes.norm_centred)
        for name in ("q_norm", "k_norm")
    }
    conv_weight, conv_bias = get("conv_weight"), get("conv_bias")
    if conv_weight is not None and conv_bias is None:
        conv_bias = jnp.zeros(conv_weight.shape[0])
    return attention.AttentionParameters(
        q_proj=Weight(get("q_proj")),
        k_proj=Weight(get("k_proj")),
        v_proj=Weight(get("v_proj")),
        q_bias=get("q_bias"),
        k_bias=get("k_bias"),
        v_bias=get("v_bias"),
        o_proj=Weight(get("o_proj")),
        o_bias=get("o_bias"),
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        rotary=sizes.rotary,
        theta=sizes.theta,
        scale=sizes.scale,
        clip=sizes.clip,
        key_multiplier=sizes.key_multiplier,
        in_multiplier=sizes.in_multiplier,
        q_adapter=_adapter(get, "q"),
        k_adapter=_adapter(get, "k"),
        v_adapter=_adapter(get, "v"),
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        **head_norms,
        **_around(sizes, get),
    )


def _mlp(sizes: MlpSizes, get: Get) -> mlp.MlpParameters:
    return mlp.MlpParameters(
        up=Weight(get("up")),
        up_bias=get("up_bias"),
        gate=_weight(get, "gate"),
        gate_bias=get("gate_bias"),
        down=Weight(get("down")),
        down_bias=get("down_bias"),
        activation=sizes.activation,
        gate_multiplier=sizes.gate_multiplier,
        down_multiplier=sizes.down_multiplier,
        up_adapter=_adapter(get, "up"),
        gate_adapter=_adapter(get, "gate"),
        **_around(sizes, get),
    )


def _experts(sizes: ExpertsSizes, get: Get) -> experts.ExpertsParameters:
    shared_mlp = None
    if sizes.shared is not None:
        shared_mlp = _mlp(sizes.shared, lambda name: get(f"shared_{name}"))
    return experts.ExpertsParameters(
        norm=_norm(get, "norm", sizes.norm_epsilon, False),
        router=Weight(get("router")),
        router_bias=get("router_bias"),
        up=get("up"),
        gate=get("gate"),
        down=get("down"),
        to_latent=_weight(get, "to_latent"),
        to_latent_bias=get("to_latent_bias"),
        from_latent=_weight(get, "from_latent"),
        from_latent_bias=get("from_latent_bias"),
        shared=shared_mlp,
        activation=sizes.activation,
        chosen=sizes.chosen,
        scoring=sizes.scoring,
        shares=sizes.shares,
        share_floor=sizes.share_floor,
        routed_multiplier=sizes.routed_multiplier,
        out_multiplier=sizes.out_multiplier,
    )


def _shared(sizes: SharedSizes, get: Get) -> shared.SharedParameters:
    of_mlp = lambda name: get("mlp_norm" if name == "norm" else name)
    return shared.SharedParameters(
        attention=_attention(sizes.attention, get),
        mlp=_mlp(sizes.mlp, of_mlp),
        linear=Weight(get("linear")),
    )


KINDS = {
    "mamba1": Kind(mamba1.mamba1, _mamba1, True),
    "mamba2": Kind(mamba2.mamba2, _mamba2, True),
    "mamba3": Kind(mamba3.mamba3, _mamba3, True),
    "attention": Kind(attention.attention, _attention, False),
    "mlp": Kind(mlp.mlp, _mlp, False),
    "experts": Kind(experts.experts, _experts, False),
    "shared": Kind(shared.shared, _shared, False),
}
