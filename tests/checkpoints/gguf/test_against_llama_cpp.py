"""Models read from GGUF against llama.cpp's own logits, where it is installed.

pip install llama-cpp-python: it is compiled from source, some ten minutes.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.llama_cpp.cases import CASES

from ...helpers import assert_within
from .test_models_are_read import TOKENS, file_of, network_of


library = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")


def llama_logits(path: Path, vocab_size: int) -> np.ndarray:
    """llama.cpp's logits of all tokens, computed in fp32 on one thread, with keys and
    values kept in fp32."""
    quiet = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(quiet, ctypes.c_void_p(0))
    settings = library.llama_model_default_params()
    settings.use_mmap = False
    network = library.llama_model_load_from_file(str(path).encode(), settings)
    assert network, "llama.cpp does not load it"
    run = library.llama_context_default_params()
    run.n_ctx, run.n_batch, run.n_threads = 64, 64, 1
    run.type_k, run.type_v, run.flash_attn_type = 0, 0, 0
    context = library.llama_init_from_model(network, run)
    batch = library.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert library.llama_decode(context, batch) == 0
    rows = [
        np.ctypeslib.as_array(
            library.llama_get_logits_ith(context, i), (vocab_size,)
        ).astype(float)
        for i in range(len(TOKENS))
    ]
    library.llama_free(context)
    library.llama_model_free(network)
    return np.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same(name):
    """Assert llama.cpp's logits of a file in fp32, which holds names, transposes,
    settings and what llama.cpp makes of them."""
    network, _, allowed = network_of(name)
    theirs = llama_logits(file_of(name), network.config.vocab_size)
    ours = np.asarray(lyapunov.load(file_of(name)).logits(TOKENS))
    assert_within(ours, theirs, allowed, name)
