"""Small models of every family: settings, random weights, folders to load them from.

Some are made by transformers, whose own logits are the reference then.
"""

from . import (
    configurations,
    hard,
    llama_cpp,
    mamba1,
    mamba3,
    mamba_ssm,
    megatron,
    quantised,
    quantised_models,
    transformers,
)


__all__ = [
    "configurations",
    "hard",
    "llama_cpp",
    "mamba1",
    "mamba3",
    "mamba_ssm",
    "megatron",
    "quantised",
    "quantised_models",
    "transformers",
]
