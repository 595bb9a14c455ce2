"""Networks of transformers written as llama.cpp's converter writes them to GGUF.

Names, transposes and metadata follow llama.cpp's `conversion/` (the version inside
llama-cpp-python 0.3.36): A = -exp(A_log), norms plus 1, rows of queries and keys in
pairs, multipliers folded into matrices, projections split. The gguf package writes the
file; nothing is shared with the reader that this judges.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .hybrids import bamba, falcon_h1, granite, nemotron, qwen3_next
from .mamba import jamba, mamba, mamba2
from .parts import Tensors


Store = Callable[[str, np.ndarray], "tuple[np.ndarray, Any]"]
"""From a name in the file and fp32 numbers to what is stored, and gguf's type of it;
None: numbers of the array's own type."""

ARCHITECTURES = {
    "mamba": "mamba",
    "falcon_mamba": "mamba",
    "mamba2": "mamba2",
    "falcon_h1": "falcon-h1",
    "bamba": "granitehybrid",
    "granitemoehybrid": "granitehybrid",
    "nemotron_h": "nemotron_h",
    "jamba": "jamba",
    "qwen3_next": "qwen3next",
}
"""llama.cpp's names, by transformers' model_type."""


def in_fp32(name: str, array: np.ndarray) -> tuple[np.ndarray, Any]:
    """Store everything in fp32, as `--outtype f32` does."""
    del name
    return array, None


def in_blocks(kind: str, least: int = 32) -> Store:
    """Store matrices in blocks that the gguf package makes, all else in fp32.

    **Arguments:**

    - `kind`: a name of `gguf.GGMLQuantizationType`.
    - `least`: what has to divide rows; others stay in fp32.
    """
    import gguf

    code = gguf.GGMLQuantizationType[kind]

    def store(name: str, array: np.ndarray) -> tuple[np.ndarray, Any]:
        kept = ("_norm", "conv1d", "ssm_a", "ssm_d", "ffn_gate_inp")
        matrix = array.ndim > 1 and name.endswith(".weight")
        if not matrix or array.shape[-1] % least or any(one in name for one in kept):
            return array, None
        return gguf.quants.quantize(array, code), code

    return store


def written(
    network: Any,
    path: Path,
    store: Store = in_fp32,
    change: Callable[[Any], None] | None = None,
    tokens: int | None = None,
) -> Path:
    """Write a network of transformers as llama.cpp's converter does.

    **Arguments:**

    - `change`: of the gguf package's writer, before it writes.
    - `tokens`: how many tokens to name; None: no tokenizer.
    """
    import gguf

    config = network.config
    architecture = ARCHITECTURES[config.model_type]
    experts = getattr(config, "n_routed_experts", None)
    if config.model_type == "nemotron_h" and "moe" in config.layers_block_type:
        assert experts
        architecture = "nemotron_h_moe"
    writer = gguf.GGUFWriter(None, architecture)
    state = {
        name: tensor.detach().float().numpy().copy()
        for name, tensor in network.state_dict().items()
    }
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for name, array in _WRITERS[config.model_type](config, state, writer):
        stored, code = store(name, np.ascontiguousarray(array))
        writer.add_tensor(name, stored, raw_dtype=code)
    assert not state, f"not written: {list(state)}"
    writer.add_vocab_size(config.vocab_size)
    if tokens is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"<{i}>" for i in range(tokens)])
        writer.add_token_types([1] * tokens)
    if change is not None:
        change(writer)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_WRITERS: dict[str, Callable[[Any, dict[str, Any], Any], Tensors]] = {
    "mamba": mamba,
    "falcon_mamba": mamba,
    "mamba2": mamba2,
    "falcon_h1": falcon_h1,
    "bamba": bamba,
    "granitemoehybrid": granite,
    "nemotron_h": nemotron,
    "jamba": jamba,
    "qwen3_next": qwen3_next,
}
