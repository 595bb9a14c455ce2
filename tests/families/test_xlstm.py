"""xLSTM: exponents, weights that are fused, a cache that rounds its maximum, refusals.

Logits and bounds as of any family are in `test_delta_families`, `test_forward`,
`test_executions` and `test_transformers_decode`.
"""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UnsupportedCheckpointError
from lyapunov.implementations import RefusedError, Transformers, executions_for
from lyapunov.questions._layer_facts import layer_facts
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save
from oracles.networks import xlstm
from oracles.tolerances import exact_logits

from ..helpers import assert_within, not_none
from .test_delta_families import TOKENS, loaded, refused, saved


def fused(config, tensors):
    """The same network as its makers may save it."""
    found, parts = {}, {}
    for name, array in tensors.items():
        for ends, whole in (
            (("q", "k", "v", "ogate_preact"), "qkv_opreact"),
            (("igate_preact", "fgate_preact"), "ifgate_preact"),
            (("proj_up_gate", "proj_up"), "proj_up_gate_z"),
        ):
            module, end, kind = name.rsplit(".", 2) if name.count(".") > 1 else [""] * 3
            if end in ends:
                own = parts.setdefault(f"{module}.{whole}.{kind}", {})
                own[ends.index(end)] = array
                break
        else:
            found[name] = array
    joined = {
        name: np.concatenate([own[i] for i in sorted(own)])
        for name, own in parts.items()
    }
    return config | {"weight_mode": "fused"}, found | joined


def test_fused_weights_are_those_one_by_one(tmp_path):
    """Assert the same logits, NumPy's of the fused ones, and fewer tensors."""
    single = saved("xlstm")
    config, tensors = fused(*single)
    assert len(tensors) < len(single[1])
    expected = loaded(tmp_path / "single", *single).logits(TOKENS)
    found = np.asarray(loaded(tmp_path / "fused", config, tensors).logits(TOKENS))
    np.testing.assert_array_equal(found, np.asarray(expected))
    theirs, allowed = exact_logits(tensors, config, xlstm.logits, TOKENS)
    assert_within(found, theirs, allowed, "fused")


def test_exponents_are_the_means_of_log_forget_gates(tmp_path):
    """Assert them against NumPy's gates, and a product of the steps' Jacobians, each
    found of differences of a step written in NumPy."""
    rng = np.random.default_rng(0)
    model = loaded(tmp_path, *saved("xlstm"))
    sizes = model.config.sublayers[0]
    log_forget = -np.logaddexp(0, -rng.normal(size=(1, 5, sizes.heads)) - 2)
    observed = {"log_forget": log_forget, "state": np.ones((1, 5))}
    record = SimpleNamespace(output=np.ones((1, 5, 4)), observed=observed)
    row = layer_facts(model, model.sublayers[0], record)
    keys, values = sizes.key_dim, sizes.value_dim
    assert row.multiplicity == keys * (values + 1)
    means = log_forget[0].mean(0)
    assert np.isclose(not_none(row.max), means.max(), 1e-12, 0)
    assert np.isclose(not_none(row.min), means.min(), 1e-12, 0)

    def step(state, gate, key, value):
        state = state.reshape(3, 2)  # keys by values and the 1
        return (np.exp(gate) * state + np.outer(key, [value, 1.0])).ravel()

    for head, mean in enumerate(means):
        product = np.eye(6)
        for gate in log_forget[0, :, head]:
            key, value = rng.normal(size=3), rng.normal()
            base = step(np.zeros(6), gate, key, value)
            columns = [step(e, gate, key, value) - base for e in np.eye(6)]
            product = np.stack(columns, axis=1) @ product
        found = np.log(np.linalg.svd(product, compute_uv=False)) / 5
        assert np.allclose(found, mean, 0, 1e-12)


def test_longer_calls_than_a_chunk_are_refused(tmp_path):
    """Assert it of whole texts, and that steps and shorter ones are not."""
    settings = CONFIGURATIONS["xlstm"]["single"] | {"chunk_size": 8}
    model = lyapunov.load(save(make("xlstm", **settings), tmp_path))
    (execution,) = executions_for(
        model.config, ["bf16"], architecture="xlstm", measure="transformers"
    )
    run = Transformers(execution)
    for tokens in (np.arange(8)[None], np.arange(20)[None]):
        with pytest.raises(RefusedError, match="in chunks") as caught:
            next(run.trace(model, tokens))
        assert "--mode decode" in not_none(caught.value.hint)
    assert next(run.trace(model, np.arange(7)[None])) is not None


