"""Between which dt is limited: by the model, by transformers, in sequences and steps.

The function of a model is its publisher's; what transformers computes otherwise is its
execution's own function. The oracle is transformers' code with the limits set by hand.
"""

import functools
import importlib.util
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations import Reference, executions_for
from lyapunov.implementations._trace import HeadRecord
from lyapunov.implementations.transformers.networks import LEAST_DT, clips_at_least_dt
from lyapunov.questions._functions import OtherFunctions
from oracles.checkpoints.configurations import BAMBA, MAMBA2, NEMOTRON, ZAMBA2
from oracles.checkpoints.transformers import logits, make, save


UNLIMITED = (0.0, math.inf)
GIVEN, LEAST = (0.0, 0.05), 0.02
TOKENS = np.random.default_rng(11).integers(0, 50, 16)

# family -> small settings, and the setting that transformers (to 5.24) takes when it
# reads a sequence. The publishers' code takes time_step_limit in all: state-spaces'
# mamba2 and Tri Dao's kernels; IBM's Bamba and Granite; TII's Falcon-H1; NVIDIA's own
# modeling_nemotron_h (transformers PR 48989); Zyphra's Zamba2, whose layers have
# dt_limit=(0, inf).
FAMILIES = {
    "mamba2": ({**MAMBA2, "num_hidden_layers": 1, "n_groups": 1}, "time_step_limit"),
    "bamba": (
        {**BAMBA, "num_hidden_layers": 1, "attn_layer_indices": []}, "time_step_limit",
    ),
    "granitemoehybrid": (
        {
            **BAMBA, "num_hidden_layers": 1, "layer_types": ["linear_attention"],
            "shared_intermediate_size": 24, "num_local_experts": 0,
        },
        "time_step_limit",
    ),
    "falcon_h1": (
        {**BAMBA, "num_hidden_layers": 1, "mamba_d_ssm": 32}, "time_step_limit",
    ),
    "nemotron_h": (
        {**NEMOTRON, "layers_block_type": ["linear_attention"]}, "time_step_min",
    ),
    "zamba2": (
        {**ZAMBA2, "num_hidden_layers": 1, "layers_block_type": ["linear_attention"]},
        "time_step_min",
    ),
}  # fmt: skip


