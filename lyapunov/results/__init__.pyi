from ._audit import (
    AuditReport as AuditReport,
    AuditSummary as AuditSummary,
    FirstViolation as FirstViolation,
    KnownDefect as KnownDefect,
    LayerAudit as LayerAudit,
    LogitsAudit as LogitsAudit,
    VariantAudit as VariantAudit,
)
from ._check import (
    AdapterCoverage as AdapterCoverage,
    CheckpointFacts as CheckpointFacts,
    Finding as Finding,
    FunctionDistance as FunctionDistance,
    LayerChange as LayerChange,
    ParameterChangeReport as ParameterChangeReport,
    PrecisionReport as PrecisionReport,
    QuantisationFacts as QuantisationFacts,
    ReferenceLoss as ReferenceLoss,
    Report as Report,
    StoredMatrix as StoredMatrix,
    Summary as Summary,
    TokensFacts as TokensFacts,
)
from ._ranking import (
    KeptWeights as KeptWeights,
    MovedLogits as MovedLogits,
    RankedMatrix as RankedMatrix,
    RankedSublayer as RankedSublayer,
    WeightRanking as WeightRanking,
)
from ._rows import (
    Decisions as Decisions,
    Exponents as Exponents,
    HeadExponents as HeadExponents,
    KeyExpansion as KeyExpansion,
    LayerDivergence as LayerDivergence,
    LayerExponents as LayerExponents,
    LayerGrowth as LayerGrowth,
    MemoryTokens as MemoryTokens,
    OutputDivergence as OutputDivergence,
    TextDivergence as TextDivergence,
    UpperBound as UpperBound,
)
