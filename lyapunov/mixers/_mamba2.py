"""Mamba-2 blocks, from their tensors."""

import math
from collections.abc import Callable
from typing import Any

from ..sublayers import Mamba2Sizes
from ._kind import (
    ACTIVATION,
    AROUND,
    CHUNK,
    MixerKind,
    NotOfKindError,
    Option,
    Shapes,
    axes,
    flag,
    limits,
    named,
    of_shape,
    small,
    whole_number,
)


def _mamba2(shapes: Shapes, option: Callable[[str], Any]) -> Mamba2Sizes:
    d_model, d_inner = axes(shapes, "out_proj", 2)
    rows, width = axes(shapes, "in_proj", 2)
    channels, d_conv = axes(shapes, "conv_weight", 2)
    (heads,) = axes(shapes, "A_log", 1)
    both = channels - d_inner
    if d_inner % heads or both <= 0 or both % 2:
        raise NotOfKindError(
            f"{heads} heads, {d_inner} channels and {channels} convolved ones are no "
            "Mamba-2's"
        )
    if (rows, width) != (d_inner + channels + heads, d_model):
        raise NotOfKindError(
            f"in_proj has shape {(rows, width)}; the others ask for "
            f"{(d_inner + channels + heads, d_model)}"
        )
    of_shape(shapes, "dt_bias", heads)
    of_shape(shapes, "conv_bias", channels)
    of_shape(shapes, "in_proj_bias", rows)
    of_shape(shapes, "out_proj_bias", d_model)
    of_shape(shapes, "gate_norm", d_inner)
    if shapes["D"] not in ((heads,), (d_inner,)):
        raise NotOfKindError(f"D has shape {shapes['D']}; one a head or a channel")
    option("activation")
    groups = option("groups")
    if heads % groups or (both // 2) % groups:
        raise NotOfKindError(
            f"{heads} heads and {both} rows of B and C: {groups} groups"
        )
    normed = "gate_norm" in shapes
    norm_groups = option("norm_groups") if normed else 1
    if d_inner % norm_groups:
        raise NotOfKindError(f"{d_inner} channels in {norm_groups} groups of the norm")
    return Mamba2Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=both // 2 // groups,
        heads=heads,
        groups=groups,
        d_conv=d_conv,
        chunk=option("chunk"),
        norm_epsilon=0.0,
        gate_norm_epsilon=option("gate_norm_epsilon") if normed else 0.0,
        dt_limit=option("dt_limit"),
        gate_norm=normed,
        norm_groups=norm_groups,
        norm_before_gate=option("norm_before_gate") if normed else False,
        conv_bias="conv_bias" in shapes,
        proj_bias="in_proj_bias" in shapes,
        out_bias="out_proj_bias" in shapes,
        norm_front=False,
    )


MAMBA2 = MixerKind(
    "mamba2",
    "Mamba-2",
    AROUND | named(dt_bias="dt_bias", gate_norm="norm.weight"),
    ("in_proj", "conv_weight", "dt_bias", "A_log", "D", "out_proj"),
    {
        "activation": ACTIVATION,
        "groups": Option(
            "groups of heads that share B and C",
            ("n_groups", "ngroups", "config.n_groups"),
            whole_number,
        ),
        "chunk": CHUNK,
        "dt_limit": Option(
            "between which dt is clipped after softplus; 0,inf: it is not",
            ("time_step_limit", "dt_limit", "config.dt_limit"),
            limits,
            ((0.0, math.inf),),
        ),
        "gate_norm_epsilon": Option(
            "epsilon of the gated norm", ("norm.variance_epsilon", "norm.eps"), small
        ),
        "norm_groups": Option(
            "groups of channels that the gated norm normalises apart",
            ("norm.n_groups",),
            whole_number,
            (1, "groups"),
        ),
        "norm_before_gate": Option(
            "whether the norm comes before the gate",
            ("norm.norm_before_gate", "norm_before_gate"),
            flag,
            (False, True),
        ),
    },
    _mamba2,
)
