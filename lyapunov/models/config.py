"""Sizes and switches of a network, as read from its checkpoint; no arrays here."""

from dataclasses import dataclass


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
