"""Mamba-1 blocks, from their tensors."""

from collections.abc import Callable
from typing import Any

from ..sublayers import Mamba1Sizes
from ._kind import (
    ACTIVATION,
    AROUND,
    MixerKind,
    NotOfKindError,
    Option,
    Shapes,
    axes,
    named,
    of_shape,
    small,
    small_or_none,
)


def _mamba1(shapes: Shapes, option: Callable[[str], Any]) -> Mamba1Sizes:
    d_inner, d_state = axes(shapes, "A_log", 2)
    rows, d_model = axes(shapes, "in_proj", 2)
    channels, d_conv = axes(shapes, "conv_weight", 2)
    _, dt_rank = axes(shapes, "dt_proj", 2)
    if rows != 2 * d_inner or channels != d_inner:
        raise NotOfKindError(
            f"in_proj has {rows} rows and the convolution {channels} channels; A_log "
            f"asks for {2 * d_inner} and {d_inner}"
        )
    of_shape(shapes, "x_proj", dt_rank + 2 * d_state, d_inner)
    of_shape(shapes, "dt_proj", d_inner, dt_rank)
    of_shape(shapes, "out_proj", d_model, d_inner)
    for name in ("conv_bias", "dt_bias", "D"):
        of_shape(shapes, name, d_inner)
    of_shape(shapes, "in_proj_bias", rows)
    of_shape(shapes, "out_proj_bias", d_model)
    option("activation")
    normed = _norms_inside(shapes, dt_rank, d_state)
    epsilon = option("mixer_norm_epsilon" if normed else "weightless_norm_epsilon")
    return Mamba1Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=d_state,
        d_conv=d_conv,
        dt_rank=dt_rank,
        norm_epsilon=0.0,
        conv_bias="conv_bias" in shapes,
        proj_bias="in_proj_bias" in shapes or "out_proj_bias" in shapes,
        mixer_norm_epsilon=epsilon,
        norm_front=False,
    )


def _norms_inside(shapes: Shapes, dt_rank: int, d_state: int) -> bool:
    """Whether what dt is made of, B and C are normalised: all three, or none."""
    names = ("dt_norm", "B_norm", "C_norm")
    there = [name for name in names if name in shapes]
    if there and len(there) != len(names):
        raise NotOfKindError(
            f"of norms over dt, B and C there is {' and '.join(there)}"
        )
    for name, width in zip(names, (dt_rank, d_state, d_state), strict=True):
        of_shape(shapes, name, width)
    return bool(there)


MAMBA1 = MixerKind(
    "mamba1",
    "Mamba-1",
    AROUND
    | named(
        x_proj="x_proj.weight",
        dt_proj="dt_proj.weight",
        dt_bias="dt_proj.bias",
        dt_norm="dt_layernorm.weight",
        B_norm="b_layernorm.weight B_layernorm.weight",
        C_norm="c_layernorm.weight C_layernorm.weight",
    ),
    (
        "in_proj",
        "conv_weight",
        "x_proj",
        "dt_proj",
        "dt_bias",
        "A_log",
        "D",
        "out_proj",
    ),
    {
        "activation": ACTIVATION,
        "mixer_norm_epsilon": Option(
            "epsilon of the norms over dt, B and C",
            ("dt_layernorm.variance_epsilon", "dt_layernorm.eps"),
            small,
        ),
        "weightless_norm_epsilon": Option(
            "epsilon of norms without weights over dt, B and C (Falcon Mamba); none: "
            "there are no such norms",
            ("rms_eps",),
            small_or_none,
            (None,),
        ),
    },
    _mamba1,
)
