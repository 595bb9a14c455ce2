"""What a network gives with its blocks in lower precision, as sections."""

from collections.abc import Sequence

from lyapunov.report import _columns as columns, _words as words
from lyapunov.report._sections import (
    Column,
    Columns,
    Form,
    Line,
    Note,
    Section,
    Table,
    whole,
)
from lyapunov.report._sentences import percent
from lyapunov.results._check import NetworkOutput, PrecisionReport, Report


TOLD = (
    "Everything around the blocks runs as it is. rel L2 and max: difference of the "
    "output. sigma: predicted rel L2, an estimate from random roundings; z: what was "
    "measured over it, of what is random."
)


def network_output(report: Report) -> list[Section]:
    """The output of the user's own network, a row a precision; nothing where nobody
    looked at it."""
    rows = [one for one in report.precisions if one.network is not None]
    if not rows or rows[0].network is None:
        return []
    network = rows[0].network
    shape = " x ".join(map(str, network.shape)) or "one number"
    table = Table(rows, [columns.EXECUTION], [Columns(_columns(rows))])
    lines = [Line(one.precision, text) for one in rows for text in _lines(one.network)]
    title = f"Output of the network: {network.output} ({shape})"
    return [
        Section(title, table=table, notes=[Note(TOLD, Form.WRITTEN)]),
        *([Section("Output: more", lines=lines, level=3)] if lines else []),
    ]


def _columns(rows: Sequence[PrecisionReport]) -> list[Column]:
    """Those in which some row has something."""
    possible = [
        Column("rel L2", columns.of("network.measured_rel_l2")),
        Column("max", columns.of("network.measured_max")),
        Column("sigma", columns.of("network.sigma_t3")),
        Column("z", columns.of("network.calibration_z")),
        Column("changed", columns.of("network.decisions_changed"), whole),
        Column("of", columns.of("network.decisions_total"), whole, long="decisions"),
    ]
    return [one for one in possible if any(one.of(row) is not None for row in rows)]


def _lines(network: NetworkOutput | None) -> list[str]:
    if network is None:
        return []
    told = []
    if network.decisions_total is not None:
        told.append(
            f"decisions ({network.decision}): {network.decisions_changed} of "
            f"{network.decisions_total:,} change"
        )
    if network.metric_reference is not None:
        told.append(
            f"{network.decision}: {words.number(network.metric_reference, 6)} becomes "
            f"{words.number(network.metric_value, 6)}"
        )
    if network.sigma_withheld:
        told.append(f"sigma withheld: {network.sigma_withheld}")
    if network.nonlinearity is not None:
        told.append(
            f"{percent(network.nonlinearity)} of what roundings do is beyond "
            "first order"
        )
    if network.by_block:
        alone = sorted(network.by_block.items(), key=lambda one: -one[1])
        told.append(
            "one block alone: "
            + ", ".join(f"{name} {words.number(value)}" for name, value in alone)
        )
    return told
