"""A result as rows of plain values, for other programs: CSV, a DataFrame."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lyapunov.results._audit import AuditReport
from lyapunov.results._check import Report
from lyapunov.results._ranking import WeightRanking
from lyapunov.results._shown import plain


Record = dict[str, Any]


def records(results: Any) -> list[Record]:
    """Make the rows of one result, or of several, of which each names its checkpoint.

    A number that is not finite is one here. Of a check a row is a sublayer under an
    execution, its exponents under `exponent_` and the field's name; of an audit a
    sublayer in a run, of a ranking a matrix. What a report holds in lists is left out.
    """
    several = results if isinstance(results, Sequence) else [results]
    return [row for result in several for row in _rows(result)]


def _rows(result: Any) -> Iterator[Record]:
    if isinstance(result, Mapping):
        source, error = result["checkpoint"]["source"], result["error"]["message"]
        yield {"checkpoint": source, "error": error}
    elif isinstance(result, Report):
        yield from _of_check(result)
    elif isinstance(result, AuditReport):
        for run in result.variants:
            place = {"checkpoint": result.checkpoint.source}
            names = ("variant", "precision", "verdict", "reason")
            place |= {name: getattr(run, name) for name in names}
            yield from ({**place, **_scalars(row)} for row in run.layers or [None])
    elif isinstance(result, WeightRanking):
        place = {"checkpoint": result.checkpoint.source, "format": result.format}
        for row in result.matrices:
            found = _scalars(row.measured).items()
            yield {**place, **_scalars(row), **{f"measured_{k}": v for k, v in found}}
    elif hasattr(result, "stages"):
        for stage in result.stages:
            yield {"checkpoint": result.checkpoint, **_scalars(stage)}
    else:
        told = result.to_dict()
        columns = {
            "exponent": told["exponents"],
            "stderr": told["stderr"],
            "multiplicity": told["multiplicity"],
        }
        flags = told.get("exponents_flag") or [None] * len(told["exponents"])
        for i, flag in enumerate(flags):
            row = {name: values[i] for name, values in columns.items()}
            yield {"index": i, **row, **({"exponent": float(flag)} if flag else {})}


def _of_check(report: Report) -> Iterator[Record]:
    exponents = {row.layer: row for row in report.exponents.layers}
    runs = [(one, {row.layer: row for row in one.layers}) for one in report.precisions]
    for run, rows in runs or [(None, {})]:
        place = {"checkpoint": report.checkpoint.source}
        if run is not None:
            names = ("precision", "state_precision", "mode", "measured_by")
            place |= {name: getattr(run, name) for name in names}
        for layer in sorted({*exponents, *rows}):
            found, row = exponents.get(layer), rows.get(layer)
            either = found or row
            names = ("layer", "kind", "module")
            here = {name: getattr(either, name) for name in names}
            told = {f"exponent_{k}": v for k, v in _scalars(found).items()}
            for name in names:
                told.pop(f"exponent_{name}", None)
            yield {**place, **here, **told, **_scalars(row)}


def _scalars(row: Any) -> Record:
    """The fields of a row that hold one value each."""
    if row is None:
        return {}
    values = {one.name: getattr(row, one.name) for one in fields(row)}
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, str | int | float)
    }


def to_csv(results: Any) -> str:
    """Write the rows as CSV with a line of names; what is unknown is empty."""
    rows = records(results)
    names = dict.fromkeys(name for row in rows for name in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: names come from outside."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    if isinstance(value, float) and not math.isfinite(value):
        return plain({"x": value})["x_flag"]
    return value
