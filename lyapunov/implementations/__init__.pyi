from ._choose import executions_for as executions_for
from ._constants import (
    read_measured as read_measured,
    with_measured as with_measured,
    write_measured as write_measured,
)
from ._execution import Execution as Execution, any_order as any_order
from ._implementation import (
    AbstractImplementation as AbstractImplementation,
    Defect as Defect,
    Flag as Flag,
    PassedOver as PassedOver,
    Reach as Reach,
    RefusedError as RefusedError,
    Runner as Runner,
)
from ._quantised_activations import OPERANDS as OPERANDS
from ._reference import Reference as Reference
from ._registry import (
    IMPLEMENTATIONS as IMPLEMENTATIONS,
    implementation_named as implementation_named,
)
from ._run import trace as trace
from ._segment import Segment as Segment
from ._trace import (
    HeadRecord as HeadRecord,
    SublayerRecord as SublayerRecord,
    Trace as Trace,
)
from .dump import File as File, write_dump as write_dump
from .emulated import Emulated as Emulated
from .mamba_ssm import (
    MambaSsm as MambaSsm,
    mamba_ssm_decode as mamba_ssm_decode,
    mamba_ssm_prefill as mamba_ssm_prefill,
)
from .transformers import (
    Transformers as Transformers,
    transformers_decode as transformers_decode,
    transformers_prefill as transformers_prefill,
)
