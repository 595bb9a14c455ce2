"""How a quantised checkpoint stores its weights: rows of the report."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StoredMatrix:
    """Say how the matrices of one name are stored, of all sublayers of a kind."""

    kind: str
    """Of the sublayers; `outside` for embedding, head and what stands around them."""
    matrix: str
    """The parameter; several joined by + where they are stored as one; `vectors` for
    norms, biases and whatever else has one axis."""
    format: str
    """Of the codes, as `int4`, or of the numbers, as `bf16`."""
    scales: str | None
    """Which weights share a scale; null where each number stands by itself."""
    sublayers: int
    """That have it stored so."""
    parameters: int
    share: float
    """Of all parameters of the network."""


@dataclass(frozen=True)
class QuantisationFacts:
    """Say what was quantised, and what was kept."""

    method: str
    """Whose layout it is, as `gptq`."""
    quantised_share: float
    """Of all parameters."""
    activations: str | None
    """How the configuration has them quantised in front of products; null where it has
    not."""
    cache: bool
    """Whether it has the key-value cache quantised; nobody does so here."""
    kept: list[str]
    """What the quantiser was told to leave alone, as its configuration lists it."""
    matrices: list[StoredMatrix] = field(default_factory=list)
    followed: str | None = None
    """What the executions of this report quantise activations to: as configured, wholly
    or in part, or a format that was asked for; null where they multiply them as they
    are."""
