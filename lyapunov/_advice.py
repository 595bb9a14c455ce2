"""What to do about the findings: one line that a user can act on."""

import math
from collections.abc import Iterator, Sequence

from lyapunov._catalogue import ERROR
from lyapunov._change_words import change_advice
from lyapunov._format_table import state_store
from lyapunov._results import (
    Exponents,
    Finding,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
)


FINE = 0.01
"""Share of top tokens that may change in a format that is called fine: two answers of
a benchmark of 200, whose own noise is seven times that (`_benchmark_noise`)."""

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
        concerned = [finding for finding in findings if finding.code == code]
        if concerned:
            return " ".join([advise(concerned), *told])
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


def _not_finite(findings: Sequence[Finding]) -> str:
    where, formats = layers_text(findings), _formats(findings)
    if not formats:
        return (
            f"The checkpoint itself is damaged: values not finite in {where}, in fp64."
        )
    safe = "bf16" if formats in ("fp16", "fp16-cast") else "fp32"
    return f"Do not run in {formats}: values not finite in {where}. Use {safe} there."


def _lost(findings: Sequence[Finding]) -> str:
    return (
        f"Compare dt_bias, A_log and D of {layers_text(findings)} with the original "
        "file first: they look lost."
    )


def _violated(findings: Sequence[Finding]) -> str:
    return (
        f"Look for a bug in the {_formats(findings)} execution, from "
        f"{layers_text(findings[:1])} on: rounding does not explain the difference."
    )


def _worse_than_a_guess(findings: Sequence[Finding]) -> str:
    return (
        "Compare the checkpoint's tensors with the original, or give a text that the "
        "model was made for: in exact arithmetic it predicts this one worse than a "
        "uniform guess."
    )


def _worse_than_frequencies(findings: Sequence[Finding]) -> str:
    return (
        "Compare the loss with the one that is published for this model: in exact "
        "arithmetic it predicts this text worse than the text's own frequencies do, so "
        "that part of the checkpoint may be lost."
    )


def _growing(findings: Sequence[Finding]) -> str:
    return (
        f"Look at A_log and dt_bias of {layers_text(findings)}: the state never fades."
    )


_ADVICE = (
    ("LYA002", _not_finite),
    ("LYA003", _violated),
    ("LYA001", _growing),
    ("LYA008", _lost),
    ("LYA016", _worse_than_a_guess),
    ("LYA017", _worse_than_frequencies),
)


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
    """The state's format to serve with: fp32 where a lower one was found at fault,
    else the lowest that was checked; None where nothing was measured."""
    if not precisions:
        return None
    if _states_at_fault(precisions, findings):
        return "fp32"
    low = sorted({p.state_precision for p in precisions} - {"fp32", "fp64"})
    return low[0] if len(low) == 1 else "fp32"


def weights_to_run(
    precisions: Sequence[PrecisionReport], findings: Sequence[Finding]
) -> str | None:
    """The weights' format to serve with: of those that are fine, the one with the
    fewest changed tokens, then the smallest KL; None where none is."""
    at_risk = {f.precision for f in findings if f.severity == ERROR}
    at_risk |= {f.precision for f in findings if f.code == "LYA005"}
    fine = [p for p in precisions if _is_fine(p) and p.precision not in at_risk]
    return min(fine, key=_harm).precision if fine else None


def _share(output: OutputDivergence) -> float:
    return output.argmax_flips / output.argmax_total if output.argmax_total else 0.0


def _is_fine(precision: PrecisionReport) -> bool:
    kl = precision.output.kl_mean
    return kl is not None and math.isfinite(kl) and _share(precision.output) <= FINE


def _harm(precision: PrecisionReport) -> tuple[float, float]:
    return _share(precision.output), precision.output.kl_mean or 0.0


def _binding(precision: PrecisionReport) -> str:
    """Which limit of the state's format the cause names, if it names one."""
    cause = precision.output.cause or ""
    return next((word for word in BINDING_CAUSES if cause.startswith(word)), "")


def _binds(precision: PrecisionReport) -> bool:
    """Whether the cause speaks against the state's format. Stochastic rounding spends
    the mantissa on noise of mean zero, which counts where it does harm."""
    stochastic = state_store(precision.state_precision).stochastic
    if stochastic and _binding(precision) == "mantissa":
        return not _is_fine(precision)
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
        share = (p.output.sigma_by_site or {}).get("state") or 0.0
        if p.state_precision not in ("fp32", "fp64") and (
            p.state_precision in marginal
            or p.precision in stagnant
            or _binds(p)
            or (share >= 0.5 and not _is_fine(p))
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
        why = f" ({listed(sorted(causes))})" if causes else ""
        yield f"keep the state in fp32, not in {names}{why}"
        return
    low = sorted(
        {p.state_precision for p in precisions if _is_fine(p)} - {"fp32", "fp64"}
    )
    if low:
        yield f"the state in {listed(low)} is fine"


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
    calm = [p for p in shown if _is_fine(p) and not p.output.argmax_flips]
    if calm:
        names = listed(sorted({p.precision for p in calm}))
        closest = f" for {calm[0].precision}" if len(calm) > 1 else ""
        yield (
            f"weights in {names} are fine: no top token changes "
            f"(mean KL {calm[0].output.kl_mean:.2g} nats{closest})"
        )
    for p in shown:
        if p in calm:
            continue
        kl = f"mean KL {p.output.kl_mean:.2g} nats"
        tokens = f"{p.output.argmax_flips:,} of {p.output.argmax_total:,} top tokens"
        if _is_fine(p):
            yield f"weights in {p.precision} are fine: {tokens} change, {kl}"
        else:
            yield f"weights in {p.precision} change {tokens}, {kl}"


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
