"""Mamba-3 blocks, from their tensors."""

from collections.abc import Callable
from typing import Any

from ..sublayers import Mamba3Sizes
from ._kind import (
    AROUND,
    CHUNK,
    MixerKind,
    NotOfKindError,
    Option,
    Shapes,
    axes,
    named,
    of_shape,
    small,
    whole_number,
)


def _mamba3(shapes: Shapes, option: Callable[[str], Any]) -> Mamba3Sizes:
    d_model, d_inner = axes(shapes, "out_proj", 2)
    rows, width = axes(shapes, "in_proj", 2)
    heads, rank, d_state = axes(shapes, "B_bias", 3)
    groups = option("groups")
    angles = rows - 2 * (d_inner + rank * groups * d_state) - 3 * heads
    if d_inner % heads or heads % groups or width != d_model or angles < 1:
        raise NotOfKindError(
            f"in_proj has shape {(rows, width)}; {heads} heads, {groups} groups and "
            f"{d_inner} channels leave {angles} rows for angles"
        )
    if angles not in (d_state // 2, d_state // 4):
        raise NotOfKindError(f"{angles} pairs of {d_state} channels turn")
    mimo = "mimo_x" in shapes
    if not mimo and rank != 1:
        raise NotOfKindError(f"B_bias has rank {rank} and there is no mimo_x")
    of_shape(shapes, "C_bias", heads, rank, d_state)
    for name in ("mimo_x", "mimo_z", "mimo_o"):
        if (name in shapes) != mimo:
            raise NotOfKindError(f"of mimo_x, mimo_z and mimo_o {name} is apart")
        of_shape(shapes, name, heads, rank, d_inner // heads)
    for name in ("dt_bias", "D"):
        of_shape(shapes, name, heads)
    for name in ("B_norm", "C_norm"):
        of_shape(shapes, name, d_state)
    of_shape(shapes, "gate_norm", d_inner)
    return Mamba3Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=d_state,
        heads=heads,
        groups=groups,
        rank=rank if mimo else None,
        angles=angles,
        least_rate=option("least_rate"),
        norm_epsilon=0.0,
        mixer_norm_epsilon=option("mixer_norm_epsilon"),
        gate_norm="gate_norm" in shapes,
        norm_front=False,
        chunk=option("chunk"),
    )


MAMBA3 = MixerKind(
    "mamba3",
    "Mamba-3",
    {name: AROUND[name] for name in ("in_proj", "D", "out_proj")}
    | named(
        dt_bias="dt_bias",
        B_bias="B_bias",
        C_bias="C_bias",
        B_norm="B_norm.weight",
        C_norm="C_norm.weight",
        mimo_x="mimo_x",
        mimo_z="mimo_z",
        mimo_o="mimo_o",
        gate_norm="norm.weight",
    ),
    ("in_proj", "dt_bias", "B_bias", "C_bias", "B_norm", "C_norm", "D", "out_proj"),
    {
        "groups": Option(
            "groups of heads that share B and C",
            ("num_bc_heads", "ngroups", "n_groups"),
            whole_number,
        ),
        "chunk": CHUNK,
        "least_rate": Option("the smallest -A", ("A_floor",), small),
        "mixer_norm_epsilon": Option(
            "epsilon of the norms over B and C", ("B_norm.eps",), small
        ),
    },
    _mamba3,
)
