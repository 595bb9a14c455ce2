"""Families: which are covered, which one it is, and why another is refused."""

from collections.abc import Iterable
from typing import Any

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ._files import listing, quote


PLANNED = {  # model_type: what people call it
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
LIST_HINT = "covered: mamba1; see lyapunov-check --list-architectures"

_SSM_PARTS = ("a_log", "dt_bias", "dt_proj", "x_proj", "ssm", "mamba")


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
            "LoRA adapters of PEFT, against their base (--against)",
        ],
        "not_covered": [
            "quantised weights (GPTQ, AWQ, bitsandbytes, GGUF, fp8, integers)",
            "adapters other than LoRA (IA3, DoRA, ...) that are not merged",
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


def layout_of(
    config: dict[str, Any], source: str, names: Iterable[str] | None = None
) -> str:
    """Which layout a configuration describes: "transformers" or "mamba_ssm".

    **Arguments:**

    - `config`: `config.json`.
    - `source`: what the user gave, for the error.
    - `names`: the tensors, where they are known already.

    **Raises:** `UnsupportedCheckpointError` for every other family.
    """
    refuse_quantised(config)
    model_type = config.get("model_type")
    if model_type == "mamba":
        return "transformers"
    if model_type is None and "d_model" in config and "n_layer" in config:
        ssm = config.get("ssm_cfg") or {}
        if not isinstance(ssm, dict):
            raise CorruptCheckpointError(
                "config.json: ssm_cfg is not an object",
                hint="download config.json again",
            )
        layer = ssm.get("layer", "Mamba1")
        if layer == "Mamba1":
            return "mamba_ssm"
        raise _unsupported(str(layer).lower(), f"layer {quote(layer)}", source, names)
    if model_type is None:
        raise _unsupported("", "config.json without a model_type", source, names)
    title = f"model_type {quote(model_type)}"
    raise _unsupported(str(model_type), title, source, names)


def refuse_quantised(config: dict[str, Any]) -> None:
    """Refuse what GPTQ, AWQ, bitsandbytes and their kin leave behind."""
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if not found:
            continue
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method is None and isinstance(found, dict) and "load_in_4bit" in found:
            method = "bitsandbytes"
        raise UnsupportedCheckpointError(
            f"a quantised model ({quote(method or key)}), which is not covered",
            hint="check the checkpoint that it was quantised from",
        )


def _unsupported(
    name: str, title: str, source: str, names: Iterable[str] | None
) -> UnsupportedCheckpointError:
    shown = quote(source, 200)
    parts = [
        tensor
        for tensor in names or ()
        if any(part in tensor.lower() for part in _SSM_PARTS)
    ]
    if name not in PLANNED and names is not None and not parts:
        return UnsupportedCheckpointError(
            f"no SSM layer in {shown} ({title}): nothing to check", hint=LIST_HINT
        )
    seen = f" (it holds {listing(parts)})" if parts else ""
    if name in PLANNED:
        return UnsupportedCheckpointError(
            f"{PLANNED[name]} is not covered yet; it is planned: {shown}{seen}",
            hint=LIST_HINT,
        )
    return UnsupportedCheckpointError(
        f"{title} is not covered: {shown}{seen}", hint=LIST_HINT
    )
