"""What quantising each matrix does at the logits: results of `rank_weights`."""

from dataclasses import dataclass, field
from typing import Any

from ._check import SCHEMA_VERSION, CheckpointFacts, TokensFacts
from ._shown import Shown


@dataclass(frozen=True)
class MovedLogits:
    """Hold what a run with some weights quantised did at the logits, all else exact."""

    kl_mean: float
    """KL(reference || run) a token, nats."""
    kl_max: float
    rel_l2: float
    """Of the logits, each token's mean removed."""
    flips: int
    """Tokens whose choice is another."""
    ties: int
    total: int
    """Tokens."""


@dataclass(frozen=True)
class RankedMatrix:
    """Hold a stored matrix, or a layer's experts, and what quantising it alone does."""

    rank: int
    """From 1, by the divergence: measured where it was, else predicted."""
    module: str
    modules: list[str]
    """Every module that is in it, as an `ignore` list names them."""
    layers: list[int]
    """Sublayers that use it; none of the embedding and the head."""
    kind: str
    """Of those sublayers; `outside` of all."""
    parameters: list[str]
    size: int
    """Numbers that it holds."""
    share: float
    """Of the numbers of all that is quantised; of what is not by itself as well."""
    saved_bytes: int
    """Of the checkpoint, by quantising it."""
    relative_change: float
    """||W' - W|| / ||W||."""
    predicted_kl: float
    """Mean over tokens, to first order in W' - W and to second in the logits."""
    predicted_stderr: float
    """Of the prediction, from its probes."""
    quantised: bool
    """Whether quantisers round it where nobody says otherwise."""
    kept: bool
    """Whether it is among those to keep in 16 bits."""
    measured: MovedLogits | None = None

    @property
    def kl(self) -> float:
        """Give what was measured, else what is predicted."""
        return self.predicted_kl if self.measured is None else self.measured.kl_mean


@dataclass(frozen=True)
class RankedSublayer:
    """Hold a sublayer, and what quantising all that quantisers round in it does."""

    rank: int
    layer: int
    kind: str
    module: str
    size: int
    share: float
    predicted_kl: float
    predicted_stderr: float
    measured: MovedLogits | None = None

    @property
    def kl(self) -> float:
        """Give what was measured, else what is predicted."""
        return self.predicted_kl if self.measured is None else self.measured.kl_mean


@dataclass(frozen=True)
class KeptWeights:
    """Hold what keeping the first matrices in 16 bits gives back."""

    limit: float
    """Share of the quantised numbers that may be kept."""
    modules: list[str]
    share: float
    """That is kept; more than the limit where the first matrix alone is larger."""
    bytes: int
    """More of the checkpoint than with everything quantised."""
    predicted_kl_all: float
    predicted_kl: float
    """With these kept."""
    measured_all: MovedLogits | None = None
    measured: MovedLogits | None = None
    ignore: dict[str, list[str]] = field(default_factory=dict)
    """The lists that quantisers and servers read, by the key that they read."""

    @property
    def given_back(self) -> float | None:
        """Give the share of the measured divergence that keeping them takes away."""
        if self.measured is None or self.measured_all is None:
            return None
        whole = self.measured_all.kl_mean
        return 1.0 - self.measured.kl_mean / whole if whole > 0 else None


@dataclass(frozen=True, repr=False)
class WeightRanking(Shown):
    """Hold which matrices quantising moves the logits most by; estimates beside what
    was measured, and no bound."""

    tool: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, Any]
    assumptions: list[str]
    checkpoint: CheckpointFacts
    tokens: TokensFacts
    format: str
    meaning: str
    """The format in words."""
    matrices: list[RankedMatrix]
    """In order of rank."""
    sublayers: list[RankedSublayer]
    """Likewise."""
    kept: KeptWeights
    unmoved: int
    """Matrices that the format holds as they are."""
    seconds: float
    kind: str = "ranking"
    schema_version: int = SCHEMA_VERSION
