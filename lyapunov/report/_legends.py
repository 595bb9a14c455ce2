"""How tables are to be read: sentences, each with the figure that it goes with."""

from collections.abc import Container, Sequence


LEGEND = (
    (
        "",
        "Exponents in nats per token; memory: 90th percentile, in tokens (* some "
        "exceed the sample).",
    ),
    ("", "rel L2: measured local divergence over the reference."),
    ("bound_t1_ratio", "T1: certified bound over measured."),
    (
        "violations",
        "viol: elements above the bound (* some elements have no finite one, a dash: "
        "none has).",
    ),
)
PAGE_LEGEND = (
    ("bound_t1_ratio", "T0 and T1 are certified bounds."),
    (
        "floor_t1_ratio",
        "Free roundings: the largest error that a search for their signs found, over "
        "measured. No bound that lets every rounding choose its sign is smaller; T1 "
        "may be, since it knows which way stored tensors were rounded.",
    ),
    (
        "violations",
        "Above bound: * some elements have no finite one, a dash: none has.",
    ),
    ("", "Local: the reference re-run on the execution's own input of the layer."),
    ("", "Accumulated: against the reference trajectory."),
)
LOGITS_LEGEND = (
    ("sigma_t3", "Predicted (tier T3) is an estimate."),
    ("estimate_t2", "Worst case to first order (T2) is an estimate."),
    (
        "certified_until_layer",
        "Certified (T4) holds for every execution of the declared kind: the sublayers "
        "end to end, and the top tokens that no rounding can change.",
    ),
)
CHANGES_LEGEND = (
    (
        "",
        "Exact arithmetic with two weight sets, each sublayer on the base's own input.",
    ),
    (
        "bound_l2",
        "The bound holds for every weight set within the elementwise distances.",
    ),
)
EXPONENTS_LEGEND = (
    "Exponents in nats per token, largest and smallest over channels and states, exact "
    "for these tokens; stderr is that of the largest as an estimate for similar text. "
    "Memory in tokens (* some exceed the sample)."
)
HEADS_LEGEND = (
    " Of a delta rule: of the head whose largest exponent is the largest, with the "
    "bracket that it is certainly in; least left: of what a key reads, by any write."
)
GROWTH_LEGEND = (
    "gain: relative change of the stream behind a sublayer for one in front of it. +k: "
    "what one perturbed token adds to the stream k tokens later, relative to it. "
    "Medians over the sublayers of a kind."
)


def legend(sentences: Sequence[tuple[str, str]], left_out: Container[str] = ()) -> str:
    """A legend without what is of figures that nobody looked for."""
    return " ".join(text for figure, text in sentences if figure not in left_out)
