from . import (
    arithmetic as arithmetic,
    bounds as bounds,
    checkpoints as checkpoints,
    exponents as exponents,
    findings as findings,
    formats as formats,
    implementations as implementations,
    mixers as mixers,
    models as models,
    questions as questions,
    recurrences as recurrences,
    report as report,
    results as results,
    serving as serving,
    sublayers as sublayers,
    symbolic as symbolic,
)
from ._errors import LyapunovError as LyapunovError
from ._version import __version__ as __version__
from .exponents import (
    QR as QR,
    ClosedForm as ClosedForm,
    Converged as Converged,
    ParallelInTime as ParallelInTime,
    SpectrumResult as SpectrumResult,
    TangentGrowth as TangentGrowth,
    lyapunov_spectrum as lyapunov_spectrum,
    lyapunov_spectrum_of as lyapunov_spectrum_of,
)
from .formats import Format as Format
from .implementations import (
    Execution as Execution,
    HeadRecord as HeadRecord,
    SublayerRecord as SublayerRecord,
    executions_for as executions_for,
    trace as trace,
    write_dump as write_dump,
)
from .mixers import Mixer as Mixer, mixer as mixer
from .models import Model as Model, from_torch as from_torch, load as load
from .questions import (
    StabilityCallback as StabilityCallback,
    audit as audit,
    check as check,
    check_blocks as check_blocks,
    check_mixer as check_mixer,
    rank_weights as rank_weights,
    training_metrics as training_metrics,
    watch as watch,
)
from .results import (
    AuditReport as AuditReport,
    Finding as Finding,
    Report as Report,
    UpperBound as UpperBound,
    WeightRanking as WeightRanking,
)
