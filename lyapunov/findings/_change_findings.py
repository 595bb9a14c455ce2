"""What a user should know of a changed weight set."""

from collections.abc import Iterator

from lyapunov.findings._catalogue import finding_of
from lyapunov.findings._change_words import coverage_gaps
from lyapunov.results._check import AdapterCoverage, Finding, ParameterChangeReport


def change_findings(change: ParameterChangeReport) -> Iterator[Finding]:
    """Violations of its bounds, and what an adapter leaves out."""
    for layer in change.layers:
        if layer.violations:
            yield finding_of(
                "LYA003",
                layer.layer,
                f"changed weights {change.name}: {layer.violations:,} of "
                f"{layer.elements_total:,} elements above the bound",
                value=float(layer.violations),
                limit=0.0,
                precision=change.name,
            )
    if change.coverage is not None:
        yield from coverage_findings(change.name, change.coverage)


def coverage_findings(name: str, coverage: AdapterCoverage) -> Iterator[Finding]:
    """What an adapter leaves out; known without a token."""
    if gaps := coverage_gaps(coverage):
        yield finding_of(
            "LYA019",
            None,
            f"the adapter {name}: {'; '.join(gaps)}",
            value=float(coverage.recurrent_touched),
            limit=float(coverage.recurrent_total),
            precision=name,
        )
