"""When an execution's logits are called fine, and when they are called lost.

Fine is a claim, so it rests on all of its limits together, each of them one part in a
hundred; lost is an error, so each of its limits is far from what roundings do. Between
the two the report tells the figures and calls them nothing.
"""

import math

from lyapunov.results._check import OutputDivergence


FINE = 0.01
"""Share of top tokens that may change in a format that is called fine: two answers of
a benchmark of 200, whose own noise is seven times that (`_benchmark_noise`)."""

FINE_KL = 0.01
"""Mean KL in nats, at most, of what is called fine: text drawn from the reference has a
perplexity e^KL times as large under the execution, so 1 % more. 16-bit executions of
trained networks reach 8e-4 (analysis/results/cross_check.json)."""

FINE_REL_L2 = 0.1
"""Relative L2 of the logits, at most, of what is called fine: the error has 1 % of the
logits' variance. KL does not see it where the reference is nearly uniform, as it is
before training. 16-bit executions reach 0.027 in the same file."""

FEWEST_TOKENS = 100
"""Tokens from which anything is called fine: one is then the share of `FINE`. None
changed of so many still allows 3 % (the rule of three), which the report says."""

CONSTANT_SHARE = 0.5
"""Share of tokens whose logits are one value, from which an execution is dead: it says
nothing about most tokens. Rounding ties the two leaders now and then, not all."""

LOST_REL_L2 = 0.9
"""Relative L2 from which the logits are lost. Logits of zeros have 1; above it they are
worse than none, and the error is as large as what it is an error of."""

LOST_KL = 1.0
"""Mean KL in nats from which the logits are lost: e times the perplexity on text of the
reference's own."""


def within_limits(output: OutputDivergence) -> bool:
    """Whether changed tokens, mean KL and distance are all small enough.

    A distance that is not defined (NaN: the reference tells no token from another)
    leaves it to the other two; one that was not measured is not small enough.
    """
    kl, distance = output.kl_mean, output.measured_rel_l2
    return (
        kl is not None
        and kl <= FINE_KL
        and distance is not None
        and not distance > FINE_REL_L2
        and not output.non_finite
        and changed_share(output) <= FINE
    )


def is_fine(output: OutputDivergence) -> bool:
    """Whether the limits hold on enough tokens to say so."""
    return output.argmax_total >= FEWEST_TOKENS and within_limits(output)


def changed_share(output: OutputDivergence) -> float:
    """Changed top tokens over all tokens; 0 of none."""
    return output.argmax_flips / output.argmax_total if output.argmax_total else 0.0


def beyond(output: OutputDivergence) -> str:
    """The limits that KL and distance exceed, in words; empty where they hold."""
    told = []
    kl, distance = output.kl_mean, output.measured_rel_l2
    if kl is not None and not kl <= FINE_KL:
        told.append(f"mean KL {kl:.2g} nats, fine up to {FINE_KL:g}")
    if distance is not None and distance > FINE_REL_L2:
        told.append(f"relative L2 {distance:.2g}, fine up to {FINE_REL_L2:g}")
    return " and ".join(told)


def lost(output: OutputDivergence) -> list[tuple[str, float, float]]:
    """Why the logits are lost: words, the figure and its limit, for each reason.

    Figures that are not finite are left to the finding for those.
    """
    found = []
    total = output.argmax_total
    share = output.constant_tokens / total if total else 0.0
    if share >= CONSTANT_SHARE:
        words = (
            f"all logits are equal at {output.constant_tokens:,} of {total:,} tokens"
        )
        found.append((words, share, CONSTANT_SHARE))
    distance, kl = output.measured_rel_l2, output.kl_mean
    if distance is not None and LOST_REL_L2 <= distance < math.inf:
        words = f"the error is {distance:.2g} times as large as the logits"
        found.append((words, distance, LOST_REL_L2))
    if kl is not None and LOST_KL <= kl < math.inf:
        found.append((f"the mean KL is {kl:.2g} nats", kl, LOST_KL))
    return found
