"""The report as JSON: stable keys, no NaN, one document."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lyapunov.results._audit import AuditReport
from lyapunov.results._check import SCHEMA_VERSION, Report


if TYPE_CHECKING:
    from lyapunov.questions._plan import Plan


def to_json(result: "Report | AuditReport | Plan") -> str:
    """Write one result as a JSON document, keys in the order of the schema."""
    return dump(result.to_dict())


def combined(
    entries: "Sequence[Report | AuditReport | Plan | Mapping[str, Any]]",
) -> dict[str, Any]:
    """What one run says of its checkpoints: the only entry itself, or all of them
    under `reports`. An entry that is no report is an error's document."""
    plain = [dict(e) if isinstance(e, Mapping) else e.to_dict() for e in entries]
    if len(plain) == 1:
        return plain[0]
    return {"schema_version": SCHEMA_VERSION, "reports": plain}


def dump(document: dict[str, Any]) -> str:
    """JSON text with a final newline; a stray NaN is an error, not a `NaN`."""
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of a report, version 1."""
    home = importlib.resources.files("lyapunov.report")
    return json.loads(home.joinpath("check-v1.schema.json").read_text("utf-8"))
