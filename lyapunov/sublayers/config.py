"""Sizes and switches of a network, as read from its checkpoint; no arrays here."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class LogitsEnd(NamedTuple):
    """What a network makes of the product with its head.

    **Arguments:**

    - `multiplier`: of all logits (Granite, Falcon-H1).
    - `soft_cap`: c, where logits l are c tanh(l / c) (RecurrentGemma).
    """

    multiplier: float = 1.0
    soft_cap: float | None = None

    def slope(self, logits: Any) -> Any:
        """Derivative by the product with the head, at these logits."""
        if self.soft_cap is None:
            return self.multiplier
        return self.multiplier * (1.0 - (logits / self.soft_cap) ** 2)


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
    - `embedding_norm_epsilon`: of a LayerNorm of the embedding; None: there is none.
    - `embedding_multiplier`, `logits_multiplier`: of the embedding and the logits.
    - `logits_soft_cap`: as in `LogitsEnd`.
    - `asks`: what `config.json` asks of servers, by key, such as the format of the
      state; changes no function.
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
    embedding_norm_epsilon: float | None = None
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    logits_soft_cap: float | None = None
    asks: tuple[tuple[str, str], ...] = ()

    @property
    def n_layers(self) -> int:
        """Number of sublayers."""
        return len(self.sublayers)

    @property
    def logits_end(self) -> LogitsEnd:
        """What is made of the product with the head."""
        return LogitsEnd(self.logits_multiplier, self.logits_soft_cap)


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
        and config.embedding_multiplier == 1.0
        and config.logits_end == LogitsEnd()
    )
    return first if plain else None
