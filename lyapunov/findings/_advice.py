"""What to do about the findings: one line that a user can act on."""

import math
from collections.abc import Iterator, Sequence

from lyapunov.findings._catalogue import ERROR
from lyapunov.findings._changes import change_advice
from lyapunov.findings._logit_limits import (
    FEWEST_TOKENS,
    beyond,
    changed_share,
    is_fine,
    within_limits,
)
from lyapunov.formats._precision import Precision
from lyapunov.results._check import (
    Exponents,
    Finding,
    ParameterChangeReport,
    PrecisionReport,
)


BINDING_CAUSES = ("range", "mantissa", "stagnation")
"""How a cause begins that is the state's format's; another is the model's."""


def recommendation(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
    changes: Sequence[ParameterChangeReport] = (),
) -> str:
    """One line that a user can act on: what to do first, or what is safe to do; then
    what each changed weight set did that was asked about."""
    told = change_advice(changes)
    for code, advise in _ADVICE:
        concerned = [f for f in findings if f.code == code and not f.hint]
        if concerned:
            if not isinstance(advise, str):
                advise = advise(concerned, exponents, precisions, findings)
            return " ".join([advise, *told])
    return " ".join([_choice(exponents, precisions, findings), *told])


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def layers_text(findings: Sequence[Finding]) -> str:
    """The layers of some findings as text: `layer 3`, `layers 0-3, 7`."""
    layers = sorted({f.layer for f in findings if f.layer is not None})
    if not layers:
        return "the logits"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"


def _formats(findings: Sequence[Finding]) -> str:
    return listed(sorted({f.precision for f in findings if f.precision}))


def _not_finite(concerned, exponents, precisions, findings) -> str:
    where, formats = layers_text(concerned), _formats(concerned)
    if any(finding.precision is None for finding in concerned):
        own = [finding for finding in concerned if finding.precision is None]
        return (
            "The checkpoint itself is damaged: values not finite in "
            f"{layers_text(own)}, in fp64."
        )
    return (
        f"Do not run in {formats}: values not finite in {where}. "
        f"{_instead(concerned, precisions, findings)}"
    )


def _instead(
    concerned: Sequence[Finding],
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
) -> str:
    """Where to go from formats that failed: to one that ran here without an error,
    else to one of more range or bits that was not tried; to none where fp32 failed."""
    failed = {f.precision for f in findings if f.severity == ERROR and f.precision}
    held = [p for p in precisions if p.precision not in failed]
    if held:
        return f"Use {min(held, key=_harm).precision} there."
    formats = {p.precision: Precision.named(p.precision).format for p in precisions}
    bases = {formats.get(name, name) for name in failed}
    if "fp32" not in bases and "fp64" not in bases:
        overflowed = all(finding.code == "LYA002" for finding in concerned)
        wider = overflowed and bases <= {"fp16", "fp8_e4m3", "fp8_e5m2"}
        return f"Use {'bf16' if wider else 'fp32'} there."
    layers = [f.layer for f in findings if f.precision in failed]
    first = min((layer for layer in layers if layer is not None), default=None)
    place = "norms first" if first is None else f"those of layer {first}"
    return f"No format that was tried does better: look at the weights, {place}."


def _dead(concerned, exponents, precisions, findings) -> str:
    return (
        f"Do not run in {_formats(concerned)}: its logits say nothing of the "
        f"reference's. {_instead(concerned, precisions, findings)}"
    )


def _lost(concerned, exponents, precisions, findings) -> str:
    layers = {finding.layer for finding in concerned}
    names = dict.fromkeys(
        name for row in exponents.layers if row.layer in layers for name in row.suspects
    )
    what = f"{listed(list(names))} of {layers_text(concerned)}"
    if not names:
        what = f"the parameters of {layers_text(concerned)}"
    they = "it looks" if len(names) == 1 and len(layers) == 1 else "they look"
    return f"Compare {what} with the original file first: {they} lost."


def _violated(concerned, exponents, precisions, findings) -> str:
    return (
        f"Look for a bug in the {_formats(concerned)} execution, from "
        f"{layers_text(concerned[:1])} on: rounding does not explain the difference."
    )


def _growing(concerned, exponents, precisions, findings) -> str:
    return (
        f"Look at A_log and dt_bias of {layers_text(concerned)}: the state never fades."
    )


