"""T2 and T3: estimates at the logits, against closed forms and against runs."""

from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Form, Rounded, Weight
from lyapunov.bounds import _way_back, adjoint
from lyapunov.bounds.adjoint import HEAD, Adjoints
from lyapunov.bounds.probes import Probes
from lyapunov.formats import BF16, FP16, is_state_numbers, round_to
from lyapunov.implementations import (
    Reference,
    mamba_ssm_prefill,
)
from lyapunov.models import Sublayer, VocabularySlice
from lyapunov.sublayers.config import LogitsEnd
from lyapunov.sublayers.norm import Norm
from lyapunov.sublayers.residual import Incoming, final_norm, sublayer
from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers

from ..helpers import assert_within, gamma, not_none, parted
from .estimates import estimates, held_out


# ---- a linear network, whose adjoints are products of matrices

D_MODEL, VOCABULARY, TOKENS, LAYERS = 5, 11, 4, 3


class Linear(eqx.Module):
    weight: Weight


def linear(at, residual, p, start):
    out = at.store("out", at.matmul(residual, p.weight))
    return at.store("out_again", out), start


class LinearModel:
    """As much of a model as the estimates ask for."""

    def __init__(self, rng):
        self.W = 0.4 * rng.normal(size=(LAYERS, D_MODEL, D_MODEL))
        self.rows = rng.normal(size=(VOCABULARY, D_MODEL))
        self.norm = rng.normal(size=D_MODEL)
        self.config = SimpleNamespace(
            vocab_size=VOCABULARY, d_model=D_MODEL, logits_end=LogitsEnd()
        )
        self.sublayers = tuple(Sublayer(i, "linear", linear) for i in range(LAYERS))
        self.stream = rng.normal(size=(2, TOKENS, D_MODEL))

    def parameters(self, layer, formats=None):
        return Linear(Weight(jnp.asarray(self.W[layer])))

    def start(self, p):
        return None

    def final_norm(self, formats=None):
        return Norm(jnp.asarray(self.norm), None, 1e-5)

    def head(self, start, stop, formats=None):
        return Weight(jnp.asarray(self.rows[start:stop]))

    def vocabulary_slices(self):
        cuts = (0, 4), (4, VOCABULARY)
        return [VocabularySlice(*ends, np.asarray(0)) for ends in cuts]


def linear_execution(fmt):
    sites = ("residual", "out", "out_again", "norm_f", "logits")
    numbers = {site: fmt.numbers() for site in sites}
    found = SimpleNamespace(site_numbers=lambda: dict(numbers), form=Form())
    found.of = found.at = lambda place: found
    return found


def ulp_half(x, fmt):
    """u ufp(x), by frexp."""
    return fmt.unit_roundoff * 2.0 ** (np.frexp(np.abs(x))[1] - 1)


@pytest.mark.parametrize("spilled", [False, True])
def test_effects_on_a_linear_network_are_products_of_matrices(
    rng, monkeypatch, spilled
):
    """Assert worst case and variance of every site, and that streams may be spilled."""
    if spilled:
        monkeypatch.setattr(_way_back, "KEPT_BYTES", 500)
    model = LinearModel(rng)
    formats = (BF16, FP16)
    executions = [linear_execution(fmt) for fmt in formats]
    asked: Any = model, (2, TOKENS), executions
    found = Adjoints(*asked, n_readouts=4, seed=0)
    record = lambda r, h: SimpleNamespace(
        residual=jnp.asarray(r), hidden=jnp.asarray(h), aside=None, embedded=None
    )
    streams, outputs = [model.stream], [np.zeros_like(model.stream)]
    for W in model.W:
        found.sublayer(record(streams[-1], outputs[-1]))
        total = streams[-1] + outputs[-1]
        streams.append(total)
        outputs.append(total @ W.T)
    found.head(record(streams[-1], outputs[-1]))
    last = streams[-1] + outputs[-1]
    root = np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + 1e-5)
    logits = (last / root * model.norm) @ model.rows.T
    readouts = []
    for rows in model.vocabulary_slices():
        found.logits(rows, jnp.asarray(logits[..., rows.start : rows.stop]))
        readouts.append(np.asarray(found.readout(rows)))
    assert list(found.reverse()) == [2, 1, 0]
    readout = np.concatenate(readouts, axis=-1)
    assert_within(readout.sum(axis=-1), np.zeros((2, 2)), VOCABULARY**2 * 2.0**-50)
    assert readout.shape == (2, 2, VOCABULARY)

    for i in range(2):
        for j in range(2):
            token = found.tokens[i, j]
            r, x, size = readout[i, j], last[i, token], root[i, token]
            at_norm = model.rows.T @ r
            jacobian = (
                (np.eye(D_MODEL) - np.outer(x, x) / (D_MODEL * size**2))
                / size
                * model.norm[:, None]
            )
            stream = jacobian.T @ at_norm
            expected = {
                (HEAD, "logits"): (r, logits[i, token]),
                (HEAD, "norm_f"): (at_norm, x / size * model.norm),
                (HEAD, "residual"): (stream, x),
            }
            for layer in reversed(range(LAYERS)):
                out = outputs[layer + 1][i, token]
                expected[layer, "out"] = (stream, out)
                # the same numbers in the same format: nothing is rounded again
                expected[layer, "out_again"] = (0 * stream, out)
                stream = stream + model.W[layer].T @ stream
                if layer > 0:
                    x = streams[layer][i, token] + outputs[layer][i, token]
                    expected[layer, "residual"] = (stream, x)
            for effects, fmt in zip(found.effects, formats, strict=True):
                assert set(effects.worst) == set(expected)
                for key, (slope, value) in expected.items():
                    moved = np.abs(slope) * ulp_half(value, fmt)
                    place = 2 * i + j
                    # a chain of matrix products, whose terms may cancel
                    tolerance = gamma(400, 2.0**-53) * (1 + moved.sum() * 50)
                    assert_within(effects.worst[key][place], moved.sum(), tolerance)
                    assert_within(
                        effects.variance[key][place], np.sum(moved**2) / 3, tolerance
                    )


