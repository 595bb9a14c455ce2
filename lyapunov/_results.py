"""What a check returns: the fields of the report, schema version 1.

Nats per token; norms are absolute unless named `rel`. Every class here is data:
computing is done elsewhere, showing too. `UpperBound`, `Estimate` and `Measured`
are different types, so that an estimate is never printed as a bound.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


SCHEMA_VERSION = 1

OUTPUT = "sublayer output"
"""What a sublayer's output is called where its stored tensors go by their sites."""


@dataclass(frozen=True)
class UpperBound:
    """A certified bound: no execution of the declared kind exceeds it."""

    value: float
    tier: str
    holds_for: str

    def __str__(self) -> str:
        return f"at most {self.value:.3g} ({self.tier})"


@dataclass(frozen=True)
class Estimate:
    """An estimate with its standard error; never a bound."""

    value: float
    stderr: float | None
    method: str

    def __str__(self) -> str:
        if self.stderr is None:
            return f"about {self.value:.3g} ({self.method})"
        return f"about {self.value:.3g} ± {self.stderr:.1g} ({self.method})"


@dataclass(frozen=True)
class Measured:
    """A measurement on one run of one execution."""

    value: float
    execution: str

    def __str__(self) -> str:
        return f"measured {self.value:.3g} ({self.execution})"


@dataclass(frozen=True)
class MemoryTokens:
    """Effective memory, -1 / exponent over channels and states, in tokens."""

    p50: float | None
    p90: float | None
    max: float | None
    exceeds_sample: bool = False


@dataclass(frozen=True)
class LayerGrowth:
    """How relative perturbations of the stream grow through one sublayer."""

    gain: float
    """Root mean square over random perturbations of all tokens; 1 keeps their size."""
    token: int
    """The one whose perturbation `response` follows."""
    distances: list[int]
    """In tokens."""
    response: list[float]
    """What the sublayer adds at these distances, relative to the stream there."""


@dataclass(frozen=True)
class LayerExponents:
    """Exponents of one sublayer; null with a `reason` where nothing recurs."""

    layer: int
    kind: str
    max: float | None = None
    min: float | None = None
    stderr: float | None = None
    stderr_method: str | None = None
    memory_tokens: MemoryTokens | None = None
    decay_min: float | None = None
    decay_max: float | None = None
    max_abs_state: float | None = None
    max_abs_output: float | None = None
    reason: str | None = None
    n_minus_inf: int = 0
    # further fields, for the figures and the findings
    quantiles: list[float] | None = None
    """Exponents at quantiles 0, .05, ..., 1 over channels and states."""
    decay_histogram: dict[str, list[float]] | None = None
    """`edges` (of the decay) and `share` (of channel, state and token)."""
    decay_is_one: dict[str, float] | None = None
    """Share of decays that round to 1, by format."""
    decay_is_zero: dict[str, float] | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    dt_mean: float | None = None
    finite_time: dict[str, list[float]] | None = None
    """`token` (ends of windows) and `max` (largest exponent of the window)."""
    suspicions: list[str] = field(default_factory=list)
    """Why the sublayer looks lost, in words; empty for a model that merely works. One
    that starts with `hint:` is no sign of damage by itself."""
    suspects: list[str] = field(default_factory=list)
    """Parameters that the suspicions are about."""
    at_initialisation: bool | None = None
    """Whether norms, D and matrices are all as before training; null where nothing
    tells."""
    growth: LayerGrowth | None = None
    """Of perturbations; found where a network has sublayers without exponents."""
    multiplicity: int = 1
    """Coordinates of the state that share each exponent: those of a head, if one decay
    serves it all."""
    module: str | None = None
    """The sublayer's module in the checkpoint, as `model.layers.1.mamba`."""


@dataclass(frozen=True)
class Exponents:
    """Lyapunov exponents of the checkpoint on these tokens."""

    max: float | None
    min: float | None
    n_minus_inf: int
    max_layer: int | None
    stderr: float | None
    stderr_method: str | None
    n_tokens: int
    layers: list[LayerExponents]


