"""The attention and MLP that Zamba's layers share, and the projection of each layer.

The block reads the stream beside the embedding of the same tokens. What it puts out
is read by the mixer after it and does not join the residual (arXiv 2405.16712,
section 2; arXiv 2411.15242 for the adapters).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import numpy as np

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Get,
    HandedOn,
    with_biases,
    within,
)
from .attention import (
    ATTEND,
    NOT_A_RECURRENCE,
    AttentionParameters,
    AttentionSizes,
    AttentionState,
    attend,
)
from .mlp import FEED_FORWARD, MlpParameters, MlpSizes, feed_forward
from .norm import normalise
from .sites import FRONT
from .token_blocks import in_token_blocks


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
    x, after = attend(at, stream, p.attention, start)
    widest = p.mlp.up.matrix.shape[0]
    return in_token_blocks(at, _mlp, x, p, None, widest=widest)[0], after


def _mlp(at: AbstractArithmetic, x, p: SharedParameters, start):
    x = at.matmul(x, p.attention.o_proj, p.attention.o_bias)
    x = normalise(at, at.store("attended", x), p.mlp.norm, "mlp_norm")
    x = at.store("mlp_out", feed_forward(at, x, p.mlp))
    return at.store("out", at.matmul(x, p.linear)), start


@final
@dataclass(frozen=True)
class SharedSizes(AbstractSublayer):
    """Attention and MLP that several layers share (Zamba); what they put out goes to
    the next sublayer alone, and they read the embedding beside the stream.

    **Arguments:**

    - `blocks`: how many there are; layers take them in turn.
    - `adapter_rank`: of each layer's own addition to the shared matrices (Zamba2).
    - `adapted`: whether q, k and v have such additions too.
    """

    attention: AttentionSizes
    mlp: MlpSizes
    blocks: int = 1
    adapter_rank: int = 0
    adapted: bool = False

    kind: ClassVar = "shared"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    aside: ClassVar = True
    embedded: ClassVar = True
    flow: ClassVar = staticmethod(shared)
    sites: ClassVar = (
        *FRONT, *ATTEND, "attended", "mlp_norm_hat", "mlp_norm", *FEED_FORWARD,
        "mlp_out", "out",
    )  # fmt: skip
    weight_groups: ClassVar = {
        **{name: of | {"shared"} for name, of in MlpSizes.weight_groups.items()},
        **{name: of | {"shared"} for name, of in AttentionSizes.weight_groups.items()},
        **within("shared", "mlp", norms=with_biases("mlp_norm")),
        **within("shared", projections="linear"),
    }

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """Keys and values of all tokens; each layer has its own."""
        return self.attention.hand_over

    def parameters(self, get: Get) -> SharedParameters:
        """Put the flow's parameters together from stored ones."""
        # the MLP's norm has a name of its own, and so does its bias
        own = {"norm": "mlp_norm", "norm_bias": "mlp_norm_bias"}

        def of_mlp(name: str) -> Any:
            return get(own.get(name, name))

        return SharedParameters(
            attention=self.attention.parameters(get),
            mlp=self.mlp.parameters(of_mlp),
            linear=Weight(get("linear")),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations of one layer, adapters among them."""
        a, m = (one.count(length, batch) for one in (self.attention, self.mlp))
        d_model = self.mlp.d_model
        return Counts(
            weights=a.weights + m.weights + d_model**2 + self._adapters(),
            channels=max(a.channels, m.channels),
            scores=a.scores,
            states=0,
        )

    def _adapters(self) -> int:
        """What a layer adds of its own to shared matrices, in two factors each."""
        a, m = self.attention, self.mlp
        around = (m.projections - 1) * (m.d_model + m.d_hidden)
        if self.adapted:
            width = a.width or a.d_model
            around += 3 * width + a.head_dim * (a.heads + 2 * a.kv_heads)
        return self.adapter_rank * around

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return NOT_A_RECURRENCE
