"""Sizes and switches of a network, as read from its checkpoint; no arrays here."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Mamba1Config:
    """A Mamba-1 language model: embedding, `n_layers` mixers, final norm, head.

    **Arguments:**

    - `vocab_size`: tokens that the model knows, without padding.
    - `padded_vocab_size`: rows of the embedding and of the head; `mamba_ssm` pads
        to a multiple of 8, transformers stores the padded number as the real one.
    - `d_model`: width of the residual.
    - `d_inner`: channels of the recurrence, `expand * d_model`.
    - `d_state`: states per channel.
    - `d_conv`: taps of the causal convolution, the present token included.
    - `dt_rank`: rank of the projection that makes dt.
    - `n_layers`: number of mixers.
    - `norm_epsilon`: added to the mean square in every RMSNorm.
    - `residual_in_fp32`: whether the residual stays fp32 under a lower precision.
    - `tie_embeddings`: whether the head is the embedding.
    - `conv_bias`: whether the convolution has a bias.
    - `proj_bias`: whether in_proj and out_proj have a bias.
    - `fused_add_norm`: whether the addition to the residual and the norm are one
        kernel, so that the sum reaches the norm unrounded (`mamba_ssm` only).
    """

    vocab_size: int
    padded_vocab_size: int
    d_model: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    n_layers: int
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    tie_embeddings: bool = True
    conv_bias: bool = True
    proj_bias: bool = False
    fused_add_norm: bool = True

    kind: ClassVar[str] = "mamba1"
    norm_centred: ClassVar[bool] = False

    @property
    def sublayers(self) -> tuple["Mamba1Config", ...]:
        """Sizes of each sublayer: all alike."""
        return (self,) * self.n_layers


@dataclass(frozen=True)
class Mamba2Sizes:
    """One Mamba-2 mixer with the norm before it.

    **Arguments:**

    - `heads`: d_inner / head_dim; each has one dt and one decay.
    - `groups`: heads of a group share B and C.
    - `chunk`: tokens of a chunk in the chunked form.
    - `dt_limit`: dt is clipped to it after softplus.
    - `gate_norm`: whether the gated output is normalised; in `norm_groups` groups of
      channels, before or after the gate.
    """

    d_model: int
    d_inner: int
    d_state: int
    heads: int
    groups: int
    d_conv: int
    chunk: int
    norm_epsilon: float
    gate_norm_epsilon: float
    dt_limit: tuple[float, float] = (0.0, math.inf)
    gate_norm: bool = True
    norm_groups: int = 1
    norm_before_gate: bool = False
    conv_bias: bool = True
    proj_bias: bool = False

    kind: ClassVar[str] = "mamba2"


@dataclass(frozen=True)
class AttentionSizes:
    """One attention with the norm before it.

    **Arguments:**

    - `rotary`: leading channels of a head that turn with position, at rates from
      `theta`; 0: positions are not seen.
    - `scale`: of the scores.
    - `norm_epsilon`, `norm_centred`: of the norm; centred is LayerNorm.
    - `clip`: q, k and v are clipped to this magnitude.
    - `beside`: reads what the sublayer before it read, not what that one wrote.
    """

    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    theta: float
    scale: float
    norm_epsilon: float
    norm_centred: bool = False
    clip: float | None = None
    key_multiplier: float = 1.0
    beside: bool = False

    kind: ClassVar[str] = "attention"


@dataclass(frozen=True)
class MlpSizes:
    """One MLP with the norm before it; `beside` as for `AttentionSizes`."""

    d_model: int
    d_hidden: int
    activation: str
    norm_epsilon: float
    norm_centred: bool = False
    gate_multiplier: float = 1.0
    down_multiplier: float = 1.0
    beside: bool = False

    kind: ClassVar[str] = "mlp"


@dataclass(frozen=True)
class NetworkConfig:
    """A language model of sublayers that may differ: embedding, them, norm, head.

    **Arguments:**

    - `sublayers`: sizes of each, in order; `kind` says which flow it follows.
    - `norm_centred`: whether the norm before the head is a LayerNorm.
    - the others: as in `Mamba1Config`.
    """

    vocab_size: int
    padded_vocab_size: int
    d_model: int
    sublayers: tuple[Any, ...]
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    tie_embeddings: bool = True
    fused_add_norm: bool = True
    norm_centred: bool = False

    @property
    def n_layers(self) -> int:
        """Number of sublayers."""
        return len(self.sublayers)
