"""Attention, MLPs and experts as transformers names and stores them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..sublayers import AttentionSizes, ExpertsSizes, MlpSizes
from ._network import Part


def rows(start: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows `start` to `stop` of a tensor that holds several parameters."""
    return lambda array: array[start:stop]


def middle(start: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows `start` to `stop` of each expert's matrix in (experts, rows, columns)."""
    return lambda array: array[:, start:stop]


def attention_parts(
    a: AttentionSizes, stored: dict[str, Any], prefix: str, norm: str | None
) -> dict[str, Part]:
    """Parameters named q_proj, k_proj, v_proj, o_proj, with biases where stored."""
    width = a.width or a.d_model
    heads_of = {"q": a.heads, "k": a.kv_heads, "v": a.kv_heads}
    parts = {} if norm is None else {"norm": Part(norm, (width,))}
    for name, heads in heads_of.items():
        size = heads * a.head_dim
        parts[f"{name}_proj"] = Part(f"{prefix}{name}_proj.weight", (size, width))
        if f"{prefix}{name}_proj.bias" in stored:
            parts[f"{name}_bias"] = Part(f"{prefix}{name}_proj.bias", (size,))
    inner = a.heads * a.head_dim
    parts["o_proj"] = Part(f"{prefix}o_proj.weight", (a.d_model, inner))
    if f"{prefix}o_proj.bias" in stored:
        parts["o_bias"] = Part(f"{prefix}o_proj.bias", (a.d_model,))
    return parts


def mlp_parts(
    m: MlpSizes,
    stored: dict[str, Any],
    prefix: str,
    norm: str | None,
) -> dict[str, Part]:
    """Parameters named gate_proj, up_proj, down_proj, with biases where stored."""
    parts = {} if norm is None else {"norm": Part(norm, (m.d_model,))}
    shapes = {"up": (m.d_hidden, m.d_model), "down": (m.d_model, m.d_hidden)}
    if m.gated:
        shapes["gate"] = (m.d_hidden, m.d_model)
    for name, shape in shapes.items():
        parts[name] = Part(f"{prefix}{name}_proj.weight", shape)
        if f"{prefix}{name}_proj.bias" in stored:
            parts[f"{name}_bias"] = Part(f"{prefix}{name}_proj.bias", shape[:1])
    return parts


def fused_mlp_parts(m: MlpSizes, both: str, down: str) -> dict[str, Part]:
    """Gate and up in one tensor, in this order."""
    shape = (2 * m.d_hidden, m.d_model)
    return {
        "gate": Part(both, shape, rows(0, m.d_hidden)),
        "up": Part(both, shape, rows(m.d_hidden, 2 * m.d_hidden)),
        "down": Part(down, (m.d_model, m.d_hidden)),
    }


def expert_parts(
    e: ExpertsSizes, prefix: str, stored: dict[str, Any]
) -> dict[str, Part]:
    """Experts stored one by one, or together with gate and up in one tensor."""
    width, hidden = e.width or e.d_model, e.d_hidden
    if f"{prefix}down_proj" in stored:
        parts = {"down": Part(f"{prefix}down_proj", (e.experts, width, hidden))}
        if not e.gated:
            shape = (e.experts, hidden, width)
            return parts | {"up": Part(f"{prefix}up_proj", shape)}
        both = (e.experts, 2 * hidden, width)
        for name, place in (("gate", (0, hidden)), ("up", (hidden, 2 * hidden))):
            parts[name] = Part(f"{prefix}gate_up_proj", both, middle(*place))
        return parts
    shapes = {"up": (hidden, width), "down": (width, hidden)}
    if e.gated:
        shapes["gate"] = (hidden, width)
    return {
        name: Part(
            tuple(f"{prefix}{i}.{name}_proj.weight" for i in range(e.experts)), shape
        )
        for name, shape in shapes.items()
    }
