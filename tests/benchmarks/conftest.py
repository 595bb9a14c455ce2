"""A 130M-parameter shape with random weights, written once a session."""

import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from ..helpers import not_none


MAKE = """
import sys
import torch
from transformers import MambaConfig, MambaForCausalLM

torch.manual_seed(0)
config = MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24)
MambaForCausalLM(config).save_pretrained(sys.argv[1])
"""

# In a process of its own: beside XLA's threads in one process torch's spin, and its
# forward takes ten times as long.
SERVE = """
import sys, time
import numpy as np
import torch
from transformers import MambaForCausalLM

network = MambaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.tensor(np.load(sys.argv[2]))[None]
for _ in sys.stdin:
    began = time.perf_counter()
    with torch.no_grad():
        network(ids, use_cache=False).logits
    print(time.perf_counter() - began, flush=True)
"""


@pytest.fixture(scope="session")
def mamba_130m(tmp_path_factory):
    """(folder, tokens): random weights, 768 x 24, vocabulary 50280; 512 tokens."""
    folder = tmp_path_factory.mktemp("mamba-130m")
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
    tokens = np.random.default_rng(0).integers(0, 50280, 512)
    np.save(folder / "tokens.npy", tokens)
    return folder, tokens


@pytest.fixture(scope="session")
def transformers_forward(mamba_130m):
    """A function: seconds of one fp32 forward by transformers on CPU."""
    folder, _ = mamba_130m
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(folder / "tokens.npy")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def forward() -> float:
            not_none(server.stdin).write("go\n")
            not_none(server.stdin).flush()
            return float(not_none(server.stdout).readline())

        yield forward
        not_none(server.stdin).close()


def interleaved(runs: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, in turn, so that a busy machine slows all alike.

    A function that returns a float has measured itself.
    """
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, function in runs.items():
            began = time.perf_counter()
            own = function()
            elapsed = time.perf_counter() - began
            seconds[name].append(own if isinstance(own, float) else elapsed)
    return seconds


def median_ratio(seconds: dict, above: str, below: str) -> float:
    """Median over rounds of the ratio within a round."""
    pairs = zip(seconds[above], seconds[below], strict=True)
    return statistics.median(x / y for x, y in pairs)
