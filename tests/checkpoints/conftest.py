"""Checkpoints as people have them, made by the libraries that write them."""

import json
import os
from pathlib import Path

import pytest


# transformers and huggingface_hub read these when they are imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
}


def _transformers_model(dtype="float32", **settings):
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**{**SIZES, **settings}))
    with torch.no_grad():  # away from the initial values, which repeat themselves
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(getattr(torch, dtype)).eval()


@pytest.fixture
def transformers_model():
    """A function that makes a small `MambaForCausalLM` with random weights."""
    return _transformers_model


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model with transformers, and returns model and folder."""

    def save(name="model", max_shard_size="5GB", **settings):
        model = _transformers_model(**settings)
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return model, folder

    return save


@pytest.fixture
def mamba_ssm_saved(tmp_path):
    """A function that saves weights as `MambaLMHeadModel.save_pretrained` does.

    Names, padding and config.json are those of mamba_ssm 2.3.2.
    """

    def save(name="mamba_ssm", dtype="float32", tie=True, **changes):
        import torch

        padded = 56  # 53 up to a multiple of 8
        model = _transformers_model(vocab_size=padded, tie_word_embeddings=tie)
        wanted = getattr(torch, dtype)
        state = {
            key.replace("backbone.embeddings.", "backbone.embedding."): (
                # mamba_ssm keeps these two in fp32, whatever the rest is in
                value if key.endswith((".A_log", ".D")) else value.to(wanted)
            )
            for key, value in model.state_dict().items()
        }
        if tie:
            state["lm_head.weight"] = state["backbone.embedding.weight"]
        config = {
            "d_model": 32,
            "d_intermediate": 0,
            "n_layer": 2,
            "vocab_size": 53,
            "ssm_cfg": {"d_state": 4},
            "attn_layer_idx": [],
            "attn_cfg": {},
            "rms_norm": True,
            "residual_in_fp32": True,
            "fused_add_norm": True,
            "pad_vocab_size_multiple": 8,
            "tie_embeddings": tie,
            **changes,
        }
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(state, folder / "pytorch_model.bin")
        return state, folder

    return save


@pytest.fixture
def set_config():
    """A function that changes entries of a folder's config.json."""

    def change(folder: Path, *, remove=(), **entries):
        path = folder / "config.json"
        config = json.loads(path.read_text()) | entries
        for key in remove:
            config.pop(key, None)
        path.write_text(json.dumps(config))

    return change


@pytest.fixture
def rewrite():
    """A function that edits the state dict of a folder with one safetensors file."""

    def edit(folder: Path, change):
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path, metadata={"format": "pt"})

    return edit


@pytest.fixture
def refused():
    """A function that asserts that a source is refused in one line with a hint."""
    from lyapunov._errors import LyapunovError
    from lyapunov.checkpoints import open_checkpoint, recognise

    def check(source, error, *words, hint=True, read=False, **options):
        def attempt():
            layout = recognise(open_checkpoint(source, **options))
            if read:
                for i in range(layout.config.n_layers):
                    layout.layer(i)
                layout.final_norm()
                layout.head(0, layout.config.padded_vocab_size)

        with pytest.raises(LyapunovError) as caught:
            attempt()
        assert type(caught.value) is error, repr(caught.value)
        message = caught.value.message
        for word in words:
            assert word in message, (word, message)
        assert "\n" not in message + caught.value.hint
        assert len(message) < 600
        if hint:
            assert caught.value.hint
        return caught.value

    return check


@pytest.fixture
def peak_memory():
    """A context in which Python and NumPy may take so many bytes at most."""
    import contextlib
    import tracemalloc

    import lyapunov

    lyapunov.load()  # what is imported on the way is no tensor

    @contextlib.contextmanager
    def limit(n_bytes):
        tracemalloc.start()
        try:
            yield
            assert tracemalloc.get_traced_memory()[1] < n_bytes
        finally:
            tracemalloc.stop()

    return limit
