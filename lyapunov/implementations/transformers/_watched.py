"""Which modules of transformers' networks are watched, and what they show."""

from typing import NamedTuple


class Seen(NamedTuple):
    """What is copied at a parameter's module, its input or its output, and as what."""

    key: str
    side: str
    site: str


_NORM = Seen("norm", "out", "norm")
_QKV = tuple(Seen(f"{name}_proj", "out", name) for name in "qkv")
_BEHIND = Seen("norm_behind", "out", "norm_behind")
# What the projection behind a mixer reads, and puts out.
_END = (Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"))
_DELTA = (
    _NORM, *_QKV, Seen("b_proj", "out", "rate_logit"),
    Seen("gate_norm", "in", "scan_output"), *_END,
)  # fmt: skip

# By kind; a module that has no such parameter is not watched.
WATCHED = {
    "mamba1": (
        _NORM, Seen("in_proj", "out", "xz"),
        Seen("x_proj", "in", "conv"), Seen("x_proj", "out", "x_proj"), *_END,
    ),
    "mamba2": (_NORM, Seen("in_proj", "out", "xz"), *_END),
    "gated_delta": (
        *_DELTA, Seen("z_proj", "out", "z"), Seen("a_proj", "out", "gate_logit"),
    ),
    "kimi_delta": (
        *_DELTA, Seen("f_down", "out", "forget_low"), Seen("f_up", "out", "forget"),
        Seen("f_proj", "out", "forget"), Seen("g_down", "out", "z_low"),
        Seen("g_up", "out", "z"), Seen("g_proj", "out", "z"),
    ),
    "rg_lru": (
        _NORM, Seen("x_proj", "out", "x"), Seen("y_proj", "out", "branch"), *_END,
    ),
    "lightning": (
        *_QKV, Seen("gate_norm", "in", "scan_output"),
        Seen("gate_norm", "out", "gate_norm"), Seen("g_proj", "out", "output_gate"),
        Seen("out_proj", "in", "read_gated"), Seen("out_proj", "out", "out"),
    ),
    "norm": (_NORM, Seen("norm", "out", "out")),
    "short_conv": (_NORM, Seen("in_proj", "out", "xz"), *_END),
    "rwkv4": (
        _NORM, Seen("k_proj", "out", "k"),
        Seen("v_proj", "out", "v"), Seen("r_proj", "out", "receptance_logit"), *_END,
    ),
    "mlstm": (
        _NORM, *_QKV,
        Seen("g_proj", "out", "output_logit"), Seen("i_proj", "out", "input_logit"),
        Seen("f_proj", "out", "forget_logit"), Seen("gate_norm", "in", "scan_output"),
        Seen("gate_norm", "out", "gate_norm"), *_END,
    ),
    "channel_mix": (
        _NORM, Seen("up", "out", "up"),
        Seen("r_proj", "out", "receptance_logit"), Seen("down", "in", "activated"),
        Seen("down", "out", "down"), Seen("block", "out", "out"),
    ),
    "attention": (
        _NORM, *_QKV,
        Seen("q_down", "out", "q_down"), Seen("q_down_norm", "out", "q_down_norm"),
        Seen("kv_down", "out", "kv_down"),
        Seen("kv_down_norm", "out", "kv_down_norm"),
        Seen("g_proj", "out", "output_gate"), Seen("o_proj", "in", "read"),
        Seen("o_proj", "out", "out"), _BEHIND,
    ),
    "mlp": (
        _NORM, Seen("up", "out", "up"),
        Seen("gate", "out", "gate"), Seen("down", "in", "hidden"),
        Seen("down", "out", "out"), _BEHIND,
    ),
    "experts": (
        _NORM, Seen("block", "out", "routed"),
        Seen("shared_down", "out", "shared"),
        Seen("shared_router", "out", "shared_router"),
    ),
    "shared": (
        _NORM, Seen("o_proj", "out", "attended"),
        Seen("mlp_norm", "out", "mlp_norm"), Seen("down", "out", "mlp_out"),
        Seen("linear", "out", "out"),
    ),
}  # fmt: skip
