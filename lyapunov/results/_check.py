"""What a check returns: the fields of the report, schema version 1.

Nats per token; norms are absolute unless named `rel`. Every class here is data:
computing is done elsewhere, showing too. Rows of sublayers and logits are in `_rows`.
"""

from dataclasses import dataclass, field
from typing import Any

from .._errors import UsageError
from ._network import NetworkOutput as NetworkOutput
from ._quantised import (
    QuantisationFacts as QuantisationFacts,
    StoredMatrix as StoredMatrix,
)
from ._rows import (
    OUTPUT as OUTPUT,
    Decisions as Decisions,
    Exponents as Exponents,
    HeadExponents as HeadExponents,
    KeyExpansion as KeyExpansion,
    LayerDivergence as LayerDivergence,
    LayerExponents as LayerExponents,
    LayerGrowth as LayerGrowth,
    MemoryTokens as MemoryTokens,
    OutputDivergence as OutputDivergence,
    TextDivergence as TextDivergence,
    UpperBound as UpperBound,
    count_bounded,
)
from ._shown import Judged


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FunctionDistance:
    """Measure an execution's own function against the model's, both in fp64."""

    implementation: str
    mode: str
    dt_limit: list[float]
    """Between which the implementation limits dt, after softplus."""
    model_dt_limit: list[float]
    """Between which the checkpoint's config says to."""
    rel_l2: float | None
    """Of the logits, as `measured_rel_l2`; of a model without a head (`argmax_total`
    is null), of the stream behind the last sublayer."""
    kl_mean: float | None
    """KL(model || implementation) in nats a token."""
    argmax_flips: int
    argmax_total: int | None


@dataclass(frozen=True)
class PrecisionReport:
    """Report one execution, measured by one runner."""

    precision: str
    state_precision: str
    execution: str
    mode: str
    measured_by: str
    layers: list[LayerDivergence]
    output: OutputDivergence
    function: FunctionDistance | None = None
    """Where the execution computes another function than the model."""
    state_stored_every: int = 1
    """Tokens from one store of a state below fp32 to the next, the fewest of all
    sublayers."""
    network: NetworkOutput | None = None
    """Of blocks in a network of the user's: what they do to its own output."""

    def count(self, name: str) -> int:
        """Sum a count of elements over sublayers, as `violations`.

        **Raises:** `UsageError` where nothing was bounded, so that nothing is known.
        """
        counts = [getattr(row, name) for row in self.layers]
        if None in counts:
            raise UsageError(
                f"no bounds were looked for, so {name} are not known",
                hint="effort='standard', or bounds=True",
            )
        return sum(counts)


@dataclass(frozen=True)
class LayerChange:
    """Tell what a changed weight set does to one sublayer, in exact arithmetic."""

    layer: int
    kind: str
    weights: dict[str, float]
    """||W' - W|| / ||W|| (Frobenius) of each parameter that changed."""
    local_l2: float
    """Measured effect on the sublayer's output, on the base's own input."""
    local_max: float
    bound_l2: float | None
    """Certified for every weight set within the elementwise distances |W' - W|; null,
    with the counts of elements, where no bounds were looked for."""
    bound_ratio: float | None
    """bound_l2 over local_l2."""
    floor_ratio: float | None
    """Largest effect found among such weight sets, over that of the change itself."""
    violations: int | None
    elements_total: int | None
    accumulated_l2: float
    """Distance of the two networks' outputs, each on its own trajectory."""
    reference_l2: float
    elements_unbounded: int | None = None
    """Of `elements_total`, those whose bound is infinite or NaN."""
    elements_bounded: int | None = field(init=False)

    def __post_init__(self):
        count_bounded(self)


@dataclass(frozen=True)
class AdapterCoverage:
    """Count the sublayers an adapter reaches, and list names that reach nothing.

    A sublayer is touched where some update of its weights is not zero.
    """

    recurrent_touched: int
    recurrent_total: int
    sublayers_touched: int
    sublayers_total: int
    updates: int
    """Weights that the adapter has an update for."""
    zero_updates: int
    """Of those, updates that are zero: a lora_B that was never trained."""
    names_absent: list[str]
    """Of target_modules and modules_to_save: what is no module of the base."""
    names_without_weights: list[str]
    """What is one, and has no weights in the adapter."""
    layers_chosen: bool
    """Whether the settings restrict the layers (layers_to_transform)."""


@dataclass(frozen=True)
class ParameterChangeReport:
    """Report a weight set against the base: exact arithmetic, nothing is rounded."""

    name: str
    """As asked for: a path, or FORMAT:GROUP."""
    kind: str
    """checkpoint, adapter or rounding."""
    layers: list[LayerChange]
    output: OutputDivergence
    """Measured: the changed network's logits against the base's."""
    predicted_rel_l2: float
    """`output.measured_rel_l2` to first order in W' - W: no bound."""
    nonlinearity: float | None
    """L2 of what the first order leaves of the measured effect, over the effect."""
    outside: dict[str, float]
    """As `weights`, for the embedding, the final norm and the head."""
    files: list[dict[str, str]] = field(default_factory=list)
    """`name` and `sha256` of each file of the changed weight set."""
    weight_format: str | None = None
    """Of a rounding: what its format is, in words."""
    rounded: list[str] = field(default_factory=list)
    """Of a rounding: parameters that were rounded, as `kind.parameter`."""
    kept: list[str] = field(default_factory=list)
    """Of a rounding: parameters that it left as they are."""
    coverage: AdapterCoverage | None = None
    """Of an adapter: what it reaches."""


