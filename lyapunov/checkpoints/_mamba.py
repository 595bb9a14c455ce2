"""Mamba-1 and Mamba-2 language models in the two layouts that people have."""

from ..models.config import Mamba1Config, Mamba2Sizes, NetworkConfig
from ._checkpoint import Checkpoint
from ._network import (
    NetworkLayout,
    Part,
    TopNames,
    recognise_network,
    without_middle_axis,
)


def mamba1_parts(c: Mamba1Config, prefix: str) -> dict[str, Part]:
    """The parameters of a Mamba-1 mixer and the norm before it.

    Rows of in_proj are x then z, those of x_proj dt, B, C.
    """
    parts = {
        "norm": Part("norm.weight", (c.d_model,)),
        "in_proj": Part("mixer.in_proj.weight", (2 * c.d_inner, c.d_model)),
        "conv_weight": Part(
            "mixer.conv1d.weight", (c.d_inner, 1, c.d_conv), without_middle_axis
        ),
        "x_proj": Part("mixer.x_proj.weight", (c.dt_rank + 2 * c.d_state, c.d_inner)),
        "dt_proj": Part("mixer.dt_proj.weight", (c.d_inner, c.dt_rank)),
        "dt_bias": Part("mixer.dt_proj.bias", (c.d_inner,)),
        "A_log": Part("mixer.A_log", (c.d_inner, c.d_state)),
        "D": Part("mixer.D", (c.d_inner,)),
        "out_proj": Part("mixer.out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.conv_bias:
        parts["conv_bias"] = Part("mixer.conv1d.bias", (c.d_inner,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("mixer.in_proj.bias", (2 * c.d_inner,))
        parts["out_proj_bias"] = Part("mixer.out_proj.bias", (c.d_model,))
    return _under(prefix, parts)


def mamba2_parts(c: Mamba2Sizes, prefix: str, d_shape: tuple[int, ...]) -> dict:
    """The parameters of a Mamba-2 mixer and the norm before it.

    Rows of in_proj are z, x, B, C, dt; channels of the conv x, B, C.

    **Arguments:**

    - `d_shape`: of D: (heads), or (d_inner) where each channel has its own.
    """
    conv = c.d_inner + 2 * c.groups * c.d_state
    rows = c.d_inner + conv + c.heads
    parts = {
        "norm": Part("norm.weight", (c.d_model,)),
        "in_proj": Part("mixer.in_proj.weight", (rows, c.d_model)),
        "conv_weight": Part(
            "mixer.conv1d.weight", (conv, 1, c.d_conv), without_middle_axis
        ),
        "dt_bias": Part("mixer.dt_bias", (c.heads,)),
        "A_log": Part("mixer.A_log", (c.heads,)),
        "D": Part("mixer.D", d_shape),
        "out_proj": Part("mixer.out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.gate_norm:
        parts["gate_norm"] = Part("mixer.norm.weight", (c.d_inner,))
    if c.conv_bias:
        parts["conv_bias"] = Part("mixer.conv1d.bias", (conv,))
    if c.proj_bias:
        parts["in_proj_bias"] = Part("mixer.in_proj.bias", (rows,))
        parts["out_proj_bias"] = Part("mixer.out_proj.bias", (c.d_model,))
    return _under(prefix, parts)


def _under(prefix: str, parts: dict[str, Part]) -> dict[str, Part]:
    return {k: part._replace(name=prefix + part.name) for k, part in parts.items()}


def recognise_mamba1(checkpoint: Checkpoint, config: Mamba1Config) -> NetworkLayout:
    """A Mamba-1 model of mamba_ssm or transformers."""
    names, layers = _top_names(checkpoint, config.tie_embeddings)
    parts = [mamba1_parts(config, f"{layers}{i}.") for i in range(config.n_layers)]
    return recognise_network(checkpoint, "mamba1", config, names, parts)


def recognise_mamba2(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Mamba-2 model of mamba_ssm or transformers, Codestral among them."""
    names, layers = _top_names(checkpoint, config.tie_embeddings)
    parts = []
    for i, sizes in enumerate(config.sublayers):
        prefix = f"{layers}{i}."
        stored = checkpoint.tensors.get(f"{prefix}mixer.D")
        own = stored is not None and stored.shape == (sizes.d_inner,)
        d_shape = (sizes.d_inner,) if own else (sizes.heads,)
        parts.append(mamba2_parts(sizes, prefix, d_shape))
    return recognise_network(checkpoint, "mamba2", config, names, parts)


def _top_names(checkpoint: Checkpoint, tied: bool) -> tuple[TopNames, str]:
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
    )
    return names, f"{root}layers."
