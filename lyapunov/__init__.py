"""Stability and rounding of state-space models.

Names are loaded when they are asked for, so that `lyapunov-check --help` does not
wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING

from ._version import __version__
from ._xla import set_flags


if TYPE_CHECKING:
    from . import (
        bounds as bounds,
        checkpoints as checkpoints,
        executions as executions,
        exponents as exponents,
        flows as flows,
        formats as formats,
        models as models,
        recurrences as recurrences,
        runners as runners,
        symbolic as symbolic,
    )
    from ._audit import audit as audit
    from ._audit_results import AuditReport as AuditReport
    from ._check import check as check
    from ._errors import LyapunovError as LyapunovError
    from ._from_torch import from_torch as from_torch
    from ._load import load as load
    from ._results import (
        Estimate as Estimate,
        Measured as Measured,
        Report as Report,
        UpperBound as UpperBound,
    )
    from ._trace import HeadRecord as HeadRecord, SublayerRecord as SublayerRecord
    from ._trainer import StabilityCallback as StabilityCallback
    from .exponents import (
        QR as QR,
        ClosedForm as ClosedForm,
        Converged as Converged,
        ParallelInTime as ParallelInTime,
        TangentGrowth as TangentGrowth,
        lyapunov_spectrum as lyapunov_spectrum,
        lyapunov_spectrum_of as lyapunov_spectrum_of,
    )
    from .runners import trace as trace, write_dump as write_dump


__all__ = [
    "QR",
    "AuditReport",
    "ClosedForm",
    "Converged",
    "Estimate",
    "HeadRecord",
    "LyapunovError",
    "Measured",
    "ParallelInTime",
    "Report",
    "StabilityCallback",
    "SublayerRecord",
    "TangentGrowth",
    "UpperBound",
    "__version__",
    "audit",
    "bounds",
    "check",
    "checkpoints",
    "executions",
    "exponents",
    "flows",
    "formats",
    "from_torch",
    "load",
    "lyapunov_spectrum",
    "lyapunov_spectrum_of",
    "models",
    "recurrences",
    "runners",
    "symbolic",
    "trace",
    "write_dump",
]

set_flags()

_HOMES = {
    "AuditReport": "._audit_results",
    "QR": ".exponents",
    "ClosedForm": ".exponents",
    "Converged": ".exponents",
    "Estimate": "._results",
    "HeadRecord": "._trace",
    "LyapunovError": "._errors",
    "Measured": "._results",
    "ParallelInTime": ".exponents",
    "Report": "._results",
    "StabilityCallback": "._trainer",
    "SublayerRecord": "._trace",
    "TangentGrowth": ".exponents",
    "UpperBound": "._results",
    "audit": "._audit",
    "check": "._check",
    "from_torch": "._from_torch",
    "load": "._load",
    "lyapunov_spectrum": ".exponents",
    "lyapunov_spectrum_of": ".exponents",
    "trace": ".runners",
    "write_dump": ".runners",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lyapunov' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
