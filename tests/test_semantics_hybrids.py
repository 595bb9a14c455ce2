"""Show with transformers that decode steps of hybrids do not limit dt either."""

import numpy as np
import pytest

import lyapunov
from lyapunov.findings._semantics import semantic_findings
from lyapunov.implementations.transformers._cache import cache_of
from oracles.checkpoints.configurations import BAMBA, NEMOTRON, ZAMBA2
from oracles.checkpoints.transformers import logits, make, tolerance

from .helpers import given_cache
from .test_semantics_shown import APART, TOKENS, seen_dt


# in Nemotron-H and Zamba2 transformers takes time_step_min for the lower limit
LIMITED = {
    "bamba": {**BAMBA, "attn_layer_indices": [1], "time_step_limit": (0.3, 0.6)},
    "nemotron_h": {
        **NEMOTRON,
        "layers_block_type": ["linear_attention", "full_attention"],
        "time_step_min": 0.6,
        "time_step_limit": (0.6, float("inf")),
    },
    "zamba2": {
        **ZAMBA2,
        "num_hidden_layers": 2,
        "num_mem_blocks": 1,
        "layers_block_type": ["linear_attention", "hybrid"],
        "time_step_min": 0.6,
        "time_step_limit": (0.6, float("inf")),
    },
}


def stepped(network, tokens) -> np.ndarray:
    """Logits (seq, vocab) of steps with a cache, a token at a time."""
    import torch

    rows, cache = [], None
    with torch.no_grad():
        for place, token in enumerate(tokens):
            out = network(
                torch.tensor([[int(token)]]),
                **given_cache(network, cache),
                use_cache=True,
                # Bamba counts from 0 at every call that does not say
                position_ids=torch.tensor([[place]]),
            )
            cache = cache_of(out)
            rows.append(out.logits[0, -1].double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("family", LIMITED)
def test_steps_of_hybrids_do_not_limit_dt(family):
    network = make(family, **LIMITED[family])
    apart = np.abs(logits(network, TOKENS) - stepped(network, TOKENS)).max()
    assert apart > APART * tolerance(network, TOKENS)
    model = lyapunov.from_torch(network)
    (finding,) = semantic_findings(model, 16, observed=seen_dt(model, TOKENS))
    assert finding.code == "LYA011"
    assert finding.value is not None
    assert finding.value > 0.1


@pytest.mark.parametrize("family", LIMITED)
def test_without_limits_steps_are_the_same_function(family):
    free = {"time_step_limit": (0.0, float("inf")), "time_step_min": 1e-9}
    network = make(family, **{**LIMITED[family], **free})
    apart = np.abs(logits(network, TOKENS) - stepped(network, TOKENS)).max()
    assert apart <= tolerance(network, TOKENS)
    model = lyapunov.from_torch(network)
    assert semantic_findings(model, 16, observed=seen_dt(model, TOKENS)) == []
