"""Constants measured on one GPU, as an alternative to the documented ones.

Executions use the documented constants, which hold on every GPU that the documents
cover. What was measured over all fp32 arguments holds for that architecture and these
versions of the compilers alone, and may be smaller: `with_measured` takes it by
request, and the execution's assumptions then say so.
"""

import dataclasses
import json
import math
from pathlib import Path

from .._errors import UsageError
from ._execution import Execution, InnerConstants
from ._registry import IMPLEMENTATIONS


PATH = Path(__file__).parent / "measured.json"
# On top of the largest error measured.
MARGIN = 1.01
# Not constants of a function of one number.
_FREE = ("unit", "underflow", "accumulator_unit", "operand_normal")
# Attention, MLPs and routers run in torch's and other libraries' kernels.
MEASURED_KINDS = ("mamba1", "mamba2", "mamba3", "selective_scan", "chunk_scan")


def documented_sets() -> dict[str, InnerConstants]:
    """The documented constants by the name that measurements use."""
    return {
        name: constants
        for one in IMPLEMENTATIONS.values()
        for name, constants in one.documented_constants().items()
    }


def smallest_constants(document: dict, fields: dict) -> dict[str, dict[str, float]]:
    """What would have held, with the margin, for each set of constants.

    All constants of one function are scaled together, by the largest scale of all
    implementations that the set rests on.

    **Arguments:**

    - `document`: of `analysis.kernel_constants`.
    - `fields`: names of the constants of each function.

    **Raises:** `UsageError` where a function is missing, or a documented constant does
    not hold.
    """
    scales: dict[str, dict[str, float]] = {name: {} for name in documented_sets()}
    for name, row in document["functions"].items():
        if "error" in row:
            raise UsageError(
                f"{name} was not measured: {row['error']}",
                hint="run python -m analysis.kernel_constants with a larger --budget",
            )
        scale = row["figures"]["scale"]["largest"]
        broken = row["violations"] + row["broken_claims"]
        wrong = broken or not isinstance(scale, (int, float))
        if row["sets"] and (wrong or not 0.0 <= scale <= 1.0):
            raise UsageError(
                f"the documented constants of {name} do not hold: scale {scale}",
                hint="correct the documented constants before measured ones are used",
            )
        for group in row["sets"]:
            for field in fields[row["reference"]]:
                found = scales[group]
                found[field] = max(found.get(field, 0.0), scale)
    measured = {}
    for group, constants in documented_sets().items():
        measured[group] = {
            field: min(
                getattr(constants, field),
                math.nextafter(getattr(constants, field) * scale * MARGIN, math.inf),
            )
            for field, scale in scales[group].items()
        }
    return measured


def write_measured(document: dict, fields: dict, path: Path = PATH) -> None:
    """Write measured.json from the results of `analysis.kernel_constants`.

    **Raises:** as `smallest_constants`.
    """
    content = {
        "environment": document["environment"],
        "margin": MARGIN,
        "sets": smallest_constants(document, fields),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_measured(path: Path = PATH) -> dict | None:
    """measured.json; None where nothing has been measured.

    **Raises:** `UsageError` for a file that is damaged, or constants above the
    documented ones.
    """
    if not path.exists():
        return None
    hint = "write it again: python -m analysis.kernel_constants --apply"
    try:
        content = json.loads(path.read_text())
        about = content["environment"]
        content["about"] = f"{about['gpu']}, CUDA {about['cuda']}"
        for group, constants in documented_sets().items():
            for field, value in content["sets"][group].items():
                most = getattr(constants, field)
                if not (isinstance(value, float | int) and 0.0 <= value <= most):
                    raise UsageError(
                        f"{path.name}: {field} of {group} is {value}, documented is "
                        f"{most}",
                        hint=hint,
                    )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path.name} is damaged: {error}", hint=hint) from error
    return content


def with_measured(execution: Execution, path: Path = PATH) -> Execution:
    """The execution with measured constants where there are any.

    An execution whose constants were not measured (plain torch on a CPU, Mamba-3's
    steps and its gate by tanh.approx) keeps the documented ones, and says so; so does
    every kind of sublayer but `MEASURED_KINDS`.

    **Raises:** as `read_measured`.
    """
    content = read_measured(path)
    found = None
    if content is not None:
        found = _found(execution.constants, content["sets"])
    if content is None or found is None:
        told = "constants of the arithmetic between stores: documented ones"
        constants = execution.constants
    else:
        told = (
            "constants of the arithmetic between stores: measured over all fp32 "
            f"arguments on {content['about']}, for that GPU alone"
        )
        constants = dataclasses.replace(execution.constants, **found)
    inside = execution.mapped(
        lambda one: with_measured(one, path) if one.kind in MEASURED_KINDS else one
    )
    return dataclasses.replace(
        execution,
        constants=constants,
        **inside,
        assumptions=(*execution.assumptions, told),
    )


def _found(constants: InnerConstants, sets: dict) -> dict | None:
    """The measured values of the set that these constants are, `_FREE` ones apart."""
    own = dataclasses.asdict(constants)
    for group, documented in documented_sets().items():
        theirs = dataclasses.asdict(documented)
        if all(own[name] == theirs[name] for name in own if name not in _FREE):
            return sets[group]
    return None
