from ._flashinfer import FlashInferStep as FlashInferStep
from ._operators import (
    Operators as Operators,
    operators as operators,
    operators_replaced as operators_replaced,
    tuned as tuned,
)
from .runner import Vllm as Vllm
