"""What a family of models is: what is covered of it, and who reads it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._parts import Described


class Family(NamedTuple):
    """One family of models."""

    title: str
    layouts: tuple[str, ...]
    """How its files may look, in words."""
    readers: Mapping[str, Callable[[dict[str, Any], dict[str, Any]], Described]]
    """By layout: transformers, mamba_ssm, megatron. Each is given the configuration and
    the stored tensors by name, of which shapes alone are looked at."""
    covered: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    """In config.json, where they are not the family's name."""


SILU = "activations of the mixer other than silu"
NO_EXPONENT = "attention has no state of fixed size: no exponent, not a recurrence"
POSITIONS = "positions of other kinds (rope_type)"


def of_transformers(model_type: str) -> str:
    """The words for files that transformers saves."""
    return (
        f"transformers (model_type {model_type}): model.safetensors or"
        " pytorch_model.bin, one file or sharded"
    )


def of_llama_cpp(architecture: str) -> str:
    """The words for files that llama.cpp's converter writes."""
    return (
        f"llama.cpp (GGUF, architecture {architecture}): one file or split; F32, F16,"
        " BF16, Q8_0, and other blocks with the extra gguf"
    )
