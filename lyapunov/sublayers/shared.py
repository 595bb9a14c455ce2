"""The attention and MLP that Zamba's layers share, and the projection of each layer.

The block reads the stream beside the embedding of the same tokens. What it puts out
is read by the mixer after it and does not join the residual (arXiv 2405.16712,
section 2; arXiv 2411.15242 for the adapters).
"""

import equinox as eqx

from ..arithmetic import AbstractArithmetic, Weight
from .attention import AttentionParameters, AttentionState, attend
from .mlp import MlpParameters, feed_forward
from .norm import normalise


class SharedParameters(eqx.Module):
    """One sublayer: norm and attention on twice the width, norm and MLP, projection."""

    attention: AttentionParameters
    mlp: MlpParameters
    linear: Weight
    """(d_model, d_model), the layer's own."""

    def initial_state(self) -> AttentionState:
        """Nothing has been read."""
        return self.attention.initial_state()


def shared(at: AbstractArithmetic, stream, p: SharedParameters, start: AttentionState):
    """One sublayer over a sequence.

    **Arguments:**

    - `stream`: (seq, 2 d_model), the residual and the embedding side by side.
    - `start`: the cache of the tokens before.

    **Returns:** the output (seq, d_model), and the cache with these tokens in it.
    """
    x = normalise(at, at.store("norm_input", stream), p.attention.norm)
    x, after = attend(at, x, p.attention, start)
    x = normalise(at, at.store("attended", x), p.mlp.norm, "mlp_norm")
    x = at.store("mlp_out", feed_forward(at, x, p.mlp))
    return at.store("out", at.matmul(x, p.linear)), after