# ---- random roundings against adjoints


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    weights = hard_weights("plain")
    folder = tmp_path_factory.mktemp("small") / "model"
    save_transformers(folder, weights, SIZES)
    return lyapunov.load(str(folder)), tokens_for("plain")[None]


@pytest.mark.slow
def test_sigma_by_adjoints_is_the_spread_of_random_roundings(small):
    """Assert it at every read-out, with 100 draws: within five standard errors."""
    model, tokens = small
    execution = mamba_ssm_prefill("fp16")
    count = 101
    probes = Probes(model, tokens, execution, n_probes=count, seed=0)
    found = Adjoints(model, tokens.shape, [execution], n_readouts=6, seed=0)
    reference = Reference().trace(model, tokens)
    for layer in model.sublayers:
        record = next(reference)
        probes.sublayer(layer, record)
        found.sublayer(record)
    _, head = parted(reference)
    probes.head()
    found.head(head)
    (rows,) = model.vocabulary_slices()
    found.logits(rows, head.logits(0, SIZES.vocab))
    list(found.reverse())
    exact, drawn, *_ = probes.logits(0, SIZES.vocab)
    readout = found.readout(rows)
    moved = jnp.stack(
        [adjoint.at_tokens(p - exact, found.tokens) for p in drawn[: count - 1]]
    )
    spread = np.mean(np.sum(moved * readout, axis=-1) ** 2, axis=0).ravel()
    effects = found.effects[0]
    expected = effects.total("variance") - effects.variance[HEAD, "logits"]
    # a chi-square with 100 degrees of freedom, its first-order model off by u
    assert_within(spread / expected, np.ones(6), 5 * (2 / (count - 1)) ** 0.5)
    # and no draw ever exceeds the worst case to first order
    worst = effects.total("worst") - effects.worst[HEAD, "logits"]
    most = np.max(np.abs(np.sum(moved * readout, axis=-1)), axis=0).ravel()
    assert np.all(most <= worst * (1 + 2.0**-8))


def test_opposite_draws_show_what_is_not_linear(small):
    """Assert that it falls with the format's unit, and is none without a pair.

    Second order over first is proportional to u. But an offset's size follows the
    binade that its value is in, and the share of values that change it has a root of u.
    """
    model, tokens = small
    executions = [mamba_ssm_prefill(name) for name in ("bf16", "fp16")]
    two = estimates(model, tokens, executions, n_probes=2, n_readouts=0)
    coarse, fine = (run.estimate.nonlinearity for run in two)
    assert 0 < not_none(fine) < not_none(coarse) < 0.1
    one = estimates(model, tokens, executions, n_probes=1, n_readouts=0)
    assert [run.estimate.nonlinearity for run in one] == [None, None]
    assert [run.estimate.estimate_t2 for run in one] == [None, None]


def test_weights_held_exactly_are_no_shift(tmp_path):
    """Assert 0 for weights stored in bf16, and more than 0 for others."""
    for kind, exact in (("stored in bf16", True), ("plain", False)):
        folder = tmp_path / kind
        save_transformers(folder, hard_weights(kind), SIZES)
        model, tokens = lyapunov.load(str(folder)), tokens_for(kind)[None]
        (run,) = estimates(model, tokens, [mamba_ssm_prefill("bf16")], n_readouts=0)
        assert (run.estimate.weights_rel_l2 == 0.0) == exact
        assert not_none(run.estimate.weights_rel_l2) <= run.estimate.sigma_t3


class Truncated(Rounded):
    """Rounds towards zero: roundings of one sign, which no random model expects."""

    def store(self, site, x, *, angle=False):
        stored = super().store(site, x)
        if site not in self._sites:
            return stored
        x, numbers = jnp.asarray(x, jnp.float64), self._sites[site]
        assert not is_state_numbers(numbers)
        inward = x * (1 - 2.0**-7.0)
        return self._carry(
            jnp.where(
                jnp.abs(stored) > jnp.abs(x),
                round_to(jnp.where(x == 0, x, inward), numbers),
                stored,
            )
        )


