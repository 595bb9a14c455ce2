"""Which modules of transformers' networks are watched, and what they show."""

from typing import NamedTuple


class Seen(NamedTuple):
    """What is copied at a parameter's module, its input or its output, and as what."""

    key: str
    side: str
    site: str


_DELTA = (
    Seen("norm", "out", "norm"), Seen("q_proj", "out", "q"),
    Seen("k_proj", "out", "k"), Seen("v_proj", "out", "v"),
    Seen("b_proj", "out", "rate_logit"), Seen("gate_norm", "in", "scan_output"),
    Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"),
)  # fmt: skip

# By kind; a module that has no such parameter is not watched.
WATCHED = {
    "mamba1": (
        Seen("norm", "out", "norm"), Seen("in_proj", "out", "xz"),
        Seen("x_proj", "in", "conv"), Seen("x_proj", "out", "x_proj"),
        Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"),
    ),
    "mamba2": (
        Seen("norm", "out", "norm"), Seen("in_proj", "out", "xz"),
        Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"),
    ),
    "gated_delta": (
        *_DELTA, Seen("z_proj", "out", "z"), Seen("a_proj", "out", "gate_logit"),
    ),
    "kimi_delta": (
        *_DELTA, Seen("f_down", "out", "forget_low"), Seen("f_up", "out", "forget"),
        Seen("f_proj", "out", "forget"), Seen("g_down", "out", "z_low"),
        Seen("g_up", "out", "z"), Seen("g_proj", "out", "z"),
    ),
    "rg_lru": (
        Seen("norm", "out", "norm"), Seen("x_proj", "out", "x"),
        Seen("y_proj", "out", "branch"), Seen("out_proj", "in", "gated"),
        Seen("out_proj", "out", "out"),
    ),
    "lightning": (
        Seen("q_proj", "out", "q"), Seen("k_proj", "out", "k"),
        Seen("v_proj", "out", "v"), Seen("gate_norm", "in", "scan_output"),
        Seen("gate_norm", "out", "gate_norm"), Seen("g_proj", "out", "output_gate"),
        Seen("out_proj", "in", "read_gated"), Seen("out_proj", "out", "out"),
    ),
    "norm": (Seen("norm", "out", "norm"), Seen("norm", "out", "out")),
    "short_conv": (
        Seen("norm", "out", "norm"), Seen("in_proj", "out", "xz"),
        Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"),
    ),
    "rwkv4": (
        Seen("norm", "out", "norm"), Seen("k_proj", "out", "k"),
        Seen("v_proj", "out", "v"), Seen("r_proj", "out", "receptance_logit"),
        Seen("out_proj", "in", "gated"), Seen("out_proj", "out", "out"),
    ),
    "mlstm": (
        Seen("norm", "out", "norm"), Seen("q_proj", "out", "q"),
        Seen("k_proj", "out", "k"), Seen("v_proj", "out", "v"),
        Seen("g_proj", "out", "output_logit"), Seen("i_proj", "out", "input_logit"),
        Seen("f_proj", "out", "forget_logit"), Seen("gate_norm", "in", "scan_output"),
        Seen("gate_norm", "out", "gate_norm"), Seen("out_proj", "in", "gated"),
        Seen("out_proj", "out", "out"),
    ),
    "channel_mix": (
        Seen("norm", "out", "norm"), Seen("up", "out", "up"),
        Seen("r_proj", "out", "receptance_logit"), Seen("down", "in", "activated"),
        Seen("down", "out", "down"), Seen("block", "out", "out"),
    ),
    "attention": (
        Seen("norm", "out", "norm"), Seen("q_proj", "out", "q"),
        Seen("k_proj", "out", "k"), Seen("v_proj", "out", "v"),
        Seen("q_down", "out", "q_down"), Seen("q_down_norm", "out", "q_down_norm"),
        Seen("kv_down", "out", "kv_down"),
        Seen("kv_down_norm", "out", "kv_down_norm"),
        Seen("g_proj", "out", "output_gate"), Seen("o_proj", "in", "read"),
        Seen("o_proj", "out", "out"), Seen("norm_behind", "out", "norm_behind"),
    ),
    "mlp": (
        Seen("norm", "out", "norm"), Seen("up", "out", "up"),
        Seen("gate", "out", "gate"), Seen("down", "in", "hidden"),
        Seen("down", "out", "out"), Seen("norm_behind", "out", "norm_behind"),
    ),
    "experts": (
        Seen("norm", "out", "norm"), Seen("block", "out", "routed"),
        Seen("shared_down", "out", "shared"),
        Seen("shared_router", "out", "shared_router"),
    ),
    "shared": (
        Seen("norm", "out", "norm"), Seen("o_proj", "out", "attended"),
        Seen("mlp_norm", "out", "mlp_norm"), Seen("down", "out", "mlp_out"),
        Seen("linear", "out", "out"),
    ),
}  # fmt: skip
