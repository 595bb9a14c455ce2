"""Models read from GGUF against llama.cpp's own logits, where it is installed.

pip install llama-cpp-python: it is compiled from source, some ten minutes.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.llama_cpp.cases import CASES, EPSILON, OTHERS
from oracles.checkpoints.llama_cpp.files import written
from oracles.checkpoints.transformers import make

from ...helpers import assert_within
from .test_models_are_read import TOKENS, file_of, network_of


library = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")


# llama.cpp calls it as long as the process lives
QUIET = library.llama_log_callback(lambda *_: None)
library.llama_log_set(QUIET, ctypes.c_void_p(0))

WIDE = {
    "vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 2, "state_size": 64,
    "num_heads": 8, "head_dim": 64, "n_groups": 1, "tie_word_embeddings": False,
    "layer_norm_epsilon": EPSILON,
}  # fmt: skip
"""A Mamba-2 whose rows are whole blocks of 256."""


def llama_logits(path: Path, vocab_size: int) -> np.ndarray:
    """llama.cpp's logits of all tokens, computed in fp32 on one thread, with keys and
    values kept in fp32."""
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
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_llama_cpp_computes_the_same(name):
    """Assert llama.cpp's logits of a file in fp32, which holds names, transposes,
    settings and what llama.cpp makes of them."""
    network, _, allowed = network_of(name)
    theirs = llama_logits(file_of(name), network.config.vocab_size)
    ours = np.asarray(lyapunov.load(file_of(name)).logits(TOKENS))
    assert_within(ours, theirs, allowed, name)


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"])
def test_files_that_llama_cpp_quantised(mix, tmp_path):
    """Assert the numbers of a file that llama.cpp's own quantiser wrote, and that its
    logits are nearer to ours of that file than to the original's.

    They are not the same: llama.cpp rounds activations to 8-bit blocks in front of
    products with blocks, on a CPU.
    """
    import gguf

    plain = written(make("mamba2", **WIDE), tmp_path / "plain.gguf")
    path = tmp_path / "model.gguf"
    settings = library.llama_model_quantize_default_params()
    settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{mix}")
    settings.nthread = 1
    places = str(plain).encode(), str(path).encode()
    assert library.llama_model_quantize(*places, ctypes.byref(settings)) == 0
    model = lyapunov.load(path)
    tensors = {one.name: one for one in gguf.GGUFReader(path).tensors}
    for ours, theirs in (
        ("backbone.embeddings.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("backbone.layers.1.mixer.in_proj.weight", "blk.1.ssm_in.weight"),
        ("backbone.layers.1.mixer.out_proj.weight", "blk.1.ssm_out.weight"),
    ):
        stored = tensors[theirs]
        due = gguf.quants.dequantize(stored.data, stored.tensor_type)
        assert model.layout.stored(ours).tobytes() == due.tobytes()
    quantised, original = (
        np.asarray(one.logits(TOKENS)) for one in (model, lyapunov.load(plain))
    )
    theirs = llama_logits(path, 256)
    near, far = (np.linalg.norm(theirs - one) for one in (quantised, original))
    size = np.linalg.norm(theirs)
    print(f"{mix}: llama.cpp {near / size:.2g} from ours, {far / size:.2g} from fp32")
    assert near > 0
    assert near < far or mix == "Q8_0"  # whose weights move less than that rounding