@dataclass(frozen=True)
class ReferenceLoss:
    """Tell how well the fp64 reference predicts the tokens it ran on, in bits."""

    loss_bits_per_token: float
    """Mean of -log2 p over every token but the first of each sequence."""
    stderr: float | None
    stderr_method: str | None
    bits_per_byte: float | None
    """Where a tokenizer or a byte-level model tells how many bytes there were."""
    uniform_bits: float
    """log2 of the vocabulary, without padding."""
    unigram_bits: float | None
    """What the text's own frequencies need, with the Good-Turing share of tokens that
    it does not show; null where every token came once."""
    unigram_stderr: float | None
    """Standard error of the loss less unigram_bits, token by token."""
    predicted: int
    judged: bool
    """Whether the tokens are a text that the loss can be judged on."""
    reason: str | None = None
    """Why not."""
    by_text: list[float] | None = None
    """Loss of each sequence, where there are several."""


@dataclass(frozen=True)
class Finding:
    """Tell something that the user should know, with a stable code."""

    code: str
    severity: str
    layer: int | None
    message: str
    value: float | None = None
    limit: float | None = None
    precision: str | None = None
    known: bool = field(default=False, compare=False)
    """Whether the baseline has it as well; then it counts against nothing."""
    hint: bool = False
    """Whether it is no sign of damage by itself, and doubts nothing."""


@dataclass(frozen=True)
class Served:
    """Say what a serving stack does with a checkpoint unless a flag says otherwise."""

    stack: str
    version: str
    """The one that was read."""
    precision: str
    """Of weights and activations: as advised, else as stored."""
    state: str | None
    """The format of the cached state; null where the configuration names none."""
    window: str
    """That of the convolution's window."""
    why: str
    """What decides the state's format."""
    kl_mean: float | None = None
    """Measured by steps in these formats, in nats a token; null where it was not."""
    argmax_flips: int | None = None
    argmax_total: int | None = None
    ask: str | None = None
    """Options that measure it, where it was not."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """Sum up a check: the verdict and what it rests on."""

    verdict: str
    """held, findings, incomplete, unbounded (few elements have a finite bound), or
    measured: no bounds were looked for."""
    recommendation: str
    checked: int
    skipped: int
    """Sublayers that could not be checked: in no run and no changed weight set has an
    element of their output a finite bound."""
    seconds: float
    exit_code: int
    flags: list[dict[str, str]] = field(default_factory=list)
    """What to give a serving stack: `stack`, `flag` and `why` each."""
    served: list[Served] = field(default_factory=list)
    """What serving stacks do with the checkpoint by default."""
    benchmark_note: str | None = None
    """What a benchmark of so many questions could not have seen."""
    left_out: int = 0
    """Sublayers that were not to be checked (`layers`); no failure."""
    baseline: str | None = None
    """What the comparison with a baseline gave, where there is one."""
    bounded_share: float | None = None
    """Of all elements, or of the sublayers' outputs alone where that is less: the share
    with a finite bound, which is all that a verdict of `held` speaks of. Null where
    nothing was bounded."""


UNDECIDED = Summary("", "", checked=0, skipped=0, seconds=0.0, exit_code=0)
"""Of a report that is not finished."""


@dataclass(frozen=True)
class CheckpointFacts:
    """Say which checkpoint was checked."""

    source: str
    architecture: str
    n_layers: int
    n_params: int
    dtype: str
    files: list[dict[str, str]]
    """`name` and `sha256` each."""
    n_blocks: int | None = None
    """Layers as the checkpoint counts them; `n_layers` counts their sublayers."""
    quantisation: QuantisationFacts | None = None
    """Of a quantised checkpoint how its matrices are stored."""


@dataclass(frozen=True)
class TokensFacts:
    """Say which tokens it was checked on."""

    source: str
    batch: int
    length: int
    sha256: str


@dataclass(frozen=True, repr=False)
class Report(Judged):
    """Hold everything that one check found; `to_dict` gives the JSON document."""

    tool: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, Any]
    assumptions: list[str]
    checkpoint: CheckpointFacts
    tokens: TokensFacts
    exponents: Exponents
    precisions: list[PrecisionReport]
    findings: list[Finding]
    summary: Summary
    schema_version: int = SCHEMA_VERSION
    parameter_changes: list[ParameterChangeReport] = field(default_factory=list)
    reference: ReferenceLoss | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    """Figures that are null everywhere because nobody looked for them, each with the
    reason: how much effort the check was to take, or no logits."""
