"""An earlier report read from its file, for `--baseline`.

Anybody may have written the file, so its size and every field that is read are checked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lyapunov._errors import ReportError
from lyapunov.results._check import SCHEMA_VERSION


LARGEST_FILE = 32 * 2**20
"""Bytes: some ten times what a model of 64 layers takes."""

OUTPUT_FIGURES = ("measured_rel_l2", "kl_mean", "kl_max")
LOSS = "loss_bits_per_token"
SAMPLED_FIGURES = ("sigma_t3", "estimate_t2")
LAYER_FIGURES = ("local_l2", "accumulated_l2", "bound_t1_l2", "elements_unbounded")
# the bound itself and not its ratio: a smaller error under the same bound is no loss
LAYER_COUNTS = ("violations", "non_finite")
OUTPUT_COUNTS = ("non_finite", "reference_non_finite", "constant_tokens")
FLIPS, TIES, NEW_RULE = "argmax_flips", "argmax_ties", "reference_ties"
"""Reports without the last counted a changed token as a tie where the execution's
leader was shared; since then only ties of the reference are told apart."""


class BaselineError(ReportError):
    """The baseline cannot be read, or is about something else."""

    code = "baseline"


def read_baseline(path: Path) -> dict[str, Any]:
    """The document of an earlier report.

    **Raises:** `BaselineError` where there is none, it is too large, or it is no
    report of this schema.
    """
    document = read_json(path, "baseline", BaselineError)
    if isinstance(document, dict) and "reports" in document:
        raise BaselineError(
            f"{path} has several reports", hint="write one file a checkpoint"
        )
    _check_shape(path, document)
    return document


def read_json(path: Path, what: str, error: type[ReportError] = ReportError) -> Any:
    """What a file of JSON holds; anybody may have written it.

    **Raises:** `error` where there is none, it is too large, or no JSON.
    """
    try:
        if not path.is_file():
            raise error(
                f"no {what} at {path}",
                hint=f"write one with: lyapunov-check CHECKPOINT -o {path}",
            )
        if path.stat().st_size > LARGEST_FILE:
            raise error(
                f"{path} has {path.stat().st_size:,} bytes, too many for a report",
                hint=f"at most {LARGEST_FILE:,}",
            )
        return json.loads(path.read_text("utf-8"))
    except OSError as caught:
        raise error(
            f"cannot read {path}: {caught.strerror or caught}", hint="check the file"
        ) from caught
    except UnicodeDecodeError as caught:
        raise no_report(path, "not UTF-8 text", error) from caught
    except (ValueError, RecursionError) as caught:
        raise no_report(path, "not JSON", error) from caught


def no_report(
    path: Path, why: str, error: type[ReportError] = BaselineError
) -> ReportError:
    """What is raised for a file that is no report."""
    return error(
        f"{path} is no report of lyapunov-check: {why}",
        hint="a report is what `-o FILE.json` or `--json` wrote",
    )


def _check_shape(path: Path, document: Any) -> None:
    """Every part that is read is there and of its kind."""

    def want(place: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            raise no_report(path, f"{place} is not {_KINDS[kind]}")
        return value

    want("the document", document, dict)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise no_report(
            path,
            f"schema_version is {document.get('schema_version')!r:.20}, "
            f"not {SCHEMA_VERSION}",
        )
    for name in ("settings", "checkpoint", "tokens"):
        want(name, document.get(name), dict)
    want("tokens.sha256", document["tokens"].get("sha256"), str)
    for file in want("files", document["checkpoint"].get("files", []), list):
        want("a file", file, dict)
    for finding in want("findings", document.get("findings", []), list):
        want("a finding", finding, dict)
        want("a finding's code", finding.get("code"), str)
        for name, kind in (("layer", int), ("precision", str)):
            if finding.get(name) is not None:
                want(f"a finding's {name}", finding[name], kind)
    if document.get("reference") is not None:
        loss = want("reference", document["reference"], dict)
        _check_numbers(path, "reference", loss)
    for i, entry in enumerate(want("precisions", document.get("precisions"), list)):
        place = f"precisions[{i}]"
        want(place, entry, dict)
        for name in ("precision", "state_precision", "mode", "measured_by"):
            want(f"{place}.{name}", entry.get(name), str)
        _check_numbers(path, f"{place}.output", want(place, entry.get("output"), dict))
        for row in want(f"{place}.layers", entry.get("layers"), list):
            want(f"{place}.layers", row, dict)
            want(f"{place}.layers: layer", row.get("layer"), int)
            _check_numbers(path, f"{place}.layers", row)


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text", int: "whole"}


def _check_numbers(path: Path, place: str, figures: Mapping[str, Any]) -> None:
    for name in (
        *OUTPUT_FIGURES,
        *SAMPLED_FIGURES,
        *LAYER_FIGURES,
        *LAYER_COUNTS,
        *_OUTPUT_COUNTS,
        LOSS,
    ):
        value = figures.get(name)
        if value is not None and not (
            isinstance(value, float)
            or (isinstance(value, int) and abs(value) < _LARGEST_COUNT)
        ):
            raise no_report(path, f"{place}: {name} is not a number")


_LARGEST_COUNT = 2**63
_OUTPUT_COUNTS = (*OUTPUT_COUNTS, FLIPS, TIES, NEW_RULE, "argmax_total")
