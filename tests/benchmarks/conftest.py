"""A 130M-parameter shape with random weights, written once a session."""

import statistics
import time

import pytest


@pytest.fixture(scope="session")
def mamba_130m(tmp_path_factory):
    """(folder, network, tokens): transformers' model in fp32, 768 x 24, 512 tokens."""
    import numpy as np
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=50280,
        hidden_size=768,
        num_hidden_layers=24,
        state_size=16,
        tie_word_embeddings=True,
    )
    network = MambaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("mamba-130m")
    network.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 512)
    return folder, network, tokens


def interleaved(runs: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, in turn, so that a busy machine slows all alike."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, function in runs.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(seconds: dict, above: str, below: str) -> float:
    """Median over rounds of the ratio within a round."""
    pairs = zip(seconds[above], seconds[below], strict=True)
    return statistics.median(x / y for x, y in pairs)
