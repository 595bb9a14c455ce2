"""What a sublayer of each kind is: its flow, its parameters, its first state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..arithmetic import Weight
from ..flows import attention, mamba1, mamba2, mlp
from ..flows.norm import Norm
from .config import AttentionSizes, Mamba1Config, Mamba2Sizes, MlpSizes


Get = Callable[[str], Any]
"""A parameter in fp64 by its canonical name; None where the model has none."""


class Kind(NamedTuple):
    """A kind of sublayer: its flow, how its parameters are put together from stored
    ones, and whether it has a state of fixed size."""

    flow: Callable
    build: Callable[[Any, Get], Any]
    recurrent: bool


def _mamba1(sizes: Mamba1Config, get: Get) -> mamba1.Mamba1Parameters:
    conv_bias = get("conv_bias")
    return mamba1.Mamba1Parameters(
        norm=get("norm"),
        in_proj=Weight(get("in_proj")),
        in_proj_bias=get("in_proj_bias"),
        conv_weight=get("conv_weight"),
        conv_bias=jnp.zeros(sizes.d_inner) if conv_bias is None else conv_bias,
        x_proj=Weight(get("x_proj")),
        dt_proj=Weight(get("dt_proj")),
        dt_bias=get("dt_bias"),
        A_log=get("A_log"),
        D=get("D"),
        out_proj=Weight(get("out_proj")),
        out_proj_bias=get("out_proj_bias"),
        norm_epsilon=sizes.norm_epsilon,
    )


def _mamba2(sizes: Mamba2Sizes, get: Get) -> mamba2.Mamba2Parameters:
    conv_weight, conv_bias = get("conv_weight"), get("conv_bias")
    D: Any = get("D")
    if D.size != sizes.d_inner:
        D = jnp.repeat(D, sizes.d_inner // sizes.heads)
    return mamba2.Mamba2Parameters(
        norm=get("norm"),
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
    )


def _norm(get: Get, name: str, epsilon: float, centred: bool) -> Norm:
    return Norm(get(name), get(f"{name}_bias"), epsilon, centred)


def _attention(sizes: AttentionSizes, get: Get) -> attention.AttentionParameters:
    head_norms = {
        name: None
        if get(name) is None
        else _norm(get, name, sizes.norm_epsilon, sizes.norm_centred)
        for name in ("q_norm", "k_norm")
    }
    return attention.AttentionParameters(
        norm=_norm(get, "norm", sizes.norm_epsilon, sizes.norm_centred),
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
        **head_norms,
    )


def _mlp(sizes: MlpSizes, get: Get) -> mlp.MlpParameters:
    gate = get("gate")
    return mlp.MlpParameters(
        norm=_norm(get, "norm", sizes.norm_epsilon, sizes.norm_centred),
        up=Weight(get("up")),
        up_bias=get("up_bias"),
        gate=None if gate is None else Weight(gate),
        gate_bias=get("gate_bias"),
        down=Weight(get("down")),
        down_bias=get("down_bias"),
        activation=sizes.activation,
        gate_multiplier=sizes.gate_multiplier,
        down_multiplier=sizes.down_multiplier,
    )


KINDS = {
    "mamba1": Kind(mamba1.mamba1, _mamba1, True),
    "mamba2": Kind(mamba2.mamba2, _mamba2, True),
    "attention": Kind(attention.attention, _attention, False),
    "mlp": Kind(mlp.mlp, _mlp, False),
}
