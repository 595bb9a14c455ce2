"""How large a sublayer is: weights, widest activations, states.

Every kind is counted here; one that is not raises, since a count of 0 would be a wrong
plan without a word.
"""

from typing import Any

from .attention import SCORES_AT_ONCE, rows_at_once
from .config import (
    AttentionSizes,
    ExpertsSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    Mamba3Sizes,
    MlpSizes,
    SharedSizes,
)


def n_weights(sizes: Any) -> int:
    """Count the entries of a sublayer's matrices: all arrays but vectors.

    **Raises:** `TypeError` for a kind that is not counted.
    """
    match sizes:
        case Mamba1Sizes():
            rows = 3 * sizes.d_model + 2 * sizes.dt_rank + sizes.d_conv
            # B, C and A_log
            return sizes.d_inner * (rows + 3 * sizes.d_state)
        case Mamba2Sizes():
            mixed = sizes.d_inner + 2 * sizes.groups * sizes.d_state
            rows = 2 * sizes.d_inner + mixed + sizes.heads
            return sizes.d_model * rows + mixed * sizes.d_conv
        case Mamba3Sizes():
            rank = sizes.rank or 1
            rows = 3 * sizes.d_inner + 2 * rank * sizes.groups * sizes.d_state
            rows += 3 * sizes.heads + sizes.angles
            biases = 2 * rank * sizes.heads * sizes.d_state
            of_ranks = 0 if sizes.rank is None else 3 * rank * sizes.d_inner
            return sizes.d_model * rows + biases + of_ranks
        case AttentionSizes():
            width = sizes.width or sizes.d_model
            mixed = sizes.head_dim * (sizes.heads + 2 * sizes.kv_heads)
            out = sizes.head_dim * sizes.heads * sizes.d_model
            return mixed * (width + sizes.d_conv) + out
        case MlpSizes():
            return _projections(sizes) * sizes.d_model * sizes.d_hidden
        case ExpertsSizes():
            own = 0 if sizes.shared is None else n_weights(sizes.shared)
            width = sizes.d_model
            if sizes.width is not None:
                width = sizes.width
                own += 2 * width * sizes.d_model
            each = _projections(sizes) * width * sizes.d_hidden + sizes.d_model
            return own + sizes.experts * each
        case SharedSizes():
            own = n_weights(sizes.attention) + n_weights(sizes.mlp)
            return own + sizes.mlp.d_model**2 + _adapters(sizes)
    raise _not_counted(sizes)


def _projections(sizes: MlpSizes | ExpertsSizes) -> int:
    return 3 if sizes.gated else 2


def _adapters(sizes: SharedSizes) -> int:
    """What a layer adds of its own to shared matrices, in two factors each."""
    a, m = sizes.attention, sizes.mlp
    around = (_projections(m) - 1) * (m.d_model + m.d_hidden)
    if sizes.adapted:
        width = a.width or a.d_model
        around += 3 * width + a.head_dim * (a.heads + 2 * a.kv_heads)
    return sizes.adapter_rank * around


def n_channels(sizes: Any, length: int, batch: int = 1) -> int:
    """Count the entries a token of the widest tensor between projections.

    Scores that go through in blocks are none: `n_scores` counts those.

    **Arguments:**

    - `length`: tokens that attention sees.
    - `batch`: sequences side by side.

    **Raises:** `TypeError` for a kind that is not counted.
    """
    match sizes:
        case Mamba1Sizes():
            return sizes.d_inner
        case Mamba2Sizes():
            return sizes.d_inner + 2 * sizes.groups * sizes.d_state
        case Mamba3Sizes():
            return (sizes.rank or 1) * max(sizes.d_inner, sizes.heads * sizes.d_state)
        case AttentionSizes():
            whole = rows_at_once(sizes.heads, length, batch) >= length
            return sizes.heads * max(sizes.head_dim, length if whole else 0)
        case MlpSizes():
            return sizes.d_hidden
        case ExpertsSizes():
            return sizes.experts * max(sizes.d_hidden, sizes.width or sizes.d_model)
        case SharedSizes():
            both = sizes.attention, sizes.mlp
            return max(n_channels(s, length, batch) for s in both)
    raise _not_counted(sizes)


def n_scores(sizes: Any, length: int, batch: int = 1) -> int:
    """Count the scores that a temporary holds where they go through in blocks; else 0.

    **Arguments:** as for `n_channels`.

    **Raises:** `TypeError` for a kind that is not counted.
    """
    match sizes:
        case AttentionSizes():
            rows = rows_at_once(sizes.heads, length, batch)
            each = sizes.heads * length * batch
            return 0 if rows >= length else max(SCORES_AT_ONCE, each)
        case SharedSizes():
            return n_scores(sizes.attention, length, batch)
        case Mamba1Sizes() | Mamba2Sizes() | Mamba3Sizes():
            return 0
        case MlpSizes() | ExpertsSizes():
            return 0
    raise _not_counted(sizes)


def n_states(sizes: Any) -> int:
    """Count the entries of a recurrent state; 0 where nothing recurs.

    **Raises:** `TypeError` for a kind that is not counted.
    """
    match sizes:
        case Mamba1Sizes() | Mamba2Sizes() | Mamba3Sizes():
            return sizes.d_inner * sizes.d_state
        case AttentionSizes() | MlpSizes() | ExpertsSizes() | SharedSizes():
            return 0
    raise _not_counted(sizes)


def _not_counted(sizes: Any) -> TypeError:
    return TypeError(f"{type(sizes).__name__} has no count in {__name__}")
