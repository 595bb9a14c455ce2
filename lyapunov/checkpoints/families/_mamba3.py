"""Mamba-3, of mamba_ssm alone."""

from typing import Any

from ... import sublayers
from .._family import Family
from .._parts import Described, Part, norm_parts, under
from .._settings import expanded, integer, positive, refuse, switch
from . import _mamba_ssm as mamba_ssm


_SETTINGS = {
    "layer", "d_state", "expand", "headdim", "ngroups", "rope_fraction", "dt_min",
    "dt_max", "dt_init_floor", "A_floor", "is_outproj_norm", "is_mimo", "mimo_rank",
    "chunk_size", "dropout",
}  # fmt: skip


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    network = mamba_ssm.mixer_settings(settings, _SETTINGS)
    ssm = network.settings
    d_inner, d_state = expanded(ssm, network.d_model), integer(ssm, "d_state", 128)
    heads, groups = mamba_ssm.head_count(ssm, d_inner), integer(ssm, "ngroups", 1)
    if heads % groups:
        raise refuse("ngroups", groups, f"a divisor of {heads} heads")
    turning = positive(ssm, "rope_fraction", 0.5)
    if turning not in (0.5, 1.0):
        raise refuse("rope_fraction", turning, "0.5 or 1.0")
    angles = int(d_state * turning) // 2
    if d_state % 2 or not angles:
        raise refuse("d_state", d_state, "an even number, with a pair that turns")
    mimo = switch(ssm, "is_mimo", False)
    mixer = sublayers.Mamba3Sizes(
        d_model=network.d_model,
        d_inner=d_inner,
        d_state=d_state,
        heads=heads,
        groups=groups,
        rank=integer(ssm, "mimo_rank", 4) if mimo else None,
        angles=angles,
        least_rate=positive(ssm, "A_floor", 1e-4),
        norm_epsilon=mamba_ssm.EPSILON,
        mixer_norm_epsilon=mamba_ssm.EPSILON,
        gate_norm=switch(ssm, "is_outproj_norm", False),
        chunk=integer(ssm, "chunk_size", 64),
        norm_centred=mamba_ssm.centred(settings),
    )
    return mamba_ssm.described(settings, stored, mixer, _parts)


def _parts(
    c: "sublayers.Mamba3Sizes", stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """Rows of in_proj are z, x, B, C, dt, A, lambda and the angles."""
    del stored
    rank = c.rank or 1
    in_rows = 2 * (c.d_inner + rank * c.groups * c.d_state) + 3 * c.heads + c.angles
    parts = {
        "in_proj": Part("in_proj.weight", (in_rows, c.d_model)),
        "dt_bias": Part("dt_bias", (c.heads,)),
        "B_bias": Part("B_bias", (c.heads, rank, c.d_state)),
        "C_bias": Part("C_bias", (c.heads, rank, c.d_state)),
        "B_norm": Part("B_norm.weight", (c.d_state,)),
        "C_norm": Part("C_norm.weight", (c.d_state,)),
        "D": Part("D", (c.heads,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.rank is not None:
        for name in ("mimo_x", "mimo_z", "mimo_o"):
            parts[name] = Part(name, (c.heads, rank, c.d_inner // c.heads))
    if c.gate_norm:
        parts["gate_norm"] = Part("norm.weight", (c.d_inner,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


MAMBA3 = Family(
    "Mamba-3",
    ("mamba_ssm (ssm_cfg.layer Mamba3): pytorch_model.bin or model.safetensors",),
    {"mamba_ssm": _read},
    (
        "SISO and MIMO of any rank, groups, the norm before the gate or none",
        "the decay -softplus of mamba_ssm 2.3.2",
        "prefill and decode of mamba_ssm's kernels, emulated",
    ),
    (
        "a run on mamba_ssm's kernels themselves (--measure mamba_ssm)",
        "prefill in fp32 with a rank above 1, and fp16-cast",
        "the decay with a heavy tail of mamba_ssm after 2.3.2, which no"
        " configuration names: another function",
    ),
)
