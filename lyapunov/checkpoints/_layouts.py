"""Which architecture a checkpoint has, and which ones are covered."""

from typing import Any

from .._errors import UnsupportedCheckpointError
from ._checkpoint import Checkpoint
from ._files import listing, quote
from ._mamba1 import (
    Mamba1Layout,
    mamba_ssm_config,
    recognise_mamba1,
    transformers_config,
)


_PLANNED = {  # model_type: what people call it
    "mamba2": "Mamba-2",
    "mamba3": "Mamba-3",
    "falcon_mamba": "Falcon Mamba",
    "jamba": "Jamba",
    "zamba": "Zamba",
    "zamba2": "Zamba2",
    "bamba": "Bamba",
    "falcon_h1": "Falcon-H1",
    "nemotron_h": "Nemotron-H",
    "granitemoehybrid": "Granite 4 hybrid",
}
_SSM_PARTS = ("A_log", "dt_bias", "dt_proj", "x_proj", "ssm", "mamba")
_LIST = "see lyapunov-check --list-architectures"


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
        for name, title in _PLANNED.items()
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
    _refuse_quantised(config)
    model_type = config.get("model_type")
    if model_type == "mamba":
        return recognise_mamba1(checkpoint, transformers_config(config))
    if model_type is None and "d_model" in config and "n_layer" in config:
        layer = (config.get("ssm_cfg") or {}) if isinstance(config, dict) else {}
        layer = layer.get("layer", "Mamba1") if isinstance(layer, dict) else "Mamba1"
        if layer != "Mamba1":
            name = str(layer).lower()
            raise _unsupported(checkpoint, _PLANNED.get(name, quote(layer)), name)
        return recognise_mamba1(checkpoint, mamba_ssm_config(config))
    if model_type is None:
        raise _unsupported(checkpoint, "a model without model_type in config.json", "")
    name = str(model_type)
    raise _unsupported(checkpoint, _PLANNED.get(name, quote(name)), name)


def _refuse_quantised(config: dict[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else None
            if method is None and isinstance(found, dict):
                method = "bitsandbytes" if "load_in_4bit" in found else None
            raise UnsupportedCheckpointError(
                f"a quantised model ({quote(method or key)}), which is not covered",
                hint="check the checkpoint that it was quantised from",
            )


def _unsupported(
    checkpoint: Checkpoint, title: str, name: str
) -> UnsupportedCheckpointError:
    parts = {
        tensor: part
        for tensor in checkpoint.names()
        for part in _SSM_PARTS
        if part in tensor
    }
    if name not in _PLANNED and not parts:
        return UnsupportedCheckpointError(
            f"no SSM layer in {quote(checkpoint.source, 200)}"
            f" ({title}): nothing to check",
            hint=f"covered: mamba1; {_LIST}",
        )
    seen = f" (it holds {listing(list(parts))})" if parts else ""
    status = "not covered yet; it is planned" if name in _PLANNED else "not covered"
    return UnsupportedCheckpointError(
        f"{title} is {status}{seen}", hint=f"covered: mamba1; {_LIST}"
    )