# the cache of transformers asks an attention how much was read
WITH_ATTENTION = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
    },
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"]},
    "zamba2": {
        "num_hidden_layers": 2, "layers_block_type": ["linear_attention", "hybrid"],
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    import jax

    with jax.enable_x64(True):
        yield


@functools.cache
def case(family, mode="prefill"):
    """transformers' network with two limits that differ, and ours of its files."""
    settings = {**FAMILIES[family][0], "time_step_limit": GIVEN, "time_step_min": LEAST}
    if mode == "decode":
        settings |= WITH_ATTENTION.get(family, {})
    network = make(family, **settings)
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    return network, lyapunov.load(folder)


def mixers(network):
    return [m for m in network.modules() if hasattr(m, "time_step_limit")]


def execution_of(model, mode, measure="transformers"):
    (found,) = executions_for(
        model.config,
        ["bf16"],
        architecture=model.layout.architecture,
        measure=measure,
        mode=mode,
    )
    return found.of("mamba2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_follows_its_publisher(family):
    """Assert that time_step_limit is the model's, whatever time_step_min says."""
    _, model = case(family)
    sizes = [s for s in model.config.sublayers if s.kind == "mamba2"]
    assert [s.dt_limit for s in sizes] == [GIVEN]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_is_followed_as_it_is(family):
    """Assert that the declared limits are those of the library's own modules."""
    network, model = case(family)
    (mixer,) = mixers(network)
    least = FAMILIES[family][1] == "time_step_min"
    assert (family in LEAST_DT) == least
    theirs = (LEAST, math.inf) if least else GIVEN
    assert tuple(mixer.time_step_limit) == theirs
    declared = execution_of(model, "prefill").dt_limit
    assert (declared or model.config.sublayers[0].dt_limit) == theirs
    assert declared == (theirs if least else None)
    assert execution_of(model, "decode").dt_limit == UNLIMITED


@pytest.mark.parametrize("family", FAMILIES)
def test_mamba_ssm_limits_sequences_alone(family):
    _, model = case(family)
    assert execution_of(model, "prefill", "emulated").dt_limit is None
    assert execution_of(model, "decode", "emulated").dt_limit == UNLIMITED


@pytest.mark.parametrize(
    ("code", "least"),
    [
        ("self.time_step_limit = (config.time_step_min, float('inf'))", True),
        ("self.time_step_limit = config.time_step_limit", False),
    ],
)
def test_a_version_that_follows_the_config_is_noticed(
    code, least, tmp_path, monkeypatch
):
    """Assert it from the installed source, which nothing runs."""
    place = tmp_path / "models" / "nemotron_h" / "modeling_nemotron_h.py"
    place.parent.mkdir(parents=True)
    place.write_text(code)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert clips_at_least_dt.__wrapped__("nemotron_h") == least
    assert not clips_at_least_dt.__wrapped__("mamba2")


def centred(x):
    return x - x.mean(-1, keepdims=True)


@pytest.mark.parametrize("family", ["nemotron_h", "zamba2"])
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_distance_of_functions_is_measured(family, mode):
    """Assert the distance that transformers itself has with either limits.

    Its scan runs in fp32: 2^-24 a rounding, hundreds of them one after another.
    """
    network, model = case(family)
    (mixer,) = mixers(network)
    there = mixer.time_step_limit
    try:
        mixer.time_step_limit = GIVEN
        published = logits(network.double(), TOKENS)
        if mode == "decode":
            mixer.time_step_limit = UNLIMITED
        else:
            mixer.time_step_limit = there
        own = logits(network, TOKENS)
    finally:
        mixer.time_step_limit = there
        network.float()
    apart = np.linalg.norm(centred(own - published))
    expected = apart / np.linalg.norm(centred(published))
    (execution,) = executions_for(
        model.config,
        ["bf16"],
        architecture=family,
        measure="transformers",
        mode=mode,
    )
    functions = OtherFunctions(model, TOKENS[None], [execution])
    *_, head = Reference().trace(model, TOKENS[None])
    assert isinstance(head, HeadRecord)
    for _ in model.sublayers:
        functions.sublayer()
    functions.head()
    (rows,) = model.vocabulary_slices()
    functions.logits(rows, head.logits(0, 50))
    found = functions.distance(execution)
    assert found is not None
    assert found.rel_l2 is not None
    assert expected > 1e-3
    np.testing.assert_allclose(found.rel_l2, expected, rtol=1e-3)
    assert found.argmax_total == len(TOKENS)
    flips = (own.argmax(-1) != published.argmax(-1)).sum()
    assert found.argmax_flips == flips


def test_the_same_function_is_not_run_twice():
    """Assert that nothing is measured where the limits are the model's."""
    _, model = case("bamba")
    (execution,) = executions_for(
        model.config, ["bf16"], architecture="bamba", measure="transformers"
    )
    assert OtherFunctions(model, TOKENS[None], [execution]).distance(execution) is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_function_is_no_violation(family, mode):
    """Assert LYA018 and never LYA003 of unchanged code, in a whole check."""
    _, model = case(family, mode)
    report = lyapunov.check(
        model, TOKENS, precisions=["bf16"], measure="transformers", mode=mode,
        floor=False, probes=0, readouts=0, ball=False, growth=False,
    )  # fmt: skip
    codes = {finding.code for finding in report.findings}
    assert "LYA003" not in codes
    other = mode == "decode" or family in LEAST_DT
    assert ("LYA018" in codes) == other
    # what LYA011 says is of the model's own limits, in any mode
    assert "LYA011" in codes
