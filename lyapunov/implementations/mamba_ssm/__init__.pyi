from .implementation import MambaSsmImplementation as MambaSsmImplementation
from .mamba1 import (
    mamba_ssm_decode as mamba_ssm_decode,
    mamba_ssm_prefill as mamba_ssm_prefill,
)
from .runner import MambaSsm as MambaSsm
