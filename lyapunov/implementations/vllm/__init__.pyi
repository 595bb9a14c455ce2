from .runner import Vllm as Vllm
