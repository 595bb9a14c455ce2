"""Whole language models in NumPy and fp64, token by token, from published code."""

from . import (
    delta_rule,
    kimi_linear,
    lara_mini,
    lfm2,
    ling,
    mamba1,
    mamba3,
    mamba_ssm,
    minimax,
    olmo_hybrid,
    openelm,
    qwen3_next,
    recurrent_gemma,
    rwkv,
    xlstm,
)


__all__ = [
    "delta_rule",
    "kimi_linear",
    "lara_mini",
    "lfm2",
    "ling",
    "mamba1",
    "mamba3",
    "mamba_ssm",
    "minimax",
    "olmo_hybrid",
    "openelm",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
]