@dataclass(frozen=True)
class LayerDivergence:
    """One sublayer under one execution: measured divergence beside its bounds."""

    layer: int
    kind: str
    local_l2: float | None = None
    local_max: float | None = None
    accumulated_l2: float | None = None
    accumulated_max: float | None = None
    bound_t0_ratio: float | None = None
    bound_t1_l2: float | None = None
    bound_t1_ratio: float | None = None
    floor_t1_ratio: float | None = None
    violations: int = 0
    elements_total: int = 0
    first_violation: dict[str, Any] | None = None
    """`tensor`, `batch`, `token`, `channel`, `measured`, `bound`."""
    # further fields
    reference_l2: float | None = None
    """L2 of the reference output, so that a reader can form relative figures."""
    weights_l2: float | None = None
    """Effect of rounding the weights alone, on the execution's own input."""
    bound_t0: dict[str, float] | None = None
    """Bound over measured, per stored tensor (L2)."""
    local_by_position: list[float] | None = None
    """L2 over batch and d_model, in at most 64 blocks of tokens."""
    bound_by_position: list[float] | None = None
    accumulated_by_position: list[float] | None = None
    max_abs_stored: dict[str, float] | None = None
    """Largest magnitude of each stored tensor of the execution."""
    stagnation: float | None = None
    """Share of state updates below half an ulp of the state in the state's format."""
    radius_l2: float | None = None
    """The part of bound_t1_l2 that is not computed: what the execution leaves open."""
    non_finite: int = 0
    binding_site: str | None = None
    """Stored tensor before which T1 moves away most from what roundings do."""
    binding_share: float | None = None
    """Its part of all growth inside the sublayer, in logarithms."""
    sigma_share: float | None = None
    """Share of T3's variance at the logits that comes from this sublayer."""
    certified_l2: float | None = None
    """T4: radius of the residual stream behind this sublayer, L2 over all tokens."""
    module: str | None = None
    """As `LayerExponents.module`."""
    elements_unbounded: int = 0
    """Of `elements_total`; those whose bound is infinite or NaN neither hold it nor
    exceed it."""
    elements_bounded: int = field(init=False)
    """The others, `violations` among them."""
    unbounded: dict[str, float] | None = None
    """Share of elements without a finite bound, of stored tensors and of the output
    (`sublayer output`) that have some."""

    def __post_init__(self):
        bounded = self.elements_total - self.elements_unbounded
        object.__setattr__(self, "elements_bounded", bounded)


@dataclass(frozen=True)
class Decisions:
    """Greedy tokens: what was promised of them, and what they did."""

    total: int
    certified_stable: int
    """The margin to every other token exceeds a certified bound on the difference."""
    certified_flipped: int
    """Of those, changed in the run: more than 0 is a bug."""
    predicted_stable: int
    """The margin to every other token exceeds 4 sigma of the difference."""
    predicted_flipped: int
    ties: int
    """Changed between equal leaders of the reference, which tells none of them."""


@dataclass(frozen=True)
class TextDivergence:
    """The logits of one sequence of the batch."""

    measured_rel_l2: float
    kl_mean: float
    kl_max: float
    argmax_flips: int
    argmax_ties: int


@dataclass(frozen=True)
class OutputDivergence:
    """The logits under one execution against the fp64 reference."""

    measured_rel_l2: float | None = None
    measured_max: float | None = None
    estimate_t2: float | None = None
    sigma_t3: float | None = None
    calibration_z: float | None = None
    n_readouts: int | None = None
    certified_until_layer: int | None = None
    stopped_by: str | None = None
    argmax_flips: int = 0
    argmax_ties: int = 0
    argmax_total: int = 0
    kl_mean: float | None = None
    kl_max: float | None = None
    kl_by_position: list[float] | None = None
    margin_quantiles: dict[str, float] | None = None
    """Reference top1 - top2 at quantiles 0, .01, .05, .25, .5 (keys as text)."""
    # further fields
    weights_rel_l2: float | None = None
    """Effect of rounding the weights alone: computed, not estimated."""
    estimate_t2_stderr: float | None = None
    sigma_t3_stderr: float | None = None
    n_probes: int | None = None
    sigma_withheld: str | None = None
    """Why sigma_t3 is null although it was asked for."""
    sigma_by_site: dict[str, float] | None = None
    """Share of T3's variance at the logits by stored tensor, over all sublayers."""
    nonlinearity: float | None = None
    """L2 of what probes leave beyond first order, over that of the probes."""
    decisions: Decisions | None = None
    texts: list[TextDivergence] | None = None
    """One entry a sequence, where there are several."""
    cause: str | None = None
    """What binds the state's format: range, mantissa, stagnation, or the model."""
    reference_ties: int = 0
    """Tokens of which the reference has several equal leaders. Choices that differ
    between these are `argmax_ties`; every other one that differs is a flip."""
    constant_tokens: int = 0
    """Tokens of which the execution's logits are one value and the reference's not."""
    non_finite: int = 0
    """The execution's logits that are infinite or NaN."""
    reference_non_finite: int = 0


