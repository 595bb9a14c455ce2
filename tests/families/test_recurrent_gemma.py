"""RecurrentGemma: its exponents, soft-capped logits, and states that modules keep."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.arithmetic import RoundingModel
from lyapunov.bounds.ball import _behind_the_cap, _Stores
from lyapunov.bounds.head import logit_roundings
from lyapunov.formats import FORMATS
from lyapunov.implementations import executions_for
from lyapunov.implementations.transformers.mamba1 import TORCH
from lyapunov.questions._layer_facts import layer_facts
from lyapunov.sublayers.config import LogitsEnd
from lyapunov.sublayers.sites import LOGITS
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save
from oracles.networks import recurrent_gemma
from oracles.tolerances import exact_logits

from ..exponents.tolerance import tolerance
from ..helpers import assert_within, not_none
from .test_delta_families import TOKENS, loaded, saved


DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
SETTINGS = CONFIGURATIONS["recurrent_gemma"]["windows"]


def test_exponents_are_means_of_numpys_log_decays(tmp_path):
    """Assert one a channel, of all tokens but the first, whose decay is 0; and as many
    decays of 1 in bf16 as NumPy counts."""
    config, tensors = saved("recurrent_gemma")
    logs = []
    recurrent_gemma.logits(tensors, config, TOKENS, None, logs)
    model = loaded(tmp_path, config, tensors)
    rows = [
        layer_facts(model, sublayer, record)
        for sublayer, record in zip(
            model.sublayers, lyapunov.trace(model, TOKENS), strict=False
        )
    ]
    rows = [row for row in rows if row.max is not None]
    assert len(rows) == len(logs) == 1
    for row, log in zip(rows, logs, strict=True):
        means = log[1:].mean(axis=0)
        # log decays of both networks agree to some hundred roundings
        near = tolerance(500, 10)
        ends = not_none(row.max), not_none(row.min)
        np.testing.assert_allclose(ends, [means.max(), means.min()],
                                   rtol=0, atol=near)  # fmt: skip
        quantiles = np.quantile(means, [0.0, 1.0])
        np.testing.assert_allclose(np.asarray(row.quantiles)[[0, -1]], quantiles,
                                   rtol=0, atol=near)  # fmt: skip
        assert row.multiplicity == 1
        assert row.n_minus_inf == 0
        assert row.decay_max == pytest.approx(np.exp(log[1:].max()), abs=near)


@pytest.mark.slow
def test_a_recurrence_wider_than_the_model(tmp_path):
    """Assert its logits; transformers' own cache has the model's width."""
    import json

    from safetensors.numpy import load_file

    network = make("recurrent_gemma", **SETTINGS | {"lru_width": 48})
    folder = save(network, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    theirs, allowed = exact_logits(tensors, config, recurrent_gemma.logits, TOKENS)
    ours = np.asarray(lyapunov.load(folder).logits(TOKENS))
    assert_within(ours, theirs, allowed, "wide")


def test_a_state_of_one_number_a_scale_is_refused(tmp_path):
    config = loaded(tmp_path, *saved("recurrent_gemma")).config
    ask = lambda state: executions_for(
        config, ["bf16"], architecture="recurrent_gemma", mode="decode",
        state_precision=state,
    )[0]  # fmt: skip
    assert ask("bf16").of("rg_lru").sites["state"].name == "bf16"
    with pytest.raises(UsageError, match="one scale a channel"):
        ask("int8-scaled")


def capped(logits, cap, name):
    """A soft cap as torch computes it: each operation in fp32, and stored."""
    dtype = DTYPES[name]
    stored = lambda x: x.astype(dtype).astype(np.float32)
    x = stored(stored(logits.astype(np.float32)) / np.float32(cap))
    return stored(stored(np.tanh(x)) * np.float32(cap)).astype(np.float64)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("cap", [30.0, 3.7])
def test_a_soft_cap_moves_no_logit_by_more(rng, name, cap):
    """Assert it of stored logits up to a size, that it is reached within 8 (of
    fp32 64: its tangent is declared coarser than NumPy's), and that one store is not
    enough."""
    numbers = FORMATS[name].numbers()
    end = LogitsEnd(1.0, cap)
    model = TORCH.model()
    for most in (0.01, 1.0, 20.0, 200.0):
        logits = rng.uniform(-most, most, 20_000).astype(DTYPES[name])
        logits = logits.astype(np.float64)
        moved = np.abs(capped(logits, cap, name) - cap * np.tanh(logits / cap)).max()
        bound = lambda sites, most=most: float(
            _behind_the_cap(
                model, _Stores(dict.fromkeys(sites, numbers), end), jnp.asarray(most)
            )
        )
        assert moved <= bound(LOGITS) <= (64 if name == "fp32" else 8) * moved
        none = _behind_the_cap(
            RoundingModel.none(), _Stores({}, end), jnp.asarray(most)
        )
        assert float(none) == 0.0
        if name != "fp32" and most <= cap:
            assert bound(["logits_divided"]) < moved


@pytest.mark.parametrize("name", DTYPES)
def test_what_stores_of_a_capped_logit_move_it_by(rng, name):
    """Assert the whole of it, in the order of the flow, for sizes of all kinds."""
    cap = 30.0
    logits = rng.uniform(-100.0, 100.0, 20_000)
    sites = dict.fromkeys(LOGITS, FORMATS[name].numbers())
    exact = cap * np.tanh(logits / cap)
    found = logit_roundings(jnp.abs(exact), sites, LogitsEnd(1.0, cap))
    assert set(found) == set(LOGITS) - {"logits_scaled"}
    total = np.sum([np.asarray(size) for size in found.values()], axis=0)
    moved = np.abs(capped(logits, cap, name) - exact)
    # operations in fp32 beside the stores, four of them; and what first order leaves
    unit = FORMATS[name].unit_roundoff
    assert (moved <= total * (1 + 64 * unit) + 8 * 2.0**-24 * cap).all()
    assert (total[moved > 0] < 100 * moved[moved > 0]).mean() > 0.9


def test_two_logits_stay_apart_by_the_least_slope(rng):
    """Assert c tanh(x / c) - c tanh(y / c) >= (x - y) / cosh(max / c)^2."""
    x, y = np.sort(rng.uniform(-80, 80, (2, 10_000)), axis=0)[::-1]
    apart = 30 * np.tanh(x / 30) - 30 * np.tanh(y / 30)
    least = (x - y) / np.cosh(np.maximum(np.abs(x), np.abs(y)) / 30) ** 2
    assert (apart >= least - 30 * 2.0**-50).all()


@pytest.mark.slow
def test_states_that_modules_keep_do_not_reach_the_next_text(tmp_path):
    """Assert the same logits of a text, by steps, after another."""
    from lyapunov.implementations.transformers.network_runner import TransformersNetwork

    folder = save(make("recurrent_gemma", **SETTINGS), tmp_path / "m")
    model = lyapunov.load(folder)
    (execution,) = executions_for(
        model.config, ["fp32"], architecture="recurrent_gemma", measure="transformers",
        mode="decode",
    )  # fmt: skip
    runner = TransformersNetwork(execution)

    def last(tokens):
        head: Any = list(runner.trace(model, np.asarray(tokens)[None]))[-1]
        return np.asarray(head.logits(0, 50))

    first = last(TOKENS[:6])
    last(TOKENS[6:])
    np.testing.assert_array_equal(last(TOKENS[:6]), first)
