"""Which parameters `torch.autocast` casts, kind by kind.

Autocast casts what a matrix product reads, weights and biases alike (`torch.nn.Linear`,
`matmul`, `bmm`); norms, convolutions in kernels of their own, decays and what is added
or multiplied element by element keep fp32. Every parameter of a kind stands in one of
the two lists: one in neither is refused, so that a new matrix is not left in fp32.
"""

from .._errors import UsageError
from ..formats import FP32, Format


_IN_OUT = ("in_proj", "in_proj_bias", "out_proj", "out_proj_bias")
_ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "q_bias", "k_bias", "v_bias", "o_proj", "o_bias"),
    *(f"{name}_adapter_{end}" for name in "qkv" for end in ("down", "up")),
    *("g_proj", "g_bias", "q_down", "q_down_bias", "kv_down", "kv_down_bias"),
)
_MLP = (
    *("up", "up_bias", "gate", "gate_bias", "down", "down_bias"),
    *(f"{name}_adapter_{end}" for name in ("up", "gate") for end in ("down", "up")),
)
_MIX = ("mix_k", "mix_r")
_CONV = ("conv_weight", "conv_bias")


def _norms(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_bias"))


_AROUND = _norms("norm", "norm_behind")
_HEAD_NORMS = _norms("q_norm", "k_norm", "q_down_norm", "kv_down_norm")

CAST: dict[str, tuple[str, ...]] = {
    "mamba1": (*_IN_OUT, "x_proj", "dt_proj"),
    "mamba2": _IN_OUT,
    "mamba3": _IN_OUT,
    "gated_delta": (*(f"{of}_proj" for of in "qkvzab"), "out_proj"),
    "kimi_delta": (
        *(f"{of}_proj" for of in "qkvbfg"),
        *("f_down", "f_up", "g_down", "g_up", "out_proj"),
    ),
    "rg_lru": (
        *("x_proj", "x_bias", "y_proj", "y_bias", "out_proj", "out_bias"),
        *("input_gate", "input_gate_bias", "decay_gate", "decay_gate_bias"),
    ),
    "lightning": (*(f"{of}_proj" for of in "qkvg"), "out_proj"),
    "norm": (),
    "selective_scan": (),
    "chunk_scan": (),
    "short_conv": _IN_OUT,
    "rwkv4": ("k_proj", "v_proj", "r_proj", "out_proj"),
    "mlstm": (*(f"{of}_proj" for of in "qkvgif"), "i_bias", "f_bias", "out_proj"),
    "channel_mix": ("up", "r_proj", "down"),
    "attention": _ATTENTION,
    "mlp": _MLP,
    "experts": (
        *("router", "shared_router", "up", "gate", "down"),
        *("to_latent", "to_latent_bias", "from_latent", "from_latent_bias"),
        *(f"shared_{name}" for name in _MLP),
    ),
    "shared": (*_ATTENTION, *_MLP, "linear"),
}
"""By kind of sublayer: read by a matrix product."""

_SSM = ("dt_bias", "A_log", "D")
KEPT: dict[str, tuple[str, ...]] = {
    "mamba1": (*_norms("norm", "dt_norm", "B_norm", "C_norm"), *_CONV, *_SSM),
    "mamba2": (*_norms("norm", "gate_norm"), *_CONV, *_SSM),
    "mamba3": (
        *_norms("norm", "gate_norm", "B_norm", "C_norm"),
        *("dt_bias", "D", "B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o"),
    ),
    "gated_delta": (*_norms("norm", "gate_norm"), *_CONV, "A_log", "dt_bias"),
    "kimi_delta": (*_norms("norm", "gate_norm"), *_CONV, "A_log", "dt_bias"),
    "rg_lru": ("norm", *_CONV, "decay_logit"),
    "lightning": (
        *("gate_norm", "slope", "query_decay", "key_decay", "diagonal_decay"),
    ),
    "norm": ("norm",),
    "selective_scan": _SSM,
    "chunk_scan": _SSM,
    "short_conv": (*_norms("norm"), *_CONV),
    "rwkv4": (*_norms("norm"), *_MIX, "mix_v", "time_decay", "time_first"),
    "channel_mix": (*_norms("norm"), *_MIX),
    "mlstm": _norms("norm", "gate_norm"),
    "attention": (*_AROUND, *_HEAD_NORMS, *_CONV),
    "mlp": _AROUND,
    # added to scores in fp32 where experts are chosen
    "experts": (*_AROUND, "router_bias", *_norms("shared_norm", "shared_norm_behind")),
    "shared": (*_AROUND, *_HEAD_NORMS, *_norms("mlp_norm"), *_CONV),
}
"""By kind of sublayer: not read by one."""


def autocast_parameters(
    kind: str, fmt: Format, also: tuple[str, ...] = ()
) -> dict[str, Format]:
    """The format of every parameter of a kind, of the embedding and of the head.

    **Arguments:**

    - `also`: parameters of the kind that this program casts besides.

    **Raises:** `UsageError` for a kind of which nobody said what is cast.
    """
    if kind not in CAST:
        raise UsageError(
            f"nothing says what autocast does to sublayers of kind {kind!r}",
            hint=f"--precision {fmt.name}",
        )
    formats = {"default": FP32, "embedding": FP32, "norm_f": FP32}
    formats |= dict.fromkeys(KEPT[kind], FP32)
    return formats | dict.fromkeys((*CAST[kind], *also, "head"), fmt)