@dataclass(frozen=True)
class FunctionDistance:
    """An execution's own function against the model's, both in fp64."""

    implementation: str
    mode: str
    dt_limit: list[float]
    """Between which the implementation limits dt, after softplus."""
    model_dt_limit: list[float]
    """Between which the checkpoint's config says to."""
    rel_l2: float | None
    """Of the logits, as `measured_rel_l2`."""
    kl_mean: float | None
    """KL(model || implementation) in nats a token."""
    argmax_flips: int
    argmax_total: int | None


@dataclass(frozen=True)
class PrecisionReport:
    """One execution, measured by one runner."""

    precision: str
    state_precision: str
    execution: str
    mode: str
    measured_by: str
    layers: list[LayerDivergence]
    output: OutputDivergence
    function: FunctionDistance | None = None
    """Where the execution computes another function than the model."""


@dataclass(frozen=True)
class LayerChange:
    """What a changed weight set does to one sublayer, in exact arithmetic."""

    layer: int
    kind: str
    weights: dict[str, float]
    """||W' - W|| / ||W|| (Frobenius) of each parameter that changed."""
    local_l2: float
    """Measured effect on the sublayer's output, on the base's own input."""
    local_max: float
    bound_l2: float
    """Certified for every weight set within the elementwise distances |W' - W|."""
    bound_ratio: float | None
    """bound_l2 over local_l2."""
    floor_ratio: float | None
    """Largest effect found among such weight sets, over that of the change itself."""
    violations: int
    elements_total: int
    accumulated_l2: float
    """Distance of the two networks' outputs, each on its own trajectory."""
    reference_l2: float
    elements_unbounded: int = 0
    """Of `elements_total`, those whose bound is infinite or NaN."""
    elements_bounded: int = field(init=False)

    def __post_init__(self):
        bounded = self.elements_total - self.elements_unbounded
        object.__setattr__(self, "elements_bounded", bounded)


@dataclass(frozen=True)
class AdapterCoverage:
    """Which sublayers an adapter reaches, and which of its names reach nothing.

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
    """A weight set against the base: exact arithmetic, nothing else is rounded."""

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
    """How well the fp64 reference predicts the tokens it was run on, in bits."""

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
    """Something that the user should know, with a stable code."""

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
class Summary:
    """The verdict and what it rests on."""

    verdict: str
    """held, findings, incomplete, or unbounded: few elements have a finite bound."""
    recommendation: str
    checked: int
    skipped: int
    seconds: float
    exit_code: int
    flags: list[dict[str, str]] = field(default_factory=list)
    """What to give a serving stack: `stack`, `flag` and `why` each."""
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


@dataclass(frozen=True)
class CheckpointFacts:
    """Which checkpoint was checked."""

    source: str
    architecture: str
    n_layers: int
    n_params: int
    dtype: str
    files: list[dict[str, str]]
    """`name` and `sha256` each."""
    n_blocks: int | None = None
    """Layers as the checkpoint counts them; `n_layers` counts their sublayers."""


@dataclass(frozen=True)
class TokensFacts:
    """Which tokens it was checked on."""

    source: str
    batch: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Report:
    """Everything that one check found; `to_dict` gives the JSON document."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; inf and NaN become null beside a `NAME_flag`."""
        document = {"schema_version": self.schema_version}
        document.update(
            (f.name, _plain(getattr(self, f.name)))
            for f in dataclasses.fields(self)
            if f.name != "schema_version"
        )
        return document


def _flag(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def _plain(value: Any) -> Any:
    """Reduce to JSON types. Non-finite numbers become null; a sibling key
    `NAME_flag` says which of nan, inf and -inf it was."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        plain: dict[str, Any] = {}
        for key, item in value.items():
            item = item.item() if hasattr(item, "item") else item
            if isinstance(item, float) and not math.isfinite(item):
                plain[key] = None
                plain[f"{key}_flag"] = _flag(item)
            elif isinstance(item, list | tuple) and any(
                isinstance(x, float) and not math.isfinite(x) for x in item
            ):
                plain[key] = [_plain(x) for x in item]
                plain[f"{key}_flag"] = [
                    _flag(x) if isinstance(x, float) and not math.isfinite(x) else None
                    for x in item
                ]
            else:
                plain[key] = _plain(item)
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    item = getattr(value, "item", None)
    if callable(item):
        value = item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
