"""Families other than Mamba-1 are audited whole, by steps and in a batch.

transformers' own code is rounding; faults planted in its cache are bugs, at the first
token that they reach. What has no bounds is refused, with the reason.
"""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import Transformers, write_dump
from lyapunov.implementations.transformers._cache import cache_argument
from lyapunov.implementations.transformers.network_runner import TransformersNetwork
from lyapunov.questions._audit_ways import ways_of_source
from lyapunov.results._audit import BUG, CONSISTENT, NOT_RUN
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save


SEQ = 8
LATE = 5
FAMILIES = ("mamba2", "jamba", "nemotron_h", "gpt_neox")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function: family -> a small model of it, and a text."""
    kept = {}

    def one(family):
        if family not in kept:
            settings = next(iter(CONFIGURATIONS[family].values()))
            folder = tmp_path_factory.mktemp(family)
            kept[family] = lyapunov.load(save(make(family, **settings), folder))
        vocab = kept[family].config.vocab_size
        return kept[family], np.random.default_rng(3).integers(0, vocab, SEQ)

    return one


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_clean_runs_are_rounding(models, family):
    """Assert it of transformers in each way, with bounds of everything."""
    model, tokens = models(family)
    ways = ("whole", "steps", "batched:1")
    report = lyapunov.audit(model, "transformers", tokens, variants=ways)
    assert [run.variant for run in report.variants] == list(ways)
    for run in report.variants:
        assert run.verdict == CONSISTENT, (run.variant, run.first_violation, run.z)
        assert (run.violations, run.tokens) == (0, SEQ)
        assert 0 < run.ratio <= 1
        assert len(run.layers) == len(model.sublayers)


def states(layer, kind):
    return [x for x in getattr(layer, kind, {}).values() if x is not None]


def state_lost(cache, named, before):
    for layer in cache.layers:
        for state in states(layer, "recurrent_states"):
            state.zero_()


def window_lost(cache, named, before):
    for layer in cache.layers:
        for window in states(layer, "conv_states"):
            window.zero_()


def state_stale(cache, named, before):
    for layer, old in zip(cache.layers, before, strict=True):
        for state, earlier in zip(states(layer, "recurrent_states"), old, strict=True):
            state.copy_(earlier)


def positions_late(cache, named, before):
    named["position_ids"] = named["position_ids"] - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("mamba2", state_lost),
        ("mamba2", window_lost),
        ("mamba2", state_stale),
        ("gpt_neox", positions_late),
    ],
)
def test_faults_of_a_cache_are_bugs(models, monkeypatch, family, fault):
    """Assert a bug at the first token that a planted fault reaches, and none before."""
    built, calls, before = TransformersNetwork.built, [], []

    def broken(self, model):
        torch, network = built(self, model)

        def spoil(module, given, named):
            cache = named.get(cache_argument(network))
            # the first call makes the cache; the call after it is of token 0
            if cache is not None and len(calls) == LATE + 1:
                fault(cache, named, before)
            calls.append(1)
            before[:] = [
                [x.clone() for x in states(layer, "recurrent_states")]
                for layer in (cache.layers if cache is not None else ())
            ]
            return given, named

        network.register_forward_pre_hook(spoil, with_kwargs=True)
        return torch, network

    monkeypatch.setattr(TransformersNetwork, "built", broken)
    model, tokens = models(family)
    (run,) = lyapunov.audit(model, "transformers", tokens, variants="steps").variants
    assert run.verdict == BUG
    assert run.first_violation is not None
    assert (run.first_violation.layer, run.first_violation.token) == (0, LATE)


def test_ways_that_there_are_not_say_why(models):
    """Assert the reason of each, without a run; what hands over is run."""
    model, tokens = models("gpt_neox")
    asked = ["chunks:3", "initial_state:4", "batched:1", "packed:3"]
    ways, skipped = ways_of_source(
        model, "emulated", tokens[None], ["bf16"], asked, None
    )
    assert [str(way.variant) for way in ways] == asked[:2]
    assert [run.verdict for run in skipped] == [NOT_RUN] * 2
    assert "do not meet" in skipped[0].reason
    assert "packs no texts" in skipped[1].reason


def test_what_transformers_has_not_is_refused(tmp_path):
    """Assert the reason for a Mamba-3, which transformers does not know."""
    from oracles.checkpoints.mamba_ssm import drawn, full_config, save as save_numpy
    from oracles.networks import mamba3

    ssm = {"layer": "Mamba3", "d_state": 8, "headdim": 8}
    config = full_config({"ssm_cfg": ssm})
    arrays = drawn(mamba3.shapes(config), np.random.default_rng(1))
    save_numpy(tmp_path, arrays, config)
    with pytest.raises(UsageError, match="mamba3"):
        lyapunov.audit(str(tmp_path), "transformers", [1, 2, 3])


def test_dumps_hold_what_has_a_row_a_token(models, tmp_path):
    """Assert widths of a mixer, of attention and of an MLP against their sizes."""
    from lyapunov.implementations.dump._sites import site_widths

    for family in ("mamba2", "gpt_neox"):
        model, _ = models(family)
        for layer in model.sublayers:
            sizes = model.config.sublayers[layer.layer]
            widths = site_widths(model, layer)
            assert widths["norm_input"] == widths["out"] == sizes.d_model
            assert "scores" not in widths
            if layer.kind == "mamba2":
                wide = 2 * sizes.groups * sizes.d_state
                assert widths["gated"] == sizes.d_inner
                assert widths["conv"] == sizes.d_inner + wide
                assert widths["xz"] == 2 * sizes.d_inner + wide + sizes.heads
            elif layer.kind == "attention":
                assert widths["q"] == sizes.heads * sizes.head_dim
                assert widths["k"] == sizes.kv_heads * sizes.head_dim
            else:
                assert widths["up"] == sizes.d_hidden


@pytest.mark.slow
def test_a_dump_of_a_transformer_is_judged(models, tmp_path):
    """Assert rounding for its own run, and a bug for one element moved."""
    from lyapunov.implementations import executions_for

    model, tokens = models("gpt_neox")
    (execution,) = executions_for(
        model.config, ["bf16"], architecture="gpt_neox", measure="transformers"
    )
    records = list(Transformers(execution).trace(model, tokens[None]))
    given = {"implementation": "transformers", "precision": "bf16"}
    write_dump(tmp_path / "right.npz", iter(records), tokens, **given)
    (run,) = lyapunov.audit(model, tmp_path / "right.npz").variants
    assert (run.verdict, run.violations) == (CONSISTENT, 0)
    moved = records[1].output.at[0, LATE, 0].multiply(1.5)
    records[1] = records[1]._replace(output=moved)
    write_dump(tmp_path / "wrong.npz", iter(records), tokens, **given)
    (run,) = lyapunov.audit(model, tmp_path / "wrong.npz").variants
    assert run.verdict == BUG
    assert (run.first_violation.layer, run.first_violation.token) == (1, LATE)
