"""Mamba-1 and Mamba-2 mixers, and transformers' models that hold nothing else."""

from typing import Any

from ...sublayers import Mamba1Sizes, Mamba2Sizes, NetworkConfig
from .._checkpoint import Checkpoint
from .._network import (
    NetworkLayout,
    Part,
    TopNames,
    recognise_network,
    without_middle_axis,
)


def mamba1_parts(
    c: Mamba1Sizes, prefix: str, norm: str, mixer_norms: bool = False
) -> dict[str, Part]:
    """The parameters of a Mamba-1 mixer and the norm before it.

    Rows of in_proj are x then z, those of x_proj dt, B, C.

    **Arguments:**

    - `prefix`: of the mixer's names. `norm`: the norm's name.
    - `mixer_norms`: whether the norms over dt, B and C have weights.
    """
    parts = {
        "in_proj": Part("in_proj.weight", (2 * c.d_inner, c.d_model)),
        "conv_weight": Part(
            "conv1d.weight", (c.d_inner, 1, c.d_conv), without_middle_axis
        ),
        "x_proj": Part("x_proj.weight", (c.dt_rank + 2 * c.d_state, c.d_inner)),
        "dt_proj": Part("dt_proj.weight", (c.d_inner, c.dt_rank)),
        "dt_bias": Part("dt_proj.bias", (c.d_inner,)),
        "A_log": Part("A_log", (c.d_inner, c.d_state)),
        "D": Part("D", (c.d_inner,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.conv_bias:
        parts["conv_bias"] = Part("conv1d.bias", (c.d_inner,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("in_proj.bias", (2 * c.d_inner,))
        parts["out_proj_bias"] = Part("out_proj.bias", (c.d_model,))
    if mixer_norms:
        parts["dt_norm"] = Part("dt_layernorm.weight", (c.dt_rank,))
        parts["B_norm"] = Part("b_layernorm.weight", (c.d_state,))
        parts["C_norm"] = Part("c_layernorm.weight", (c.d_state,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def mamba2_parts(
    c: Mamba2Sizes, prefix: str, norm: str, stored: dict[str, Any]
) -> dict[str, Part]:
    """The parameters of a Mamba-2 mixer and the norm before it.

    Rows of in_proj are z, x, B, C, dt; channels of the conv x, B, C. D is one a head,
    or one a channel where it is stored so.

    **Arguments:**

    - `prefix`: of the mixer's names. `norm`: the norm's name.
    """
    conv = c.d_inner + 2 * c.groups * c.d_state
    rows = c.d_inner + conv + c.heads
    d_stored = stored.get(f"{prefix}D")
    own = d_stored is not None and d_stored.shape == (c.d_inner,)
    parts = {
        "in_proj": Part("in_proj.weight", (rows, c.d_model)),
        "conv_weight": Part("conv1d.weight", (conv, 1, c.d_conv), without_middle_axis),
        "dt_bias": Part("dt_bias", (c.heads,)),
        "A_log": Part("A_log", (c.heads,)),
        "D": Part("D", (c.d_inner,) if own else (c.heads,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.gate_norm:
        parts["gate_norm"] = Part("norm.weight", (c.d_inner,))
    if c.conv_bias:
        parts["conv_bias"] = Part("conv1d.bias", (conv,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("in_proj.bias", (rows,))
    if c.proj_bias if c.out_bias is None else c.out_bias:
        parts["out_proj_bias"] = Part("out_proj.bias", (c.d_model,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def norm_parts(name: str, width: int, centred: bool = False) -> dict[str, Part]:
    """The weight of a norm, and its bias where it is a LayerNorm."""
    parts = {"norm": Part(f"{name}.weight", (width,))}
    if centred:
        parts["norm_bias"] = Part(f"{name}.bias", (width,))
    return parts


def under(prefix: str, parts: dict[str, Part]) -> dict[str, Part]:
    """The parts with a prefix before their stored names."""
    return {k: part._replace(name=f"{prefix}{part.name}") for k, part in parts.items()}


def recognise_mamba1(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Mamba-1 model of mamba_ssm or transformers."""
    return _recognise(checkpoint, "mamba1", config)


def recognise_falcon_mamba(
    checkpoint: Checkpoint, config: NetworkConfig
) -> NetworkLayout:
    """A Falcon Mamba model; its norms over dt, B and C have no weights."""
    return _recognise(checkpoint, "falcon_mamba", config)


def recognise_mamba2(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Mamba-2 model of transformers, Codestral among them."""
    return _recognise(checkpoint, "mamba2", config)


def _recognise(checkpoint: Checkpoint, name: str, config: Any) -> NetworkLayout:
    names, layers = top_names(checkpoint, config.tie_embeddings, False)
    parts = []
    for i, sizes in enumerate(config.sublayers):
        prefix, norm = f"{layers}{i}.mixer.", f"{layers}{i}.norm"
        if isinstance(sizes, Mamba1Sizes):
            parts.append(mamba1_parts(sizes, prefix, norm))
        else:
            parts.append(mamba2_parts(sizes, prefix, norm, checkpoint.tensors))
    return recognise_network(checkpoint, name, config, names, parts)


def top_names(
    checkpoint: Checkpoint, tied: bool, centred: bool
) -> tuple[TopNames, str]:
    """Names around the layers, and the prefix of the layers' own.

    **Arguments:**

    - `tied`: whether the head is the embedding.
    - `centred`: whether the last norm is a LayerNorm, which has a bias.
    """
    for root in ("backbone.", "model.", ""):  # a bare backbone has no prefix
        if f"{root}norm_f.weight" in checkpoint.tensors:
            break
    else:
        root = "backbone."
    plural, singular = f"{root}embeddings.weight", f"{root}embedding.weight"
    embedding = singular if singular in checkpoint.tensors else plural
    names = TopNames(
        embedding=embedding,
        final_norm=f"{root}norm_f.weight",
        head=embedding if tied else "lm_head.weight",
        inside=(root,) if root else ("layers.",),
        final_norm_bias=f"{root}norm_f.bias" if centred else None,
    )
    return names, f"{root}layers."
