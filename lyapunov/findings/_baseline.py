"""A report against an earlier one of the same checkpoint and tokens, for CI.

Pure functions of documents; `_baseline_file` reads and checks the earlier one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lyapunov.findings._baseline_file import (
    FLIPS,
    LAYER_COUNTS,
    LAYER_FIGURES,
    LOSS,
    NEW_RULE,
    OUTPUT_COUNTS,
    OUTPUT_FIGURES,
    SAMPLED_FIGURES,
    TIES,
    BaselineError,
)
from lyapunov.findings._catalogue import ERROR, finding_of
from lyapunov.findings._verdict import Verdict, judged
from lyapunov.results._check import Finding, Report


FACTOR = 1.25
"""A figure that grew by more is worse. The figures are deterministic on one machine;
another order of fp64 sums moves their last digits and, near a tie, a token."""

NEAR_TIES = 1
"""So many changed tokens more are not worse: a top token near a tie."""

FIGURE, TOKENS, COUNT = "figure", "tokens", "count"
SAMPLING = ("probes", "readouts", "seed")
"""Settings on which the sampled figures depend: with others they are not compared."""

Figure: TypeAlias = tuple[str, float, float, str]
"""Label, earlier, now, and one of the three kinds."""


@dataclass(frozen=True)
class Outcome:
    """What a comparison found."""

    findings: list[Finding]
    compared: int
    changed: int
    """Figures that differ at all, compared exactly."""
    notes: list[str]
    """What differs between the two beside the figures."""

    def sentence(self) -> str:
        """How it went, in one line."""
        if self.findings:
            word = "worse"
        elif not self.changed:
            word = "equal"
        else:
            word = f"no worse than a factor of {FACTOR:g}"
        text = f"{word}: {self.changed:,} of {self.compared:,} figures differ"
        return "; ".join([text, *self.notes])


def compare(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> Outcome:
    """What grew since the baseline.

    **Arguments:**

    - `report`, `baseline`: documents as `Report.to_dict` gives them.

    **Raises:** `BaselineError` where the two are not about the same tokens, the same
    shape of model, or any execution in common.
    """
    notes = _same_subject(report, baseline)
    earlier = {_key(entry): entry for entry in baseline["precisions"]}
    now = {_key(entry): entry for entry in report["precisions"]}
    common = [key for key in now if key in earlier]
    if not common and (now or earlier):
        raise BaselineError(
            f"the baseline has no execution in common: {_names(earlier)} there, "
            f"{_names(now)} here",
            hint="give the same --precision, --state-precision, --mode and --measure",
        )
    for key in earlier:
        if key not in now:
            notes.append(f"{_names([key])} is only in the baseline")
    sampled = all(
        report["settings"].get(name) == baseline["settings"].get(name)
        for name in SAMPLING
    )
    names = (*OUTPUT_FIGURES, *(SAMPLED_FIGURES if sampled else ()))
    held: list[tuple[str | None, Iterator[Figure]]]
    held = [(None, _loss_figures(baseline, report))]
    for key in common:
        rows = {row["layer"] for row in now[key]["layers"]}
        lost = [r["layer"] for r in earlier[key]["layers"] if r["layer"] not in rows]
        if lost:
            notes.append(f"{len(lost)} sublayers are only in the baseline")
        held.append((key[0], _figures(earlier[key], now[key], names)))
    findings, compared, changed = [], 0, 0
    for precision, figures in held:
        worse: list[tuple[float, str]] = []
        for label, old, new, kind in figures:
            compared += 1
            changed += not (old == new or (math.isnan(old) and math.isnan(new)))
            growth = _growth(old, new, kind)
            if growth > FACTOR:
                worse.append((growth, f"{label} {_short(old)} → {_short(new)}"))
        if worse:
            findings.append(_finding(precision, worse))
    return Outcome(findings, compared, changed, notes)


def _same_subject(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    ours, theirs = report["checkpoint"], baseline["checkpoint"]
    for name in ("architecture", "n_layers", "n_params"):
        if ours.get(name) != theirs.get(name):
            raise BaselineError(
                f"the baseline is of another model: {name} "
                f"{theirs.get(name)!r:.40} there, {ours.get(name)!r:.40} here",
                hint="write a baseline of this checkpoint with -o FILE.json",
            )
    check_tokens(report["tokens"], baseline)
    notes = []
    hashes = [
        sorted(str(file.get("sha256")) for file in facts.get("files", []))
        for facts in (ours, theirs)
    ]
    if hashes[0] != hashes[1]:
        notes.append("the checkpoint's files are others than the baseline's")
    return notes


def check_tokens(here: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Refuse other tokens than the baseline's, before the long work too.

    **Arguments:**

    - `here`: `source`, `batch`, `length` and `sha256`, as in a report.

    **Raises:** `BaselineError` that says what the tokens are there and here.
    """
    there = baseline["tokens"]
    if here["sha256"] != there["sha256"]:
        raise BaselineError(
            f"the baseline is of other tokens: {_tokens(there)} there, "
            f"{_tokens(here)} here",
            hint="give the same --tokens or --text, --length, --batch and --seed",
        )


