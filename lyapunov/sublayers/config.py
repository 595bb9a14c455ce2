"""Sizes and switches of a network, as read from its checkpoint; no arrays here."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkConfig:
    """A language model of sublayers that may differ: embedding, them, norm, head.

    **Arguments:**

    - `vocab_size`: tokens that the model knows, without padding.
    - `padded_vocab_size`: rows of the embedding and of the head; `mamba_ssm` pads
        to a multiple of 8, transformers stores the padded number as the real one.
    - `d_model`: width of the residual.
    - `sublayers`: sizes of each, in order; `kind` says which flow it follows.
    - `norm_epsilon`: of the norm before the head.
    - `residual_in_fp32`: whether the residual stays fp32 under a lower precision.
    - `tie_embeddings`: whether the head is the embedding.
    - `fused_add_norm`: whether the addition to the residual and the norm are one
        kernel, so that the sum reaches the norm unrounded (`mamba_ssm` only).
    - `norm_centred`: whether the norm before the head is a LayerNorm.
    - `norm_offset`: of the same, as in `Norm`.
    - `embedding_multiplier`, `logits_multiplier`: of the embedding and the logits.
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
    norm_offset: float = 0.0
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0

    @property
    def n_layers(self) -> int:
        """Number of sublayers."""
        return len(self.sublayers)


def plain_mamba1(config: NetworkConfig) -> Any:
    """The sizes of the sublayers where all are one Mamba-1 and alike; else None.

    Plain is a mixer of one head behind an RMSNorm, without norms inside.
    """
    if len(set(config.sublayers)) != 1:
        return None
    first = config.sublayers[0]
    plain = (
        first.kind == "mamba1"
        and first.heads == 1
        and first.mixer_norm_epsilon is None
        and not first.norm_centred
        and config.embedding_multiplier == config.logits_multiplier == 1.0
    )
    return first if plain else None
