"""What to do about the findings: one line that a user can act on."""

import math
from collections.abc import Sequence

from lyapunov._results import Exponents, Finding, PrecisionReport


def recommendation(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
) -> str:
    """One line that a user can act on: what to do first, or what is safe to do."""
    for code, advise in _ADVICE:
        concerned = [finding for finding in findings if finding.code == code]
        if concerned:
            return advise(concerned)
    return _choice(exponents, precisions, findings)


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


def _growing(findings: Sequence[Finding]) -> str:
    return (
        f"Look at A_log and dt_bias of {layers_text(findings)}: the state never fades."
    )


_ADVICE = (
    ("LYA002", _not_finite),
    ("LYA003", _violated),
    ("LYA001", _growing),
    ("LYA008", _lost),
)


def _choice(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
) -> str:
    """Nothing is broken: which precision, which state, what to watch."""
    low_state = [
        f
        for f in findings
        if f.code in ("LYA006", "LYA007") and "fp32" not in (f.precision, "")
    ]
    states = {p.state_precision for p in precisions} - {"fp32", "fp64"}
    advice = []
    if low_state and states:
        advice.append(f"Keep the state in fp32, not in {listed(sorted(states))}.")
    at_risk = [f for f in findings if f.code == "LYA005"]
    if at_risk:
        tight = _formats(at_risk)
        others = sorted({p.precision for p in precisions} - set(tight.split(" and ")))
        instead = f"prefer {others[0]}" if others else "prefer bf16"
        advice.append(
            f"{tight} is close to overflow in {layers_text(at_risk)}: {instead}."
        )
    if advice:
        return " ".join(advice)
    return _closest(exponents, precisions)


def _closest(exponents: Exponents, precisions: Sequence[PrecisionReport]) -> str:
    measured = [
        (p.output.argmax_flips, p.output.kl_mean, p)
        for p in precisions
        if p.output.kl_mean is not None and math.isfinite(p.output.kl_mean)
    ]
    if not measured:
        if exponents.max is None:
            return "No recurrence was found to judge."
        return (
            f"Every recurrence forgets (largest exponent {exponents.max:.3g}); nothing "
            "was measured in a lower precision."
        )
    flips, kl, best = min(measured, key=lambda item: (item[1], item[0]))
    total = best.output.argmax_total
    changed = (
        f"{flips:,} of {total:,} top tokens change" if flips else "no top token changes"
    )
    if len(measured) == 1:
        return f"{best.precision} on these tokens: {changed}, mean KL {kl:.2g} nats."
    names = sorted({p.precision for _, _, p in measured})
    if not any(flips for flips, _, _ in measured):
        return (
            f"{listed(names)} {'both' if len(names) == 2 else 'all'} keep every top "
            "token on these tokens; "
            f"{best.precision} is the closer (mean KL {kl:.2g} nats)."
        )
    return (
        f"Of {listed(names)}, {best.precision} is the closest: {changed}, "
        f"mean KL {kl:.2g} nats."
    )