def _tokens(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts.get('source')!s:.60}, {facts.get('batch')!s:.9} × "
        f"{facts.get('length')!s:.9}"
    )


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("precision", "state_precision", "mode", "measured_by")
    return tuple(entry[name] for name in names)


def _names(keys) -> str:
    told = [
        f"{precision} (state {state}, {mode}, {by})"
        for precision, state, mode, by in (tuple(f"{x:.30}" for x in k) for k in keys)
    ]
    return ", ".join(told[:4]) or "none"


def _figures(
    earlier: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]
) -> Iterator[Figure]:
    """Every figure that both have."""
    old, new = earlier["output"], now["output"]
    for name in names:
        yield from _pair(f"logits {name}", name, old, new, FIGURE)
    # changed tokens that an earlier version counted as ties are changed tokens
    if old.get(FLIPS) is not None and old.get(NEW_RULE) is None:
        old = {**old, FLIPS: old[FLIPS] + (old.get(TIES) or 0)}
    yield from _pair("flips", FLIPS, old, new, TOKENS)
    for name in OUTPUT_COUNTS:
        yield from _pair(f"logits {name}", name, old, new, COUNT)
    rows = {row["layer"]: row for row in earlier["layers"]}
    for row in now["layers"]:
        before = rows.get(row["layer"])
        if before is None:
            continue
        place = f"layer {row['layer']}"
        for name in LAYER_COUNTS:
            yield from _pair(f"{place} {name}", name, before, row, COUNT)
        for name in LAYER_FIGURES:
            yield from _pair(f"{place} {name}", name, before, row, FIGURE)


def _loss_figures(
    earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[Figure]:
    """The reference's loss, where both have it: reports of before it was printed are
    baselines too."""
    old, new = earlier.get("reference"), now.get("reference")
    if old is not None and new is not None:
        yield from _pair("loss of the reference, bits a token", LOSS, old, new, FIGURE)


def _pair(
    label: str, name: str, old: Mapping[str, Any], new: Mapping[str, Any], kind: str
) -> Iterator[Figure]:
    before, after = _number(old, name), _number(new, name)
    if before is not None and after is not None:
        yield label, before, after, kind


def _number(figures: Mapping[str, Any], name: str) -> float | None:
    """A figure; inf and NaN come back from null and its flag."""
    value = figures.get(name)
    if value is not None:
        return float(value)
    flag = figures.get(f"{name}_flag")
    return float(flag) if flag in ("inf", "-inf", "nan") else None


def _growth(old: float, new: float, kind: str) -> float:
    """How many times; inf from 0, and from a number to none. Any violation more is
    worse, whatever the factor."""
    slack = NEAR_TIES if kind == TOKENS else 0
    if new - slack <= old or old == math.inf or math.isnan(old):
        return 1.0
    if kind == COUNT or math.isnan(new) or old <= 0:
        return math.inf
    return (new - slack) / old


def _short(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e6
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def _finding(precision: str | None, worse: list[tuple[float, str]]) -> Finding:
    told = [text for _, text in worse[:4]]
    more = f", and {len(worse) - 4} more" if len(worse) > 4 else ""
    message = f"grew since the baseline: {', '.join(told)}{more}"
    growth = max(growth for growth, _ in worse)
    return finding_of("LYA010", None, message, growth, FACTOR, precision)


def with_baseline(report: Report, baseline: Mapping[str, Any]) -> tuple[Report, str]:
    """The report with what grew as a finding, its verdict anew; and the outcome in
    one line. Findings that the baseline has as well are marked and fail nothing: what
    grows in them is a finding of its own.

    **Raises:** `BaselineError` where the two cannot be compared.
    """
    outcome = compare(report.to_dict(), baseline)
    known = {_identity(finding) for finding in baseline.get("findings", ())}
    settings = report.settings
    counts = Verdict.among(settings)
    new = counts.kept(outcome.findings)
    told = [
        replace(f, known=(f.code, f.layer, f.precision) in known)
        for f in report.findings
    ]
    findings = sorted([*told, *new], key=lambda f: (f.severity != ERROR, f.code))
    word, code = judged(replace(report, findings=findings), counts)
    grew = "" if outcome.findings else "nothing grew, "
    sentence = outcome.sentence()
    whole = "; ".join([f"{grew}{sentence}", *_familiar(told)])
    summary = replace(report.summary, verdict=word, exit_code=code, baseline=whole)
    settings = {**settings, "baseline": sentence}
    report = replace(report, findings=findings, summary=summary, settings=settings)
    return report, sentence


def _identity(finding: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two findings one: the code, the layer and the execution."""
    return tuple(finding.get(name) for name in ("code", "layer", "precision"))


def _familiar(findings: list[Finding]) -> list[str]:
    """How many findings are new, and how many the baseline has, in words."""
    if not findings:
        return []
    known = sum(finding.known for finding in findings)
    fresh = len(findings) - known
    return [f"{fresh or 'no'} new finding{'' if fresh == 1 else 's'}, {known} known"]
