"""Mamba-3 whole: logits against NumPy, parts and the whole, errors of the layout."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import CheckpointError, UsageError
from lyapunov.arithmetic import Exact, Form
from oracles.checkpoints.mamba3 import CONFIGS, SISO
from oracles.checkpoints.mamba_ssm import drawn, full_config, save
from oracles.networks import mamba3 as numpy_mamba3

from ..helpers import assert_within, gamma, not_none
from .test_against_numpy import agree


UNIT, SEQ = 2.0**-53, 9


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_numpys(rng, tmp_path, name):
    """Assert it within a derived tolerance, and that every tensor counts."""
    config = full_config({"ssm_cfg": CONFIGS[name]})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    agree(tmp_path / "model", weights, config, numpy_mamba3.logits)


@pytest.fixture(params=["SISO", "MIMO, groups, norm"])
def mixer(request, rng, tmp_path):
    """A flow that runs, its parameters, a stream, and the weights and settings."""
    config = full_config({"ssm_cfg": CONFIGS[request.param], "n_layer": 1})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    model = lyapunov.load(save(tmp_path / "model", weights, config))
    flow = model.sublayers[0].flow
    run = eqx.filter_jit(lambda x, p, start: flow(Exact(), x, p, start))
    stream = jnp.asarray(rng.normal(size=(SEQ, config["d_model"])))
    return run, model.parameters(0), stream, weights, config["ssm_cfg"]


@pytest.mark.parametrize("lengths", [[1] * SEQ, [5, 1, 1, 2]])
def test_parts_give_the_whole(mixer, lengths):
    """Assert outputs and all that is carried, in steps and in pieces."""
    run, p, stream, *_ = mixer
    whole, after = run(stream, p, p.initial_state())
    state, outputs, first = p.initial_state(), [], 0
    for length in lengths:
        out, state = run(stream[first : first + length], p, state)
        outputs.append(out)
        first += length
    parts = jnp.concatenate(outputs)
    # one function in another order; some hundred roundings a token
    assert_within(parts, whole, gamma(1000, UNIT) * np.abs(whole).max(), "output")
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert_within(one, other, gamma(1000, UNIT) * np.abs(other).max(), "state")
    # and each of the four that are carried matters
    for name in ("angle", "state", "keys", "values"):
        _, middle = run(stream[:5], p, p.initial_state())
        right, _ = run(stream[5:], p, middle)
        moved = eqx.tree_at(
            lambda s, name=name: getattr(s, name), middle, replace_fn=lambda a: a + 0.1
        )
        wrong, _ = run(stream[5:], p, moved)
        assert np.abs(np.asarray(wrong - right)).max() > 1e-6, name


def test_what_is_carried_is_numpys(mixer):
    """Assert state and angle after the last token."""
    run, p, stream, weights, ssm = mixer
    _, after = run(stream, p, p.initial_state())
    own = {
        name.partition("mixer.")[2]: np.asarray(value, np.float64)
        for name, value in weights.items()
    }
    x = numpy_mamba3.rms(np.asarray(stream), np.asarray(p.norm.weight), 1e-5)
    found = {}
    numpy_mamba3.mamba3(x, own, ssm, found)
    for name, expected in found.items():
        allowed = gamma(1000, UNIT) * np.abs(expected).max()
        assert_within(getattr(after, name), expected, allowed, name)


def test_the_future_does_not_reach_the_past(mixer):
    """Assert causality: other tokens later change no output before."""
    run, p, stream, *_ = mixer
    whole, _ = run(stream, p, p.initial_state())
    other, _ = run(stream.at[5:].multiply(-3.0), p, p.initial_state())
    np.testing.assert_array_equal(whole[:5], other[:5])
    assert (np.asarray(whole[5]) != np.asarray(other[5])).any()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"headdim": 7}, "headdim"),
        ({"ngroups": 4}, "ngroups"),
        ({"rope_fraction": 0.3}, "rope_fraction"),
        ({"d_state": 7}, "d_state"),
        ({"heavy_tail": True}, "heavy_tail"),
        ({"is_outproj_norm": True}, "mixer.norm.weight"),
        ({"is_mimo": True}, "mimo_"),
        ({"rope_fraction": 1.0}, "in_proj"),
    ],
)
def test_what_does_not_fit_is_named(rng, tmp_path, changes, word):
    """Assert that settings out of place, or that the tensors contradict, are errors."""
    weights = drawn(numpy_mamba3.shapes(full_config({"ssm_cfg": SISO})), rng)
    config = full_config({"ssm_cfg": {**SISO, **changes}})
    with pytest.raises(CheckpointError, match=word):
        lyapunov.load(save(tmp_path / "model", weights, config))


def test_transformers_has_none(rng, tmp_path):
    """Assert that a check by transformers is refused, with what does run."""
    config = full_config({"ssm_cfg": SISO})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    model = lyapunov.load(save(tmp_path / "model", weights, config))
    with pytest.raises(UsageError, match="transformers") as caught:
        lyapunov.check(model, [1, 2], precisions=["bf16"], measure="transformers")
    assert "emulated" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("SISO, groups, norm, all pairs turn", marks=pytest.mark.slow),
        "MIMO",
    ],
)
def test_chunks_are_steps(rng, tmp_path, name):
    """Assert one function in exact arithmetic, where a text starts and where not."""
    config = full_config({"ssm_cfg": {**CONFIGS[name], "chunk_size": 4}, "n_layer": 1})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    model = lyapunov.load(save(tmp_path / "model", weights, config))
    p, flow = model.parameters(0), eqx.filter_jit(model.sublayers[0].flow)
    stream = jnp.asarray(rng.normal(size=(SEQ, config["d_model"])))
    _, middle = flow(Exact(), stream[:5], p, p.initial_state())
    for start, part in ((p.initial_state(), stream), (middle, stream[5:])):
        chunks = Exact()
        chunks.form = Form(chunked=True)
        one, after_one = flow(Exact(), part, p, start)
        other, after_other = flow(chunks, part, p, start)
        # some hundred roundings a token, in another order
        assert_within(other, one, gamma(2000, UNIT) * np.abs(one).max(), "output")
        whole = 2 * np.pi * np.round((after_one.angle - after_other.angle) / 2 / np.pi)
        after_other = eqx.tree_at(
            lambda s: s.angle, after_other, after_other.angle + whole
        )
        for x, y in zip(
            jax.tree.leaves(after_other), jax.tree.leaves(after_one), strict=True
        ):
            assert_within(x, y, gamma(2000, UNIT) * np.abs(y).max(), "state")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_check_holds(rng, tmp_path, mode):
    """Assert a report without violations, whose rows are of this kind."""
    config = full_config({"ssm_cfg": {**SISO, "chunk_size": 8}, "n_layer": 1})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    weights["backbone.layers.0.mixer.dt_bias"][:] = -4.0
    model = lyapunov.load(save(tmp_path / "model", weights, config))
    tokens = rng.integers(0, model.config.vocab_size, 20)
    report = lyapunov.check(
        model,
        tokens,
        precisions=["bf16", "fp16"],
        mode=mode,
        probes=1,
        readouts=0,
        growth=False,
    )
    for precision in report.precisions:
        (row,) = precision.layers
        assert row.kind == "mamba3"
        assert row.violations == 0
        assert 1.0 - 1e-4 <= not_none(row.bound_t1_ratio) < 30


def test_a_check_without_a_precision_gives_the_exponents(rng, tmp_path):
    """Assert them by NumPy: one a head, the mean of A dt over the tokens."""
    config = full_config({"ssm_cfg": SISO, "n_layer": 1})
    weights = drawn(numpy_mamba3.shapes(config), rng)
    model = lyapunov.load(save(tmp_path / "model", weights, config))
    tokens = rng.integers(0, model.config.vocab_size, 30)
    report = lyapunov.check(model, tokens, measure="none")
    (row,) = report.exponents.layers
    assert report.precisions == []
    sizes = model.config.sublayers[0]
    assert row.multiplicity == sizes.d_inner // sizes.heads * sizes.d_state
    records: list[Any] = list(lyapunov.trace(model, tokens))
    record, _ = records
    means = np.asarray(record.observed["log_decay"])[0].mean(axis=0)
    # thirty terms and a division
    assert abs(row.max - means.max()) <= 64 * 2.0**-53 * abs(means.max())
    assert abs(row.min - means.min()) <= 64 * 2.0**-53 * abs(means.min())
    assert not_none(row.max) < 0