_ADVICE = (
    ("LYA002", _not_finite),
    ("LYA003", _violated),
    ("LYA015", _dead),
    ("LYA001", _growing),
    (
        "LYA020",
        "Load trained weights before anything is concluded: these are as a constructor "
        "makes them, so that rounding errors and exponents say nothing about a trained "
        "model.",
    ),
    ("LYA008", _lost),
    (
        "LYA016",
        "Compare the checkpoint's tensors with the original, or give a text that the "
        "model was made for: in exact arithmetic it predicts this one worse than a "
        "uniform guess.",
    ),
    (
        "LYA017",
        "Compare the loss with the one that is published for this model: in exact "
        "arithmetic it predicts this text worse than the text's own frequencies do, so "
        "that part of the checkpoint may be lost.",
    ),
)
"""What to say of the first code that was found: a text, or what makes one."""


def _choice(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
) -> str:
    """Nothing is broken: which state, which weights, what limits, in one line."""
    parts = [
        *_state(precisions, findings),
        *_range(precisions, findings),
        *_weights(precisions, findings),
        *_limit(precisions),
        *_without_a_head(precisions),
    ]
    if not parts:
        if exponents.max is None:
            return "No recurrence was found to judge."
        return (
            f"Every recurrence forgets (largest exponent {exponents.max:.3g}); nothing "
            "was measured in a lower precision."
        )
    line = "; ".join(parts)
    return f"{line[:1].upper()}{line[1:]}."


