"""How large a sublayer is: weights, widest activations, states."""

from typing import Any

from .config import (
    AttentionSizes,
    ExpertsSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    MlpSizes,
    SharedSizes,
)


def n_weights(sizes: Any) -> int:
    """Entries of a sublayer's matrices."""
    match sizes:
        case Mamba1Sizes():
            rows = 3 * sizes.d_model + 2 * sizes.dt_rank + 4 * sizes.d_state
            return sizes.d_inner * rows
        case Mamba2Sizes():
            rows = 3 * sizes.d_inner + 2 * sizes.groups * sizes.d_state + sizes.heads
            return sizes.d_model * rows
        case AttentionSizes():
            width = sizes.width or sizes.d_model
            heads = sizes.heads + 2 * sizes.kv_heads
            return sizes.head_dim * (heads * width + sizes.heads * sizes.d_model)
        case MlpSizes():
            return 3 * sizes.d_model * sizes.d_hidden
        case ExpertsSizes():
            width = sizes.width or sizes.d_model
            own = 0 if sizes.shared is None else n_weights(sizes.shared)
            return own + sizes.experts * (3 * width * sizes.d_hidden + sizes.d_model)
        case SharedSizes():
            own = n_weights(sizes.attention) + n_weights(sizes.mlp)
            return own + sizes.mlp.d_model**2
    return 0


def n_channels(sizes: Any, length: int) -> int:
    """Entries a token of the widest tensor inside; attention sees `length` tokens."""
    match sizes:
        case Mamba1Sizes():
            return sizes.d_inner
        case Mamba2Sizes():
            return sizes.d_inner + 2 * sizes.groups * sizes.d_state
        case AttentionSizes():
            return sizes.heads * max(sizes.head_dim, length)
        case MlpSizes():
            return sizes.d_hidden
        case ExpertsSizes():
            return sizes.experts * max(sizes.d_hidden, sizes.width or sizes.d_model)
        case SharedSizes():
            return max(n_channels(s, length) for s in (sizes.attention, sizes.mlp))
    return 0


def n_states(sizes: Any) -> int:
    """Entries of a recurrent state; 0 where there is none."""
    if isinstance(sizes, Mamba1Sizes | Mamba2Sizes):
        return sizes.d_inner * sizes.d_state
    return 0
