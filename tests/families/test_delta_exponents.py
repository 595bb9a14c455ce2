"""Exponents of delta-rule checkpoints against the steps of NumPy's networks."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations import Emulated, Reference, executions_for
from lyapunov.questions._expansion import key_expansion
from lyapunov.questions._layer_facts import layer_facts
from oracles.networks import delta_rule, kimi_linear, ling, olmo_hybrid, qwen3_next

from ..exponents.tolerance import tolerance
from .test_delta_families import FORWARDS, TOKENS, loaded, saved


MODULES = {
    "qwen3_next": qwen3_next,
    "olmo_hybrid": olmo_hybrid,
    "kimi_linear": kimi_linear,
    "bailing_hybrid": ling,
}
QUICK = ("kimi_linear",)


def steps_of(family, monkeypatch, tokens):
    """(seq, heads, key_dim, key_dim) of every delta rule, as the network makes them."""
    found, own = [], delta_rule.delta_rule

    def recorded(q, k, v, gate, rate, *more):
        key = delta_rule.unit(k)
        outer = rate[..., None, None] * key[..., :, None] * key[..., None, :]
        gates = np.broadcast_to(np.exp(gate), key.shape)
        found.append((np.eye(key.shape[-1]) - outer) * gates[..., None, :])
        return own(q, k, v, gate, rate, *more)

    for module in MODULES.values():
        if hasattr(module, "delta_rule"):
            monkeypatch.setattr(module, "delta_rule", recorded)
    config, tensors = saved(family)
    FORWARDS[family](tensors, config, tokens)
    return found


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in MODULES],
)
def test_exponents_are_those_of_numpys_steps(family, monkeypatch, tmp_path):
    """Assert each head's largest by the product's norm, and sums by determinants."""
    wanted = steps_of(family, monkeypatch, TOKENS)
    model = loaded(tmp_path, *saved(family))
    rows = [
        layer_facts(model, sublayer, record)
        for sublayer, record in zip(
            model.sublayers, lyapunov.trace(model, TOKENS), strict=False
        )
    ]
    heads = [row.heads for row in rows if row.heads is not None]
    assert len(heads) == len(wanted) > 0
    for row, steps in zip(heads, wanted, strict=True):
        sums = np.linalg.slogdet(steps)[1].mean(axis=0)
        products = np.broadcast_to(np.eye(steps.shape[-1]), steps.shape[1:])
        for step in steps:
            products = step @ products
        largest = np.log(np.linalg.norm(products, 2, axis=(1, 2))) / len(steps)
        # keys of both networks agree to some hundred roundings; what a write leaves
        # of a read, down to 1e-4 here, is a difference of them
        np.testing.assert_allclose(row.max, largest, rtol=0, atol=tolerance(5000, 10))
        np.testing.assert_allclose(row.sum, sums, rtol=0, atol=1e4 * tolerance(500, 10))
        assert row.least_left > 1e-4
        assert (np.asarray(row.lower) <= row.max).all()
        assert (np.asarray(row.max) <= row.upper).all()
    assert all(row.max is not None or row.reason for row in rows)


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ({"dt_bias": 0.0}, "dt_bias is 0 in every head: it was zeroed"),
        ({"A_log": 0.0}, "A_log is 0 in every head"),
        ({"dt_bias": 1.0, "o_norm.weight": 1.0}, "exactly as before training"),
        ({}, None),
    ],
)
def test_a_lost_parameter_of_a_delta_rule_is_named(lost, says, tmp_path):
    """Assert it in every delta rule of a network, and nothing where nothing is lost."""
    config, tensors = saved("kimi_linear")
    for key, array in tensors.items():
        for name, value in lost.items():
            if f".self_attn.{name}" in key:
                tensors = tensors | {key: np.full_like(array, value)}
    model = loaded(tmp_path, config, tensors)
    records: Any = lyapunov.trace(model, TOKENS)
    pairs = zip(model.sublayers, records, strict=False)  # the head comes last
    rows = [layer_facts(model, *pair) for pair in pairs]
    told = [row.suspicions for row in rows if row.heads is not None]
    assert told
    for suspicions in told:
        assert says in suspicions[0] if says else suspicions == []


@pytest.mark.slow
def test_a_run_of_one_token_expands_where_fla_stores_keys_in_bf16(tmp_path):
    """Assert LYA022's figures of a whole run of fla's chunks, of rates up to 2 and
    hardly a gate; not of its steps, which keep keys in registers, nor of rates up to 1.
    """
    config, tensors = saved("olmo_hybrid")
    tensors = dict(tensors)
    for name, array in tensors.items():
        if name.endswith("A_log"):
            tensors[name] = np.full_like(array, -12)
        if name.endswith("b_proj.weight"):
            tensors[name] = 200 * array
    tokens = np.full((1, 60), 4)
    found = {}
    for most in (2, 1):
        changed = config | {"linear_allow_neg_eigval": most == 2}
        model = loaded(tmp_path / str(most), changed, tensors)
        reference: Any = next(Reference().trace(model, tokens))
        for mode in ("prefill", "decode"):
            (execution,) = executions_for(
                model.config,
                ["bf16"],
                architecture="olmo_hybrid",
                mode=mode,
                measure="fla",
            )
            record: Any = next(Emulated(execution).trace(model, tokens))
            own = execution.of("gated_delta")
            found[most, mode] = key_expansion(
                reference.observed, record.stored, own, most
            )
            assert ("k_unit" in record.stored) == (mode == "prefill")
    assert found.pop((2, "prefill")).growth > 0.01
    assert list(found.values()) == [None] * 3
