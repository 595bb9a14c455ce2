"""What a check finds of each sublayer and of the logits: rows of the report.

Nats per token; norms are absolute unless named `rel`. `_check` has what these are rows
of.
"""

from dataclasses import dataclass, field
from typing import Any


OUTPUT = "sublayer output"
"""What a sublayer's output is called where its stored tensors go by their sites."""


def count_bounded(row: Any) -> None:
    """Fill in a row's elements with a finite bound; None where none was looked for."""
    bounded, total = None, row.elements_total
    if total is not None:
        unbounded = row.elements_unbounded or 0
        object.__setattr__(row, "elements_unbounded", unbounded)
        bounded = total - unbounded
    object.__setattr__(row, "elements_bounded", bounded)


@dataclass(frozen=True)
class UpperBound:
    """Hold a certified bound: no execution of the declared kind exceeds it."""

    value: float
    tier: str
    holds_for: str

    def __str__(self) -> str:
        return f"at most {self.value:.3g} ({self.tier})"


@dataclass(frozen=True)
class MemoryTokens:
    """Measure effective memory, -1 / exponent over channels and states, in tokens."""

    p50: float | None
    p90: float | None
    max: float | None
    exceeds_sample: bool = False


@dataclass(frozen=True)
class LayerGrowth:
    """Tell how relative perturbations of the stream grow through one sublayer."""

    gain: float
    """Root mean square over random perturbations of all tokens; 1 keeps their size."""
    token: int
    """The one whose perturbation `response` follows."""
    distances: list[int]
    """In tokens."""
    response: list[float]
    """What the sublayer adds at these distances, relative to the stream there."""


@dataclass(frozen=True)
class HeadExponents:
    """Hold exponents of delta-rule heads, whose steps do not commute; a list an item.

    Each exponent of a head is that of as many coordinates as a value has.
    """

    key_dim: int
    """Exponents of a head."""
    max: list[float]
    """The largest: what the direction that grows most over the text grows by."""
    lower: list[float]
    """Below it for certain: the mean log determinant over `key_dim`."""
    upper: list[float]
    """Above it for certain: the mean log of the largest decay, and of what a write
    beyond a reflection adds."""
    sum: list[float]
    """Of all exponents, by determinants."""
    memory_tokens: list[float]
    """-1 / max."""
    unresolved: list[int]
    """Exponents that fp64 does not tell apart: their sum is known, and each of them is
    given as their mean, which the smallest does not exceed."""
    unwritten: list[int]
    """Exponents at `upper`: where a head has one decay, directions that no key has
    reached (or every write has reflected), which fade by the gate alone."""
    rate_max: float
    """The largest rate of any write, beta: at most 1 of a sigmoid, 2 of twice one."""
    least_left: float
    """The least share |1 - beta |k|^2| of what a key reads that a write leaves. The
    smallest exponent measures it: the epsilon of the keys' norm where beta is near 1,
    and 0 where the format of beta rounds it to 1."""


@dataclass(frozen=True)
class LayerExponents:
    """Hold exponents of one sublayer; null with a `reason` where nothing recurs."""

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
    finite_time: dict[str, list[int] | list[float]] | None = None
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
    heads: HeadExponents | None = None
    """Of a delta rule, whose exponents are no means of decays; decays are its gates."""


@dataclass(frozen=True)
class Exponents:
    """Hold the Lyapunov exponents of the checkpoint on these tokens."""

    max: float | None
    min: float | None
    n_minus_inf: int
    max_layer: int | None
    stderr: float | None
    stderr_method: str | None
    n_tokens: int
    layers: list[LayerExponents]


@dataclass(frozen=True)
class KeyExpansion:
    """Tell where the keys that an execution stores let a delta rule's state grow."""

    steps: int
    """Of a head at a token, whose norm exceeds 1 with the keys as stored."""
    steps_total: int
    largest: float
    """Log of the largest norm of a step."""
    growth: float
    """Log of what nothing in the state outgrows, over the stretch of tokens over which
    norms multiply to most."""
    batch: int
    head: int
    start: int
    """Its first token."""
    stop: int
    """The token behind its last."""
    tokens: list[int]
    """The first 64 at which a step expands, in any sequence and head."""


@dataclass(frozen=True)
class LayerDivergence:
    """Hold one sublayer under one execution: what was measured beside its bounds."""

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
    violations: int | None = None
    """Elements above their bounds; null, as all counts of elements, without bounds."""
    elements_total: int | None = None
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
    elements_unbounded: int | None = None
    """Of `elements_total`; those whose bound is infinite or NaN neither hold it nor
    exceed it."""
    elements_bounded: int | None = field(init=False)
    """The others, `violations` among them."""
    unbounded: dict[str, float] | None = None
    """Share of elements without a finite bound, of stored tensors and of the output
    (`sublayer output`) that have some."""
    expansion: KeyExpansion | None = None
    """Of a delta rule, where a step with the keys as stored expands."""
    clipped: dict[str, float] | None = None
    """Share of what products read that stands at the end of a fixed scale, by site."""

    def __post_init__(self):
        count_bounded(self)


@dataclass(frozen=True)
class Decisions:
    """Count greedy tokens: what was promised of them, and what they did."""

    total: int
    certified_stable: int | None
    """The margin to every other token exceeds a certified bound on the difference; null
    where none was looked for."""
    certified_flipped: int | None
    """Of those, changed in the run: more than 0 is a bug."""
    predicted_stable: int
    """The margin to every other token exceeds 4 sigma of the difference."""
    predicted_flipped: int
    ties: int
    """Changed between equal leaders of the reference, which tells none of them."""


@dataclass(frozen=True)
class TextDivergence:
    """Compare the logits of one sequence of the batch."""

    measured_rel_l2: float
    kl_mean: float
    kl_max: float
    argmax_flips: int
    argmax_ties: int


@dataclass(frozen=True)
class OutputDivergence:
    """Compare the logits under one execution with the fp64 reference."""

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
    state_share: float | None = None
    """Share of T3's variance that rounding the state makes; null where it is not
    stored below fp32, or where sigma_t3 is withheld."""
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

    @property
    def compared(self) -> bool:
        """Tell whether there were logits to compare: not in a model without a head,
        whose figures here are all null and whose tokens are 0."""
        return self.argmax_total > 0 or self.measured_rel_l2 is not None
