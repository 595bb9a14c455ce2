"""What lower precision in a network's blocks does to the network's own output."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class NetworkOutput:
    """Tell what a network gave with its blocks in one execution, the rest as it is."""

    output: str
    """Which output, in the user's words: `logits`, or a function's name."""
    shape: list[int]
    reference_l2: float
    """L2 of what the network gave as it is."""
    measured_rel_l2: float | None
    """L2 of the difference over `reference_l2`; null where that is 0."""
    measured_max: float
    """The largest difference of an element."""
    decision: str | None
    """What is decided by the output: `argmax of the last axis`, or the user's metric;
    null where nothing is."""
    decisions_changed: int | None
    """Decisions that came out otherwise; null for a metric that is a number."""
    decisions_total: int | None
    metric_reference: float | None = None
    """Of a metric that is a number: with the network as it is."""
    metric_value: float | None = None
    """And with its blocks in this execution."""
    sigma_t3: float | None = None
    """Predicted `measured_rel_l2`, 1 sigma, to first order in what the blocks give:
    an estimate."""
    sigma_withheld: str | None = None
    """Why there is none."""
    calibration_z: float | None = None
    """What the run did beyond `shift_rel_l2`, over the rms of what random roundings
    did: about 1 where their model holds."""
    n_probes: int = 0
    """Draws of random roundings behind sigma."""
    nonlinearity: float | None = None
    """L2 of what is even in the roundings' sign, over that of what is odd: what the
    first order leaves out."""
    shift_rel_l2: float | None = None
    """What of sigma is not random: blocks' weights and reads in this precision."""
    by_block: dict[str, float] = field(default_factory=dict)
    """`measured_rel_l2` with this block alone in the execution."""
