from ._delta_operators import (
    DeltaOperators as DeltaOperators,
    delta_operators as delta_operators,
    delta_operators_replaced as delta_operators_replaced,
)
from ._flashinfer import FlashInferStep as FlashInferStep
from ._operators import (
    Operators as Operators,
    operators as operators,
    operators_replaced as operators_replaced,
    tuned as tuned,
)
from .runner import Vllm as Vllm
