"""What several kinds of networks have in common as llama.cpp's files hold it."""

from collections.abc import Iterator
from typing import Any

import numpy as np


Tensors = Iterator[tuple[str, np.ndarray]]


def around(
    state: dict[str, Any], embedding: str, norm: str, plus: float = 0
) -> Tensors:
    yield "token_embd.weight", state.pop(embedding)
    yield "output_norm.weight", state.pop(norm) + np.float32(plus)
    if "lm_head.weight" in state:
        yield "output.weight", state.pop("lm_head.weight")


def negative(A_log: np.ndarray) -> np.ndarray:
    return -np.exp(A_log)


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head's rows, one of each in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_sizes(writer: Any, c: Any, layers: int, hidden: Any, heads: int) -> None:
    writer.add_context_length(2**20)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_block_count(layers)


def write_ssm(
    writer: Any, inner: int, state: int, taps: int, rank: int, groups=None
) -> None:
    writer.add_ssm_conv_kernel(taps)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    if groups is not None:
        writer.add_ssm_group_count(groups)


def mamba1_mixer(state: dict[str, Any], inside: str, block: str) -> Tensors:
    yield f"{block}ssm_in.weight", state.pop(f"{inside}in_proj.weight")
    yield f"{block}ssm_conv1d.weight", state.pop(f"{inside}conv1d.weight")[:, 0]
    yield f"{block}ssm_conv1d.bias", state.pop(f"{inside}conv1d.bias")
    yield f"{block}ssm_x.weight", state.pop(f"{inside}x_proj.weight")
    yield f"{block}ssm_dt.weight", state.pop(f"{inside}dt_proj.weight")
    yield f"{block}ssm_dt.bias", state.pop(f"{inside}dt_proj.bias")
    yield f"{block}ssm_a", negative(state.pop(f"{inside}A_log"))
    yield f"{block}ssm_d", state.pop(f"{inside}D")
    yield f"{block}ssm_out.weight", state.pop(f"{inside}out_proj.weight")


def mamba2_mixer(
    state: dict[str, Any], inside: str, block: str, groups: int
) -> Tensors:
    yield f"{block}ssm_in.weight", state.pop(f"{inside}in_proj.weight")
    yield f"{block}ssm_conv1d.weight", state.pop(f"{inside}conv1d.weight")[:, 0]
    if f"{inside}conv1d.bias" in state:
        yield f"{block}ssm_conv1d.bias", state.pop(f"{inside}conv1d.bias")
    yield f"{block}ssm_dt.bias", state.pop(f"{inside}dt_bias")
    yield f"{block}ssm_a", negative(state.pop(f"{inside}A_log"))[:, None]
    yield f"{block}ssm_d", state.pop(f"{inside}D")[:, None]
    if f"{inside}norm.weight" in state:
        norm = state.pop(f"{inside}norm.weight")
        yield f"{block}ssm_norm.weight", norm.reshape(groups, -1)
    yield f"{block}ssm_out.weight", state.pop(f"{inside}out_proj.weight")


def attention(
    state: dict[str, Any], inside: str, block: str, heads: tuple[int, int] | None
) -> Tensors:
    """In pairs where heads are given."""
    names = zip("qkvo", ("q", "k", "v", "output"), strict=True)
    for one, theirs in names:
        for kind in ("weight", "bias"):
            if f"{inside}{one}_proj.{kind}" not in state:
                continue
            rows = state.pop(f"{inside}{one}_proj.{kind}")
            if heads is not None and one in "qk":
                rows = paired(rows, heads["qk".index(one)])
            yield f"{block}attn_{theirs}.{kind}", rows


def mlp(
    state: dict[str, Any], inside: str, block: str, *parts: str, of: str = ""
) -> Tensors:
    for one in parts:
        yield f"{block}ffn_{one}{of}.weight", state.pop(f"{inside}{one}_proj.weight")


def joined_experts(state: dict[str, Any], inside: str, block: str) -> Tensors:
    gate, up = np.split(state.pop(f"{inside}gate_up_proj"), 2, axis=1)
    yield f"{block}ffn_gate_exps.weight", gate
    yield f"{block}ffn_up_exps.weight", up
    yield f"{block}ffn_down_exps.weight", state.pop(f"{inside}down_proj")
