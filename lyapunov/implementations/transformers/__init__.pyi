from .implementation import (
    TransformersCudaImplementation as TransformersCudaImplementation,
    TransformersImplementation as TransformersImplementation,
)
from .mamba1 import (
    transformers_decode as transformers_decode,
    transformers_prefill as transformers_prefill,
)
from .runner import Transformers as Transformers
