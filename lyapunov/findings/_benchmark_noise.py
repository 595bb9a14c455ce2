"""What a benchmark of n questions can see of a change in precision.

A benchmark's accuracy is a share of n questions, X / n with X binomial (n, p): it
tells models apart no better than its own sampling noise. Rounding changes a share of
the answers, usually far below that noise, so that equal scores prove little.

Derivation. For a question answered by one token, a share f of changed top tokens
changes the accuracy by at most f, since an answer that changes turns at most one
right answer wrong, or one wrong answer right. The 95 % interval of an accuracy p is
the smallest k / n with P(|X - n p| <= k) >= 0.95; it is widest at p = 1/2. Where no
token of N changed, f is unknown below the rate that N trials would have shown:
(1 - f)^N = 0.05 gives f = 1 - 0.05^(1/N), about 3 / N (the rule of three; Clopper and
Pearson 1934 for no success).
"""

import math
from collections.abc import Sequence

from lyapunov.results._check import PrecisionReport


QUESTIONS = 200
"""As many as quick comparisons of precisions are made with."""

CONFIDENCE = 0.95


def accuracy_half_width(
    questions: int, accuracy: float = 0.5, confidence: float = CONFIDENCE
) -> float:
    """Find half the interval that holds a benchmark's accuracy, as a share.

    **Arguments:**

    - `questions`: n, 1 or more.
    - `accuracy`: p, the true share of right answers; 1/2 is the widest case.
    - `confidence`: of the interval.

    **Returns:** the smallest h with P(|X / n - p| <= h) >= confidence, for X binomial
    (n, p): exact, not the normal approximation.
    """
    mean = questions * accuracy
    # from the middle outwards, so that few terms are summed
    distances = sorted(
        (abs(k - mean), _probability(k, questions, accuracy))
        for k in range(questions + 1)
    )
    total = 0.0
    for i, (distance, probability) in enumerate(distances):
        total += probability
        tied = i + 1 < len(distances) and distances[i + 1][0] == distance
        if total >= confidence and not tied:
            return distance / questions
    return distances[-1][0] / questions


def _probability(successes: int, trials: int, rate: float) -> float:
    if rate in (0.0, 1.0):
        return float(successes == trials * rate)
    return math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(rate)
        + (trials - successes) * math.log1p(-rate)
    )


def unseen_share(trials: int, confidence: float = CONFIDENCE) -> float:
    """Find the largest share that none in `trials` allows: 1 - (1 - c)^(1 / N)."""
    return -math.expm1(math.log1p(-confidence) / trials)


def questions_to_see(change: float) -> int:
    """Count the questions from which an interval is as narrow as a change, at p = 1/2.

    From the normal approximation, h = 1.96 sqrt(p (1 - p) / n): a round number is all
    that is wanted, and it is within a few percent for the large n that come out.
    """
    return math.ceil((1.959964 * 0.5 / change) ** 2)


def benchmark_note(precisions: Sequence[PrecisionReport]) -> str | None:
    """Tell what a benchmark could not have seen of the execution that changes most.

    One or two sentences, or None where no top tokens were compared.
    """
    compared = [p for p in precisions if p.output.argmax_total]
    if not compared:
        return None
    worst = max(compared, key=lambda p: p.output.argmax_flips / p.output.argmax_total)
    flips, total = worst.output.argmax_flips, worst.output.argmax_total
    width = accuracy_half_width(QUESTIONS)
    noise = (
        f"a benchmark of {QUESTIONS} questions knows an accuracy to "
        f"± {100 * width:.1f} points (95 %)"
    )
    if flips:
        share = flips / total
        found = (
            f"{worst.precision} changes {share:.2%} of the top tokens, which moves the "
            f"accuracy of one-token answers by at most {100 * share:.2g} points"
        )
    else:
        share = unseen_share(total)
        found = (
            f"{worst.precision} changed no top token of {total:,}, so at most "
            f"{share:.2%} of such tokens (95 %, were they independent)"
        )
    if share >= width:
        return f"{found}; {noise} and may see it."
    needed = float(f"{questions_to_see(share):.1g}")
    return f"{found}; {noise} and could not see it: that takes about {needed:,.0f}."