def test_a_cache_that_rounds_the_maximum_says_so(tmp_path):
    """Assert that an execution's state is in the model's format by steps alone."""
    model = loaded(tmp_path, *saved("xlstm"))
    for measure in ("transformers", "emulated"):
        for mode, form in (("prefill", "fp32"), ("decode", "bf16")):
            (execution,) = executions_for(
                model.config, ["bf16"], architecture="xlstm", mode=mode, measure=measure
            )
            assert execution.state_precision == form
            assert execution.of("mlstm").state_precision == form
            sites = execution.of("mlstm").sites
            assert ("state_top" in sites) == (mode == "decode")
    (execution,) = executions_for(
        model.config, ["bf16"], mode="decode", state_precision="fp32"
    )
    assert {execution.of("mlstm").sites[x].name for x in ("state", "state_top")} == {
        "fp32"
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_heads": 3}, "do not fall"),
        ({"num_heads": 4}, "config.json asks for (4, 64)"),
        ({"qk_dim_factor": 0.5}, "config.json asks for (32, 64)"),
        ({"ffn_proj_factor": 2.0}, "config.json asks for"),
        ({"weight_mode": "both"}, "weight_mode"),
        ({"weight_mode": "fused"}, "no tensor"),
        ({"gate_soft_cap": 0}, "gate_soft_cap"),
        ({"num_blocks": 3}, "num_blocks = 3"),
        ({"embedding_dim": 32}, "embedding_dim = 32"),
        ({"chunk_size": "64"}, "chunk_size"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes, says):
    message = refused(tmp_path, "xlstm", lambda c, t: (c | changes, t))
    assert says in message, message


@pytest.mark.parametrize(
    "changes", [{"use_bias": True}, {"norm_reduction_force_float32": False}]
)
def test_what_is_not_covered_is_said(tmp_path, changes):
    change = lambda c, t: (c | changes, t)
    refused(tmp_path, "xlstm", change, UnsupportedCheckpointError)


@pytest.mark.parametrize("key", ["chunkwise_kernel", "sequence_kernel", "step_kernel"])
def test_kernels_that_transformers_does_not_have(tmp_path, key):
    """Assert that the function is read, and that a run is refused with a reason."""
    config, tensors = saved("xlstm")
    model = loaded(tmp_path, config | {key: "chunkwise--triton_xl_chunk"}, tensors)
    assert np.isfinite(np.asarray(model.logits(TOKENS))).all()
    (execution,) = executions_for(
        model.config, ["bf16"], architecture="xlstm", measure="transformers"
    )
    with pytest.raises(lyapunov.LyapunovError, match=re.escape(key)):
        next(Transformers(execution).trace(model, TOKENS[None]))


def test_a_cache_in_bf16_forgets_to_forget():
    """Assert of transformers' own step that what fades by less than half a spacing of
    the maximum does not fade at all in a bf16 cache, which rounds the maximum: after
    100 tokens 5% should be left of the first. So does the emulator, by its stores."""
    import jax
    import jax.numpy as jnp
    import torch
    from transformers.models.xlstm import modeling_xlstm

    from lyapunov.arithmetic import Exact, Rounded
    from lyapunov.arithmetic._log_weights import LOG_WEIGHTS
    from lyapunov.formats import FORMATS

    step: Any = modeling_xlstm.mlstm_recurrent_step_native
    one, gates = torch.ones(1, 1, 1), (15.0, *[-15.0] * 100)
    left = {}
    for form in (torch.float32, torch.bfloat16):
        state = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
        for gate in gates:
            given = {"query": one[0], "key": one[0], "value": one[0]}
            given = {name: x[None] for name, x in given.items()}
            own = {"igate": gate * one, "fgate": 3.5 * one}
            names = ("cstate", "nstate", "mstate")
            held = dict(zip(names, state, strict=True))
            _, state = step(**{k: x.to(form) for k, x in (given | own | held).items()})
            state = tuple(x.to(form) for x in state)
        matrix, _, top = (float(x.double()) for x in state)
        left[form] = matrix * np.exp(top - 15.0)
    fade = np.exp(-100 * np.log1p(np.exp(-3.5)))
    assert left[torch.float32] == pytest.approx(fade, rel=1e-3)
    assert left[torch.bfloat16] == pytest.approx(1.0, rel=1e-2)

    def last(at):
        state, top = jnp.zeros((1, 1)), jnp.zeros(1)
        for gate in gates:
            log_forget = -jnp.logaddexp(0.0, -jnp.full(1, 3.5))
            share = at.apply(LOG_WEIGHTS, top, log_forget, jnp.full(1, gate))
            state, top = share[0] * state + share[1], share[2]
            top, state = at.store_scale("state_top", top, state)
        return float(state[0, 0] * jnp.exp(top[0] - 15.0))

    with jax.enable_x64(True):
        sites: dict[str, Any] = {"state_top": FORMATS["bf16"].numbers()}
        assert last(Exact()) == pytest.approx(fade, rel=1e-3)
        assert last(Rounded(sites)) == pytest.approx(1.0, rel=1e-2)