def truncating(model, tokens, execution):
    """A trace of it, sublayer by sublayer."""
    sites = execution.site_numbers()
    residual = model.embed(tokens, execution)
    hidden = jnp.zeros_like(residual)
    for layer in model.sublayers:
        p = model.parameters(layer.layer, execution)
        run = eqx.filter_jit(
            lambda r, h, p=p, layer=layer: sublayer(
                Truncated(sites), layer.flow, Incoming(r, h), p, model.start(p)
            )[:2]
        )
        residual, hidden = jax.vmap(run)(residual, hidden)
        yield None
    p = model.final_norm(execution)
    normed = jax.vmap(lambda r, h: final_norm(Truncated(sites), r, h, p))(
        residual, hidden
    )
    rows = lambda start, stop: model.head(start, stop, execution).matrix
    yield SimpleNamespace(
        logits=lambda start, stop: Truncated(sites).store(
            "logits", jnp.asarray(normed, jnp.float64) @ rows(start, stop).T
        )
    )


def test_roundings_of_one_sign_are_withheld(small):
    """Assert that z tells a run that truncates from one that rounds to nearest."""
    model, tokens = small
    execution = mamba_ssm_prefill("bf16")
    honest, biased = (
        estimates(model, tokens, [execution], runs=runs, n_readouts=0)[0].estimate
        for runs in (None, [truncating(model, tokens, execution)])
    )
    assert 0.7 <= not_none(honest.calibration_z) <= 1.3
    assert honest.sigma_withheld is None
    assert honest.into(lyapunov.results._check.OutputDivergence()).sigma_t3 is not None
    # truncation errs by up to 2 b with mean b: twice the rms even without its mean
    assert not_none(biased.calibration_z) > 1.6
    assert "one sign" in not_none(biased.sigma_withheld)
    shown = biased.into(lyapunov.results._check.OutputDivergence())
    assert shown.sigma_t3 is None
    # nothing is predicted by a sigma that is not shown
    assert not biased.predicted_stable.any()
    assert honest.predicted_stable.any()
    assert shown.sigma_t3_stderr is None
    assert shown.calibration_z == biased.calibration_z


# ---- a trained network on held-out text


@pytest.fixture(scope="module")
def bundled():
    model, tokens = lyapunov.load(), held_out(2, 96, first=3000)
    executions = [mamba_ssm_prefill(name) for name in ("bf16", "fp16")]
    return estimates(model, tokens, executions, n_probes=1, n_readouts=8)


def test_sigma_is_what_was_measured(bundled):
    """Assert z within 0.7 to 1.3 on held-out text, sigma close to the measurement."""
    for run in bundled:
        found = run.estimate
        assert 0.7 <= found.calibration_z <= 1.3
        assert found.sigma_withheld is None
        assert 0.75 <= found.sigma_t3 / run.measured <= 1.25
        assert 0 < found.sigma_t3_stderr < 0.2 * found.sigma_t3
        assert found.weights_rel_l2 < run.measured
        # eight Gaussian numbers over their sigma; they share an execution's roundings
        assert 0.4 <= np.sqrt(np.mean(found.readout_z**2)) <= 1.8


def test_the_worst_case_is_above_what_was_measured_and_says_something(bundled):
    """Assert T2 at least the measurement and sigma, and at most 400 times."""
    for run in bundled:
        found = run.estimate
        assert found.estimate_t2 >= run.measured
        assert found.estimate_t2 >= found.sigma_t3
        assert found.estimate_t2 <= 400 * run.measured
        assert 0 < found.estimate_t2_stderr < found.estimate_t2
    coarse, fine = (run.estimate.estimate_t2 for run in bundled)
    assert 7 <= coarse / fine <= 9


def test_shares_add_up(bundled):
    """Assert that sites account for everything, sublayers for all but the head."""
    for run in bundled:
        found = run.estimate
        assert_within(sum(found.sigma_by_site.values()), 1.0, 1e-12)
        assert list(found.sigma_share) == list(range(9))
        rest = sum(found.sigma_share.values())
        head = sum(found.sigma_by_site[site] for site in ("logits", "norm_f"))
        assert 0 < rest <= 1 - head + 1e-12
        # bf16 numbers of like size fit into the 24 bits of an fp32 residual
        assert found.sigma_by_site["residual"] < 1e-6


def test_no_greedy_token_that_was_predicted_stable_flips(bundled):
    """Assert none, and that most are predicted to be stable."""
    for run, least in zip(bundled, (0.9, 0.97), strict=True):
        stable = run.estimate.predicted_stable
        assert not np.any(stable & run.differs)
        assert np.mean(stable) >= least


@pytest.mark.slow
def test_a_stagnating_state_is_withheld():
    """Assert it of one byte over and over, under a state in bf16."""
    tokens = np.full((1, 256), 101)
    execution = mamba_ssm_prefill("bf16", state_precision="bf16")
    (run,) = estimates(lyapunov.load(), tokens, [execution], n_readouts=0)
    assert not_none(run.estimate.calibration_z) > 1.3
    assert run.estimate.sigma_withheld is not None
