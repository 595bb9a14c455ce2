"""The model: transformers' Mamba-1, fresh or from a folder, and its device."""

from pathlib import Path
from typing import Any

import torch
from transformers import MambaConfig, MambaForCausalLM


Model = Any  # a MambaForCausalLM, whose parts a type checker takes for tensors


def fresh(settings: dict[str, Any]) -> Model:
    """A model with its initial weights."""
    return MambaForCausalLM(MambaConfig(**settings))


def load(folder: Path) -> Model:
    """The model of a folder, in fp32."""
    return MambaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def choose_device(name: str) -> torch.device:
    """The device of that name or, for auto, the GPU if there is one; without tf32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
