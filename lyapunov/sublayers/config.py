"""Sizes and switches of a network, as read from its checkpoint; no arrays here."""

from dataclasses import dataclass
from typing import Any, ClassVar

from .mamba1 import Mamba1Sizes


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
    embedding_multiplier: ClassVar[float] = 1.0
    logits_multiplier: ClassVar[float] = 1.0

    @property
    def sublayers(self) -> tuple[Mamba1Sizes, ...]:
        """Sizes of each sublayer: all alike."""
        sizes = Mamba1Sizes(
            d_model=self.d_model,
            d_inner=self.d_inner,
            d_state=self.d_state,
            d_conv=self.d_conv,
            dt_rank=self.dt_rank,
            norm_epsilon=self.norm_epsilon,
            conv_bias=self.conv_bias,
            proj_bias=self.proj_bias,
        )
        return (sizes,) * self.n_layers


@dataclass(frozen=True)
class NetworkConfig:
    """A language model of sublayers that may differ: embedding, them, norm, head.

    **Arguments:**

    - `sublayers`: sizes of each, in order; `kind` says which flow it follows.
    - `norm_centred`: whether the norm before the head is a LayerNorm.
    - `embedding_multiplier`, `logits_multiplier`: of the embedding and the logits.
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
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0

    @property
    def n_layers(self) -> int:
        """Number of sublayers."""
        return len(self.sublayers)
