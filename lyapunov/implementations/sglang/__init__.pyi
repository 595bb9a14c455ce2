from ._operators import (
    operators as operators,
    operators_replaced as operators_replaced,
    tuned as tuned,
)
from .runner import Sglang as Sglang
