"""What implementations promise: a format for every site, and the constants behind."""

from ._choose import executions_for
from ._execution import Execution
from .mamba_ssm import mamba_ssm_decode, mamba_ssm_prefill
from .transformers import transformers_decode, transformers_prefill


__all__ = [
    "Execution",
    "executions_for",
    "mamba_ssm_decode",
    "mamba_ssm_prefill",
    "transformers_decode",
    "transformers_prefill",
]
