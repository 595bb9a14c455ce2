"""Mistral's own layout of Codestral Mamba: params.json in place of config.json."""

from typing import Any

from .._settings import unsupported
from ..files._files import quote


def mistral_config(params: dict[str, Any]) -> dict[str, Any]:
    """The configuration of mamba_ssm that Mistral's code makes of its parameters.

    **Raises:** `UnsupportedCheckpointError` for Mistral's Transformers.
    """
    if params.get("model_type") != "mamba":
        raise unsupported(
            "params.json describes a Transformer of Mistral's, or something newer"
            f" (model_type {quote(params.get('model_type'))})"
        )
    same = (
        "vocab_size", "rms_norm", "residual_in_fp32", "fused_add_norm",
        "pad_vocab_size_multiple", "tie_embeddings",
    )  # fmt: skip
    return {
        "d_model": params.get("dim"),
        "n_layer": params.get("n_layers"),
        "ssm_cfg": {"layer": "Mamba2", "ngroups": params.get("n_groups")},
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": False,
        **{key: params[key] for key in same if key in params},
    }
