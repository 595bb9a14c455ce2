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
    embedding_multiplier: ClassVar[float] = 1.0
    logits_multiplier: ClassVar[float] = 1.0

    @property
    def sublayers(self) -> tuple["Mamba1Sizes", ...]:
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
class Mamba1Sizes:
    """One Mamba-1 mixer with the norm before it; names as in `Mamba1Config`.

    **Arguments:**

    - `heads`: parts of the channels with a dt, B and C of their own (Zamba).
    - `mixer_norm_epsilon`: of RMS norms over what dt is made of, over B and over C,
        where the model has them (Falcon Mamba, Jamba).
    - `norm_centred`: whether the norm in front is a LayerNorm.
    """

    d_model: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    norm_epsilon: float
    conv_bias: bool = True
    proj_bias: bool = False
    heads: int = 1
    mixer_norm_epsilon: float | None = None
    norm_centred: bool = False

    kind: ClassVar[str] = "mamba1"


@dataclass(frozen=True)
class Mamba2Sizes:
    """One Mamba-2 mixer with the norm before it.

    **Arguments:**

    - `heads`: d_inner / head_dim; each has one dt and one decay.
    - `groups`: heads of a group share B and C.
    - `chunk`: tokens of a chunk in the chunked form.
    - `dt_limit`: dt is clipped to it after softplus.
    - `transformers_dt_limit`: to which transformers clips it instead when it reads a
      whole sequence (Nemotron-H, Zamba2); None: to `dt_limit`.
    - `gate_norm`: whether the gated output is normalised; in `norm_groups` groups of
      channels, before or after the gate.
    - `in_multiplier`, `row_multipliers`, `out_multiplier`: of the input, of z, x, B, C
      and dt, and of the output (Falcon-H1, Granite).
    - `out_bias`: whether out_proj has a bias; `proj_bias` where not given.
    - `norm_centred`: whether the norm in front is a LayerNorm.
    - `beside`: reads what the sublayer before it read, not what that one wrote.
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
    out_bias: bool | None = None
    norm_centred: bool = False
    in_multiplier: float = 1.0
    row_multipliers: tuple[float, ...] | None = None
    out_multiplier: float = 1.0
    beside: bool = False
    transformers_dt_limit: tuple[float, float] | None = None

    kind: ClassVar[str] = "mamba2"


@dataclass(frozen=True)
class Mamba3Sizes:
    """One Mamba-3 mixer with the norm before it.

    **Arguments:**

    - `heads`, `groups`: as in `Mamba2Sizes`.
    - `rank`: outer products that a head adds at each token; None for SISO, whose
        kernels turn other pairs of channels.
    - `angles`: pairs of channels of B and C that turn.
    - `least_rate`: the smallest -A.
    - `gate_norm`: whether each head is normalised before the gate.
    - `mixer_norm_epsilon`: of the norms over B, over C and before the gate.
    - `chunk`: tokens that a chunk of the chunked form has.
    - `norm_centred`: whether the norm in front is a LayerNorm.
    """

    d_model: int
    d_inner: int
    d_state: int
    heads: int
    groups: int
    rank: int | None
    angles: int
    least_rate: float
    norm_epsilon: float
    mixer_norm_epsilon: float
    gate_norm: bool = False
    norm_centred: bool = False
    chunk: int = 64

    kind: ClassVar[str] = "mamba3"


@dataclass(frozen=True)
class AttentionSizes:
    """One attention with the norm before it.

    **Arguments:**

    - `rotary`: leading channels of a head that turn with position, at rates from
      `theta`; 0: positions are not seen.
    - `scale`: of the scores.
    - `norm_epsilon`, `norm_centred`: of the norm; centred is LayerNorm.
    - `norm_front`, `norm_behind`: whether the input and the output are normalised.
    - `width`: of the input, where it is not d_model.
    - `clip`: q, k and v are clipped to this magnitude.
    - `d_conv`: taps of a convolution over q, k and v; 0: none.
    - `key_multiplier`, `in_multiplier`, `out_multiplier`: of keys, input and output.
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
    norm_front: bool = True
    norm_behind: bool = False
    width: int | None = None
    clip: float | None = None
    d_conv: int = 0
    key_multiplier: float = 1.0
    in_multiplier: float = 1.0
    out_multiplier: float = 1.0
    beside: bool = False

    kind: ClassVar[str] = "attention"


@dataclass(frozen=True)
class MlpSizes:
    """One MLP with the norm before it; names as for `AttentionSizes`.

    **Arguments:**

    - `gated`: whether a second projection is activated and multiplies the first.
    """

    d_model: int
    d_hidden: int
    activation: str
    gated: bool
    norm_epsilon: float
    norm_centred: bool = False
    norm_front: bool = True
    norm_behind: bool = False
    gate_multiplier: float = 1.0
    down_multiplier: float = 1.0
    out_multiplier: float = 1.0
    beside: bool = False

    kind: ClassVar[str] = "mlp"


@dataclass(frozen=True)
class ExpertsSizes:
    """One mixture of experts with the norm before it.

    **Arguments:**

    - `experts`, `chosen`: how many there are, and how many a token goes through.
    - `scoring`: "softmax" or "sigmoid" of the router's output.
    - `shares`: whether weights are divided by their sum over the chosen experts, and
      `share_floor`: what is added to that sum.
    - `gated`: of each expert, as in `MlpSizes`.
    - `width`: channels that the experts work on; d_model where not given.
    - `shared`: an MLP that every token goes through as well.
    """

    d_model: int
    d_hidden: int
    experts: int
    chosen: int
    scoring: str
    shares: bool
    activation: str
    gated: bool
    norm_epsilon: float
    width: int | None = None
    shared: MlpSizes | None = None
    routed_multiplier: float = 1.0
    out_multiplier: float = 1.0
    share_floor: float = 0.0

    kind: ClassVar[str] = "experts"


@dataclass(frozen=True)
class SharedSizes:
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

    kind: ClassVar[str] = "shared"
    aside: ClassVar[bool] = True
    embedded: ClassVar[bool] = True


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
