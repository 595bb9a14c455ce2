from ._recorder import Recorder as Recorder
from ._responses import (
    of_sglang as of_sglang,
    of_vllm as of_vllm,
    write_logprobs as write_logprobs,
)
from .sglang import forward_hook as forward_hook, sglang_hook as sglang_hook
from .vllm import vllm_hook as vllm_hook
