"""All families: what is covered, which one a configuration describes, why none."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from .._family import Family
from .._settings import LIST_HINT
from ..files._files import listing, quote
from ._bamba import BAMBA
from ._falcon_h1 import FALCON_H1
from ._gpt_neox import GPT_NEOX
from ._granite import GRANITE
from ._jamba import JAMBA
from ._kimi_linear import KIMI_LINEAR, LING
from ._lara_mini import LARA_MINI
from ._lfm2 import LFM2
from ._llama import LLAMA, OLMO, OLMO2
from ._mamba1 import FALCON_MAMBA, MAMBA1
from ._mamba2 import MAMBA2
from ._mamba3 import MAMBA3
from ._megatron import MEGATRON
from ._minimax import MINIMAX
from ._nemotron_h import NEMOTRON_H
from ._not_covered import uncovered
from ._olmo_hybrid import OLMO_HYBRID
from ._openelm import OPENELM
from ._qwen3_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from ._recurrent_gemma import RECURRENT_GEMMA
from ._rwkv import RWKV
from ._xlstm import XLSTM
from ._zamba import ZAMBA, ZAMBA2


if TYPE_CHECKING:
    from .._checkpoint import Checkpoint
    from .._network import NetworkLayout


FAMILIES: dict[str, Family] = {
    "mamba1": MAMBA1,
    "falcon_mamba": FALCON_MAMBA,
    "mamba2": MAMBA2,
    "mamba3": MAMBA3,
    "jamba": JAMBA,
    "zamba": ZAMBA,
    "zamba2": ZAMBA2,
    "bamba": BAMBA,
    "granitemoehybrid": GRANITE,
    "nemotron_h": NEMOTRON_H,
    "falcon_h1": FALCON_H1,
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5_MOE,
    "olmo_hybrid": OLMO_HYBRID,
    "kimi_linear": KIMI_LINEAR,
    "bailing_hybrid": LING,
    "lara_mini": LARA_MINI,
    "lfm2": LFM2,
    "recurrent_gemma": RECURRENT_GEMMA,
    "rwkv": RWKV,
    "minimax": MINIMAX,
    "xlstm": XLSTM,
    "megatron": MEGATRON,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "olmo": OLMO,
    "olmo2": OLMO2,
    "openelm": OPENELM,
}
"""By the name that the report uses: transformers' model_type but for Mamba-1's."""

_FOR_ALL = (
    "fp32, fp16, bf16 and fp64 weights, in one file or sharded",
    "tied and untied heads",
)
_FOR_ALL_QUANTISED = (
    "quantised weights, read as codes times scales (compressed-tensors, FP8 blocks,"
    " ModelOpt, GPTQ, AWQ, bitsandbytes, torchao of 8 bits)",
)
_FOR_NONE = (
    "other quantised weights (quark, HQQ, AQLM, MXFP6), and activations that are"
    " quantised in front of products",
)
_MODEL_TYPES = {
    model_type: name
    for name, family in FAMILIES.items()
    if "transformers" in family.readers
    for model_type in family.model_types or (name,)
}
_SSM_LAYERS = {"Mamba1": "mamba1", "Mamba2": "mamba2", "Mamba3": "mamba3"}

_SSM_PARTS = ("a_log", "dt_bias", "dt_proj", "x_proj", "ssm", "mamba")


def list_architectures() -> list[dict[str, Any]]:
    """List what is covered: `name`, `title`, `layouts`, `covered`, `not_covered`
    each."""
    return [
        {
            "name": name,
            "title": family.title,
            "layouts": list(family.layouts),
            "covered": [*_FOR_ALL, *_FOR_ALL_QUANTISED, *family.covered],
            "not_covered": [*_FOR_NONE, *family.not_covered],
        }
        for name, family in FAMILIES.items()
    ]


def recognise(checkpoint: "Checkpoint") -> "NetworkLayout":
    """Tell the architecture and hold the tensors to the configuration.

    **Arguments:**

    - `checkpoint`: an opened checkpoint; only names, shapes and types are looked at
        (and head against embedding, where they are tied and both are stored).

    **Returns:** the layout, which reads layers.

    **Raises:** `UnsupportedCheckpointError` for another family;
    `CorruptCheckpointError` where configuration and tensors disagree.
    """
    from .._network import recognise_network

    config, source, names = checkpoint.config, checkpoint.source, checkpoint.names()
    name, layout = layout_of(config, source, names)
    found = FAMILIES[name].readers[layout](config, checkpoint.tensors)
    layout_found = recognise_network(checkpoint, name, *found)
    network = dataclasses.replace(layout_found.config, asks=_asked_of_servers(config))
    return dataclasses.replace(layout_found, config=network)


STATE_KEYS = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")
"""Of `config.json`: in which format servers keep the state."""


def _asked_of_servers(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What there is of `STATE_KEYS`; of a model of several parts in the text's."""
    text = config.get("text_config")
    both = {**config, **text} if isinstance(text, dict) else config
    return tuple((key, str(both[key])) for key in STATE_KEYS if both.get(key))


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
        if isinstance(layer, str) and layer in _SSM_LAYERS:
            return _SSM_LAYERS[layer], "mamba_ssm"
        raise _unsupported(str(layer).lower(), f"layer {quote(layer)}", source, names)
    if model_type is None:
        raise _unsupported("", "config.json without a model_type", source, names)
    found = uncovered(config)
    if found is not None:
        name, family = found
        more = f", and has {family.beside}" if family.beside else ""
        raise UnsupportedCheckpointError(
            f"{family.title} (model_type {quote(name)}) is not covered as a checkpoint;"
            f" it recurs by {family.recurrence}{more}: {quote(source, 200)}",
            hint=family.hint,
        )
    title = f"model_type {quote(model_type)}"
    raise _unsupported(str(model_type), title, source, names)


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
    name = name[:100].lower()
    # nobody who types qwen3 means qwen3_next
    known = [one for one in _MODEL_TYPES if not one.startswith(f"{name}_")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"nearest: {', '.join(near)}; {LIST_HINT}" if near else LIST_HINT
    if names is not None and not parts:
        seen = " (no SSM layer among its tensors)"
    return UnsupportedCheckpointError(
        f"{title} is not covered: {shown}{seen}", hint=hint
    )
