"""What implementations promise: a format for every site, and the constants behind."""

from ._execution import Execution
from .mamba_ssm import mamba_ssm_prefill
from .transformers import transformers_prefill


__all__ = ["Execution", "mamba_ssm_prefill", "transformers_prefill"]
