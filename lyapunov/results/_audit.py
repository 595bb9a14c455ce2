"""What an audit returns: one entry for each way that a text was run, and a verdict.

Layers and tokens count from 0. `ratio` is measured over bound: above 1 is a violation.
"""

from dataclasses import dataclass, field
from typing import Any

from ._check import SCHEMA_VERSION, CheckpointFacts, Finding, TokensFacts
from ._shown import Judged


BUG = "bug"
SUSPICIOUS = "suspicious"
CONSISTENT = "consistent with rounding"
UNBOUNDED = "unbounded"
"""Nothing exceeds a bound, and few elements have a finite one."""
NOT_RUN = "not run"
IN_RANGE = "logits in range"
"""The logits alone were seen, and are as far off as random roundings put them: an
estimate, and no bound of anything."""

REFERENCE = "fp64 reference"
"""As what logits are held against."""


@dataclass(frozen=True)
class FirstViolation:
    """Tell where a run first did what rounding cannot do."""

    layer: int
    tensor: str
    """A stored tensor by site; `embedding` or `sublayer output`."""
    batch: int
    token: int
    channel: int
    measured: float
    bound: float


@dataclass(frozen=True)
class KnownDefect:
    """Tell what is known of a defect that a run met."""

    implementation: str
    since: str
    """The first version in which it was seen."""
    until: str
    """The last one; whether a later version has it, nobody has looked."""
    what: str
    source: str

    def __str__(self) -> str:
        seen = (
            self.since if self.since == self.until else f"{self.since} to {self.until}"
        )
        return (
            f"a known defect of {self.implementation} (seen in {seen}): {self.what} "
            f"({self.source})"
        )


@dataclass(frozen=True)
class LayerAudit:
    """Hold one sublayer of one run."""

    layer: int
    kind: str
    violations: int
    ratio_t0: float | None
    """Largest measured over bound among the stored tensors that were seen."""
    ratio_t1: float
    """The same of the sublayer's output, on the run's own input."""
    z: float
    """Largest over all tokens: the output's error in sigmas of random roundings."""
    z_token: int
    first_violation: FirstViolation | None = None
    elements: int = 0
    """Compared: of the stored tensors that were seen, and of the output."""
    unbounded: int = 0
    """Of these, without a finite bound: they neither hold it nor violate it."""
    output_bounded: float = 1.0
    """Share of the output's elements with a finite bound."""


@dataclass(frozen=True)
class LogitsAudit:
    """Compare a run's logits with another's: information, not part of the verdict."""

    against: str
    rel_l2: float | None
    max: float | None
    kl_max: float | None
    flips: int
    ties: int
    """Choices that differ between equal leaders of `against`."""
    # further fields, of logits that are held to what random roundings do (T3)
    kl_mean: float | None = None
    """Nats a token, as `kl_max`; of few tokens' log-probabilities, that of these and
    of all others as one, which is at most the whole."""
    sigma: float | None = None
    """Predicted `rel_l2`: what random roundings of the declared stores do."""
    z: float | None = None
    """Largest over the tokens: the distance beyond that of rounded weights, in sigmas
    of the token, or of all tokens where that is more."""
    z_token: int | None = None
    z_rms: float | None = None
    """Root mean square of z over the tokens; about 1 for a right run."""
    beyond: int = 0
    """Tokens whose z is above the limit."""
    first_beyond: int | None = None
    tokens: int | None = None
    """Of which there are logits."""
    looks_like: str | None = None
    """What the difference looks like, in words, where it is beyond the limit."""


@dataclass(frozen=True)
class HandOverAudit:
    """Hold one place where a call of a dumped run goes on from what another left."""

    call: int
    """The number of the call that goes on, from 1."""
    source: int | None
    """Of the call that left what is needed; None: not seen."""
    how: str
    """What kind it is, such as `prefill to decode`."""
    token: int
    """How many of the text's tokens stand in front of it."""
    layers: int
    elements: int
    """Compared, of states and windows."""
    differing: int
    """Of these, other than they were left, or than the convolution's inputs were."""
    unseen: int
    """States and windows that one side alone was seen of."""
    held: bool
    first_layer: int | None = None
    first_tensor: str | None = None
    looks_like: str | None = None
    note: str | None = None
    """What the dump itself says besides."""

    def __str__(self) -> str:
        began = f"the {self.first_tensor or 'state'} that call {self.call} began with"
        if self.differing and self.first_tensor not in ("state", "window"):
            what = f"the window that call {self.call} began with is not what the "
            what += "convolution read before"
        elif self.differing:
            left = "an empty one" if self.token == 0 else "what was left there"
            if self.source is not None:
                left = f"what call {self.source} left"
            elif self.how.startswith("prefix hit"):
                left = "what the request with that prefix left"
            what = f"{began} is not {left}"
        else:
            what = f"{began} is another request's as well"
        return f"{what} ({self.how} at token {self.token})"


@dataclass(frozen=True)
class VariantAudit:
    """Hold one way of running the text, under one precision."""

    variant: str
    precision: str
    verdict: str
    """bug, suspicious, unbounded, consistent with rounding, logits in range (of a run
    without any sublayer), or not run."""
    executions: list[str] = field(default_factory=list)
    """What was declared of its calls, in order, each once."""
    reason: str | None = None
    """Why it was not run."""
    tokens: int = 0
    """Tokens that count: the text's own, without padding and company."""
    violations: int = 0
    ratio: float | None = None
    """k: the largest of `ratio_t1`."""
    z: float | None = None
    first_violation: FirstViolation | None = None
    layers: list[LayerAudit] = field(default_factory=list)
    logits: list[LogitsAudit] = field(default_factory=list)
    elements: int = 0
    unbounded: int = 0
    """Of `elements`, without a finite bound."""
    bounded_share: float | None = None
    """Of all elements or of the outputs alone, whichever is less; null if not run."""
    hand_overs: list[HandOverAudit] = field(default_factory=list)
    """Of a dump, where calls go on from one another."""
    hand_overs_alike: int = 0
    """Further ones, which agreed bit for bit where they were written down."""
    known: KnownDefect | None = None
    """What is known of the bug; None where nothing is."""


@dataclass(frozen=True)
class AuditSummary:
    """Sum up all runs in a verdict."""

    verdict: str
    recommendation: str
    checked: int
    """Ways that the text was run in."""
    skipped: int
    seconds: float
    exit_code: int


@dataclass(frozen=True, repr=False)
class AuditReport(Judged):
    """Hold everything that one audit found; `to_dict` gives the JSON document."""

    tool: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, Any]
    assumptions: list[str]
    checkpoint: CheckpointFacts
    tokens: TokensFacts
    source: str
    variants: list[VariantAudit]
    findings: list[Finding]
    summary: AuditSummary
    kind: str = "audit"
    schema_version: int = SCHEMA_VERSION
