"""RMS norms as vLLM's forms of PyTorch compute them, compiled or eager."""

from typing import Any


def normalised(wide: Any, epsilon: float) -> Any:
    """The rows of an fp32 tensor over their root mean square."""
    import torch

    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


def weighted(hat: Any, weight: Any, dtype: Any, eager: bool) -> Any:
    """The fp32 hat times the weight: rounded before it, too, where nothing is
    compiled."""
    if eager:
        return hat.to(dtype) * weight
    return (hat * weight.float()).to(dtype)
