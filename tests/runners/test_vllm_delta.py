"""Networks of delta rules that are not put together on vLLM's operators, and why."""

from typing import Any

import numpy as np
import pytest

from lyapunov import load
from lyapunov._errors import UsageError
from lyapunov.implementations import implementation_named
from lyapunov.implementations.vllm import _operators
from oracles.checkpoints.transformers import make, save

from .test_vllm_delta_interpreted import FLAGS, NETWORKS


@pytest.fixture
def no_operators(monkeypatch):
    """Operators that are never reached."""
    nothing: Any = [None] * 7
    nothing = _operators.Operators(*nothing, interpreted=True, version="0.33.0")
    monkeypatch.setattr(_operators, "operators", lambda: nothing)


def tried(folder, family, **changed):
    save(make(family, **NETWORKS[family] | changed), folder)
    model = load(folder)
    server = implementation_named(f"vllm {FLAGS[family]}".strip())
    declared = server.execution(
        model.config, "fp16", architecture=model.layout.architecture, mode="prefill"
    )
    tokens = np.zeros((1, 6), int)
    return list(server.runner(declared).trace(model, tokens))


ATTENDS = {"layer_types": ["linear_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("family", "changed", "why"),
    [
        ("qwen3_next", ATTENDS, "it has attention beside mixers"),
        ("kimi_linear", ATTENDS, "it has attention beside mixers"),
        (
            "qwen3_next",
            {"mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2},
            "it has experts beside mixers",
        ),
    ],
)
def test_sublayers_beside_that_are_not_run(
    tmp_path, no_operators, family, changed, why
):
    with pytest.raises(UsageError, match=why) as error:
        tried(tmp_path, family, **changed)
    assert "--measure vllm_emulated follows" in error.value.hint


def test_a_prefill_whose_kernel_is_flashinfers(tmp_path):
    save(make("qwen3_next", **NETWORKS["qwen3_next"]), tmp_path)
    model = load(tmp_path)
    with pytest.raises(UsageError, match="FlashInfer") as error:
        implementation_named("vllm").execution(
            model.config, "bf16", architecture="qwen3_next", mode="prefill"
        )
    assert "--gdn-prefill-backend triton" in error.value.hint
