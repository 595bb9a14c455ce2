"""Blocks of transformers whose tensors alone do not say what they are.

Sizes from the module's attributes (transformers 5.24), tensors where the families'
readers find them in a checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .._errors import UsageError
from ..checkpoints._parts import Part
from ..checkpoints.families._kimi_linear import mixer_parts as kimi_parts
from ..checkpoints.families._olmo_hybrid import mixer_parts as olmo_parts
from ..checkpoints.families._qwen3_next import apart, delta_parts, fused_parts
from ..checkpoints.families._recurrent_gemma import recurrent_parts
from ..checkpoints.families._rwkv import time_parts
from ..checkpoints.families._xlstm import mlstm_parts
from ..checkpoints.families._zamba import headed_parts as zamba_parts
from ..sublayers import (
    GatedDeltaSizes,
    KimiDeltaSizes,
    Mamba1Sizes,
    MLSTMSizes,
    RGLRUSizes,
    Rwkv4Sizes,
)
from ..sublayers._sublayer import AbstractSublayer


Described = tuple[AbstractSublayer, Mapping[str, Part]]


ACTIVATIONS = {
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_new",
    "GELUActivation": "gelu",
    "SiLUActivation": "silu",
}
"""By the class in transformers."""


class Shaped:
    """A tensor's shape, which is all that the families' tables look at."""

    def __init__(self, tensor: Any):
        self.shape = tuple(tensor.shape)


def _stored(module: Any) -> dict[str, Any]:
    return {name: Shaped(tensor) for name, tensor in module.state_dict().items()}


def _gated_delta(module: Any, epsilon: float, scale: float = 1.0) -> GatedDeltaSizes:
    return GatedDeltaSizes(
        d_model=module.hidden_size,
        key_heads=module.num_k_heads,
        value_heads=module.num_v_heads,
        key_dim=module.head_k_dim,
        value_dim=module.head_v_dim,
        d_conv=module.conv_kernel_size,
        norm_epsilon=0.0,
        gate_norm_epsilon=epsilon,
        rate_scale=scale,
        norm_front=False,
    )


def _qwen3_next(module: Any) -> Described:
    sizes = _gated_delta(module, module.norm.variance_epsilon)
    return sizes, fused_parts(sizes) | delta_parts(sizes)


def _qwen3_5(module: Any) -> Described:
    sizes = _gated_delta(module, module.norm.variance_epsilon)
    return sizes, apart(sizes) | delta_parts(sizes)


def _olmo_hybrid(module: Any) -> Described:
    scale = 2.0 if module.allow_neg_eigval else 1.0
    sizes = _gated_delta(module, module.o_norm.variance_epsilon, scale)
    return sizes, olmo_parts(sizes, _stored(module), "")


def _kimi_linear(module: Any) -> Described:
    sizes = KimiDeltaSizes(
        d_model=module.hidden_size,
        heads=module.num_heads,
        key_dim=module.head_dim,
        value_dim=module.head_dim,
        d_conv=module.conv_kernel_size,
        norm_epsilon=0.0,
        gate_norm_epsilon=module.o_norm.variance_epsilon,
        gate_rank=module.head_dim,
        norm_front=False,
    )
    return sizes, kimi_parts(sizes, _stored(module), "")


def _zamba(module: Any) -> Described:
    sizes = Mamba1Sizes(
        d_model=module.hidden_size,
        d_inner=module.intermediate_size,
        d_state=module.ssm_state_size,
        d_conv=module.conv_kernel_size,
        dt_rank=module.time_step_rank,
        norm_epsilon=0.0,
        conv_bias=module.use_conv_bias,
        proj_bias=module.use_bias,
        heads=module.n_mamba_heads,
        norm_front=False,
    )
    parts = dict(zamba_parts(sizes, _stored(module), "", ""))
    parts.pop("norm")
    return sizes, parts


def _recurrent_gemma(module: Any) -> Described:
    heads, each, _ = module.rg_lru.input_gate_weight.shape
    sizes = RGLRUSizes(
        d_model=module.hidden_size,
        d_inner=heads * each,
        heads=heads,
        d_conv=module.conv1d_width,
        activation=_activation(module.act_fn),
        norm_epsilon=0.0,
        norm_front=False,
    )
    return sizes, recurrent_parts(sizes, _stored(module), "")


def _activation(function: Any) -> str:
    """A function of transformers' `ACT2FN`, by our name.

    **Raises:** `UsageError` for one that is not covered.
    """
    name = type(function).__name__
    if name not in ACTIVATIONS:
        raise UsageError(
            f"a block with the activation {name}",
            hint=f"covered are {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


def _rwkv(module: Any) -> Described:
    width = module.attention_hidden_size
    d_model = module.key.weight.shape[1]
    sizes = Rwkv4Sizes(d_model, width, 0.0, norm_front=False)
    return sizes, _inside("attention.", time_parts("", d_model, width))


def _xlstm(module: Any) -> Described:
    c = module.config
    sizes = MLSTMSizes(
        c.hidden_size,
        c.num_heads,
        module.qk_dim // c.num_heads,
        module.v_dim // c.num_heads,
        norm_epsilon=0.0,
        gate_norm_epsilon=c.norm_eps,
        soft_cap=c.gate_soft_cap,
        epsilon=c.eps,
        chunk=c.chunk_size,
        norm_front=False,
    )
    fused = c.weight_mode == "fused"
    return sizes, _inside("mlstm_layer.", mlstm_parts(sizes, "", fused))


def _inside(prefix: str, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts of a block's own module, without the norm beside it."""
    own = {key: one for key, one in parts.items() if one.names[0].startswith(prefix)}
    strip = lambda name: name.removeprefix(prefix)
    return {
        key: one._replace(
            name=strip(one.name)
            if isinstance(one.name, str)
            else tuple(map(strip, one.name))
        )
        for key, one in own.items()
    }


CLASSES: Mapping[str, Callable[[Any], Described]] = {
    "Qwen3NextGatedDeltaNet": _qwen3_next,
    "Qwen3_5GatedDeltaNet": _qwen3_5,
    "Qwen3_5MoeGatedDeltaNet": _qwen3_5,
    "OlmoHybridGatedDeltaNet": _olmo_hybrid,
    "KimiLinearDeltaAttention": _kimi_linear,
    "ZambaMambaMixer": _zamba,
    "RecurrentGemmaRecurrentBlock": _recurrent_gemma,
    "RwkvSelfAttention": _rwkv,
    "xLSTMLayer": _xlstm,
}
"""Classes by name, each with what says what it is."""


def described(module: Any) -> Described | None:
    """What a block of transformers is; None for a class that is not in `CLASSES`."""
    of_transformers = type(module).__module__.startswith("transformers.")
    describe = CLASSES.get(type(module).__name__)
    return describe(module) if of_transformers and describe is not None else None


def with_multipliers(sizes: Any, module: Any) -> Any:
    """Sizes of Falcon-H1's Mamba-2, whose input and rows are multiplied.

    **Arguments:**

    - `sizes`: as the tensors say them.
    """
    rows = getattr(module, "mup_vector", None)
    scale = getattr(module, "ssm_in_multiplier", None)
    if rows is None or scale is None:
        return sizes
    flat = rows.detach().double().reshape(-1)
    wide = sizes.groups * sizes.d_state
    ends = [0, sizes.d_inner, 2 * sizes.d_inner]
    ends += [ends[-1] + wide, ends[-1] + 2 * wide]
    return dataclasses.replace(
        sizes,
        in_multiplier=float(scale),
        row_multipliers=tuple(float(flat[end]) for end in ends),
    )
