"""Which architecture a checkpoint has, and which ones are covered."""

from typing import Any

from ._checkpoint import Checkpoint
from ._families import PLANNED, layout_of
from ._mamba1 import Mamba1Layout, recognise_mamba1
from ._mamba1_config import mamba_ssm_config, transformers_config


def list_architectures() -> list[dict[str, Any]]:
    """What is covered: `name`, `title`, `layouts`, `covered` and `not_covered` each."""
    supported = {
        "name": "mamba1",
        "title": "Mamba-1",
        "layouts": [
            "transformers (model_type mamba): model.safetensors or"
            " pytorch_model.bin, one file or sharded",
            "mamba_ssm: pytorch_model.bin or model.safetensors",
        ],
        "covered": [
            "fp32, fp16, bf16 and fp64 weights",
            "tied and untied heads, padded vocabularies",
            "biases of the projections and of the convolution, or none",
        ],
        "not_covered": [
            "quantised weights (GPTQ, AWQ, bitsandbytes, GGUF, fp8, integers)",
            "adapters that are not merged (LoRA)",
            "activations other than silu",
            "mamba_ssm models with LayerNorm, attention or MLP layers",
        ],
    }
    planned = [
        {
            "name": name,
            "title": title,
            "layouts": [],
            "covered": [],
            "not_covered": ["planned"],
        }
        for name, title in PLANNED.items()
    ]
    return [supported, *planned]


def recognise(checkpoint: Checkpoint) -> Mamba1Layout:
    """Tell the architecture and hold the tensors to the configuration.

    **Arguments:**

    - `checkpoint`: an opened checkpoint; only names, shapes and types are looked at
        (and head against embedding, where they are tied and both are stored).

    **Returns:** the layout, which reads layers.

    **Raises:** `UnsupportedCheckpointError` for another family, a quantised model or
    one without an SSM layer; `CorruptCheckpointError` where configuration and tensors
    disagree.
    """
    config = checkpoint.config
    layout = layout_of(config, checkpoint.source, checkpoint.names())
    sizes = transformers_config if layout == "transformers" else mamba_ssm_config
    return recognise_mamba1(checkpoint, sizes(config))