def state_to_keep(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> str | None:
    """The state's format to serve with: fp32 where a lower one was found at fault or
    several were checked, else the lowest that was checked; None where nothing was
    measured, or the lower one is neither at fault nor fine."""
    if not precisions:
        return None
    if _states_at_fault(precisions, findings):
        return "fp32"
    low = sorted({p.state_precision for p in precisions} - {"fp32", "fp64"})
    if len(low) != 1:
        return "fp32"
    held = [p for p in precisions if p.state_precision == low[0]]
    return low[0] if any(is_fine(p.output) for p in held) else None


def weights_to_run(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> str | None:
    """The weights' format to serve with: of those that are fine, the one with the
    fewest changed tokens, then the smallest KL; None where none is."""
    at_risk = {f.precision for f in findings if f.severity == ERROR}
    at_risk |= {f.precision for f in findings if f.code == "LYA005"}
    fine = [p for p in precisions if is_fine(p.output) and p.precision not in at_risk]
    return min(fine, key=_harm).precision if fine else None


def _harm(precision: PrecisionReport) -> tuple[float, float]:
    return changed_share(precision.output), precision.output.kl_mean or 0.0


def _binding(precision: PrecisionReport) -> str:
    """Which limit of the state's format the cause names, if it names one."""
    cause = precision.output.cause or ""
    return next((word for word in BINDING_CAUSES if cause.startswith(word)), "")


def _binds(precision: PrecisionReport) -> bool:
    """Whether the cause speaks against the state's format. Stochastic rounding spends
    the mantissa on noise of mean zero, which counts where it does harm."""
    stochastic = Precision.named(precision.state_precision).stochastic
    if stochastic and _binding(precision) == "mantissa":
        return precision.output.compared and not within_limits(precision.output)
    return bool(_binding(precision))


def _states_at_fault(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> list[PrecisionReport]:
    """Executions whose state is below fp32 and binds: a finding or a cause says so,
    or most of the predicted variance is the state's and too many tokens change."""
    marginal = {f.precision for f in findings if f.code == "LYA006"}
    stagnant = {f.precision for f in findings if f.code == "LYA007"}
    found = []
    for p in precisions:
        share = p.output.state_share
        if p.state_precision not in ("fp32", "fp64") and (
            p.state_precision in marginal
            or p.precision in stagnant
            or _binds(p)
            or ((share or 0.0) >= 0.5 and not within_limits(p.output))
        ):
            found.append(p)
    return found


def _state(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> Iterator[str]:
    bad = _states_at_fault(precisions, findings)
    if bad:
        names = listed(sorted({p.state_precision for p in bad}))
        causes = {cause for p in bad if (cause := _binding(p))}
        marginal = {f.precision for f in findings if f.code == "LYA006"}
        if not causes and marginal & {p.state_precision for p in bad}:
            # a short text does not show what adds up
            causes = {"decays that are 1 in it, so that errors add up with the text"}
        why = f" ({listed(sorted(causes))})" if causes else ""
        yield f"keep the state in fp32, not in {names}{why}"
        return
    low = [p for p in precisions if p.state_precision not in ("fp32", "fp64")]
    fine = sorted({p.state_precision for p in low if is_fine(p.output)})
    if fine:
        yield f"the state in {listed(fine)} is fine"
    elif low and all(within_limits(p.output) for p in low):
        names = listed(sorted({p.state_precision for p in low}))
        total = min(p.output.argmax_total for p in low)
        yield f"{total:,} tokens are too few to call the state in {names} fine"


def _range(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> Iterator[str]:
    at_risk = [f for f in findings if f.code == "LYA005"]
    if at_risk:
        tight = {f.precision for f in at_risk}
        others = sorted({p.precision for p in precisions} - tight)
        yield (
            f"{_formats(at_risk)} is close to overflow in {layers_text(at_risk)}, "
            f"prefer {others[0] if others else 'bf16'}"
        )


def _weights(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> Iterator[str]:
    """Weights and activations, where the state does not hide what they do."""
    hidden = _states_at_fault(precisions, findings)
    at_risk = {f.precision for f in findings if f.code == "LYA005"}
    shown = [
        p
        for p in sorted(precisions, key=_harm)
        if p not in hidden
        and p.precision not in at_risk
        and p.output.kl_mean is not None
        and math.isfinite(p.output.kl_mean)
    ]
    still = [p for p in shown if not p.output.argmax_flips]
    calm = [p for p in still if is_fine(p.output)]
    if calm:
        names = listed(sorted({p.precision for p in calm}))
        closest = f" for {calm[0].precision}" if len(calm) > 1 else ""
        yield (
            f"weights in {names} are fine: no top token changes "
            f"(mean KL {calm[0].output.kl_mean:.2g} nats{closest})"
        )
    for p in shown:
        if p not in calm:
            yield _one_weights(p)


def _without_a_head(precisions: Sequence[PrecisionReport]) -> Iterator[str]:
    """What the sublayers alone do not tell."""
    unknown = sorted({p.precision for p in precisions if not p.output.compared})
    if unknown:
        yield (
            f"sublayers alone do not tell whether {listed(unknown)} will do: give the "
            "model with its head, or output= to lyapunov.watch, to compare what it says"
        )


def _one_weights(p: PrecisionReport) -> str:
    """What running in one format does, where not every figure of it is calm."""
    output = p.output
    kl = f"mean KL {output.kl_mean:.2g} nats"
    total = output.argmax_total
    tokens = f"{output.argmax_flips:,} of {total:,} top tokens"
    if is_fine(output):
        return f"weights in {p.precision} are fine: {tokens} change, {kl}"
    if output.argmax_flips:
        return f"weights in {p.precision} change {tokens}, {kl}"
    unchanged = f"no top token of {total:,} changes with weights in {p.precision}"
    if not within_limits(output):
        return f"{unchanged}, but {beyond(output) or 'not all is known of its logits'}"
    return f"{unchanged}; too few to say fine (at least {FEWEST_TOKENS})"


def _limit(precisions: Sequence[PrecisionReport]) -> Iterator[str]:
    """Where most of the predicted error comes from, and what binds there, for the
    execution that changes most."""
    if not precisions:
        return
    worst = max(precisions, key=_harm)
    cause = worst.output.cause or ""
    if cause and not _binding(worst):
        yield f"limit: {cause}"
        return
    known = [
        (row.sigma_share, row.layer)
        for row in worst.layers
        if row.sigma_share is not None and math.isfinite(row.sigma_share)
    ]
    limits = [cause] if cause else []
    if known:
        share, layer = max(known)
        place = f"layer {layer}"
        # what the sublayers leave is the embedding's, the final norm's and the head's
        head = 1.0 - math.fsum(part for part, _ in known)
        if len(known) == len(worst.layers) and head > share:
            share, place = head, "the head"
        limits.insert(0, f"{place} ({share:.0%} of the predicted variance)")
    if limits:
        yield f"limit: {', '.join(limits)}"
