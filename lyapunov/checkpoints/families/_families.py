"""Families: which one a configuration describes, and why another is refused."""

import difflib
from collections.abc import Iterable
from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import listing, quote
from ._architectures import FAMILIES, PLANNED
from ._not_covered import uncovered


LIST_HINT = "what is covered: lyapunov-check --list-architectures"

_MODEL_TYPES = {"mamba": "mamba1"} | {
    name: name for name in FAMILIES if name not in ("mamba1", "mamba3", "megatron")
}
_SSM_LAYERS = {"Mamba1": "mamba1", "Mamba2": "mamba2", "Mamba3": "mamba3"}

_SSM_PARTS = ("a_log", "dt_bias", "dt_proj", "x_proj", "ssm", "mamba")


def layout_of(
    config: dict[str, Any], source: str, names: Iterable[str] | None = None
) -> tuple[str, str]:
    """What a configuration describes: (architecture, layout).

    Layouts are "transformers", "mamba_ssm" and "megatron".

    **Arguments:**

    - `config`: `config.json`.
    - `source`: what the user gave, for the error.
    - `names`: the tensors, where they are known already.

    **Raises:** `UnsupportedCheckpointError` for every other family.
    """
    refuse_quantised(config)
    model_type = config.get("model_type")
    if model_type == "megatron":
        return "megatron", "megatron"
    if isinstance(model_type, str) and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type], "transformers"
    if model_type is None and "d_model" in config and "n_layer" in config:
        ssm = config.get("ssm_cfg") or {}
        if not isinstance(ssm, dict):
            raise CorruptCheckpointError(
                "config.json: ssm_cfg is not an object",
                hint="download config.json again",
            )
        layer = ssm.get("layer", "Mamba1")
        if layer in _SSM_LAYERS:
            return _SSM_LAYERS[layer], "mamba_ssm"
        raise _unsupported(str(layer).lower(), f"layer {quote(layer)}", source, names)
    if model_type is None:
        raise _unsupported("", "config.json without a model_type", source, names)
    found = uncovered(config)
    if found is not None:
        name, family = found
        raise UnsupportedCheckpointError(
            f"{family.title} (model_type {quote(name)}) is not covered as a"
            f" checkpoint; it recurs by {family.recurrence}: {quote(source, 200)}",
            hint=family.hint,
        )
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
    seen = f" (it holds {listing(parts)})" if parts else ""
    if name in PLANNED:
        return UnsupportedCheckpointError(
            f"{PLANNED[name]} is not covered yet; it is planned: {shown}{seen}",
            hint=LIST_HINT,
        )
    near = difflib.get_close_matches(name[:100].lower(), _MODEL_TYPES, n=3, cutoff=0.6)
    hint = f"nearest: {', '.join(near)}; {LIST_HINT}" if near else LIST_HINT
    if names is not None and not parts:
        seen = " (no SSM layer among its tensors)"
    return UnsupportedCheckpointError(
        f"{title} is not covered: {shown}{seen}", hint=hint
    )
