"""SGLang's Mamba-2 behind another text: chunks are cut in the stream of both.

Its kernels in NumPy (`oracles.kernels.served.SglangStream`) run both; what they make of
the second one is held to what is declared of a text behind so many tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.bounds.local import operation_bounds, sublayer_bound
from lyapunov.implementations import Execution, implementation_named
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.dump._keys import FORMAT
from lyapunov.results._audit import CONSISTENT, NOT_RUN
from oracles.kernels import served

from . import ssd_models as models, ssd_runs as runs
from .test_served_kernels import run_stack
from .test_ssd_right_kernels import MOST


SIZES = models.Sizes(layers=1, d_model=16, chunk=8)
SEQ, FRONT, ABOVE = 19, 13, 1 + 2.0**-10
SHORT = 2
"""Tokens of a text that is over before its first chunk is."""


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model of one layer, its weights, and two texts."""
    weights = models.drawn(SIZES)
    folder = models.save(tmp_path_factory.mktemp("stream") / "model", weights, SIZES)
    tokens = np.random.default_rng(1).integers(0, SIZES.vocab, FRONT + SEQ)
    return lyapunov.load(str(folder)), weights, tokens


def declared(model, front, precision="bf16") -> Execution:
    one = implementation_named("sglang_emulated")
    found = one.execution(
        model.config, precision, architecture="mamba2", state_precision="fp32"
    )
    return found.behind(front).of("mamba2")


def sum_in_front(model, stored, front, hurried):
    """(heads), what the first text's tokens in the shared chunk sum up to, in fp64."""
    raw = model.layout.layer(0)
    heads = raw["A_log"].size
    dt = stored["xz"][:front, -heads:].astype(float) + raw["dt_bias"].astype(float)
    dt = np.logaddexp(0, dt) * -np.exp(raw["A_log"].astype(float))
    return hurried * dt[front - front % SIZES.chunk :].sum(axis=0)


def found(setting, *, front, seq=SEQ, hurried=1.0, told=True, declares=None, **options):
    """(T0's violations by site, T1's, its ratio)."""
    model, weights, tokens = setting
    given = {"cache": "fp32", "lengths": [FRONT, seq], "hurried": hurried} | options
    (record,) = run_stack(
        weights, tokens[: FRONT + seq], "bf16", SIZES, served.SglangStream, given
    )
    before, hidden, stored = record
    own = slice(FRONT, None)
    cut = before[own], hidden[own], {site: x[own] for site, x in stored.items()}
    execution = declared(model, front if declares is None else declares)
    (one, flow, seen, p), start = runs.bounded_by(model, execution, cut, 0)
    exact = model.parameters(0)
    if told:
        begun = ABOVE * sum_in_front(model, stored, FRONT, hurried)
        p = dataclasses.replace(p, in_front=jnp.asarray(begun))
    with jax.enable_x64(True):
        t0 = operation_bounds(one, flow, seen, p, start)
        t1 = sublayer_bound(one, flow, seen, p, exact, start).comparison
    by_site = {site: int(np.sum(held.violations)) for site, held in t0.items()}
    return by_site, int(np.sum(t1.violations)), runs.ratio(t1)


@pytest.mark.parametrize("seq", [SEQ, SHORT])
@pytest.mark.parametrize("hurried", [1.0, 1e5])
def test_a_text_behind_another_holds(setting, seq, hurried):
    """Assert no violation and a bound that is close, however far sums had come."""
    t0, t1, ratio = found(setting, front=FRONT, seq=seq, hurried=hurried)
    assert not any(t0.values()), t0
    assert t1 == 0
    assert 1.0 <= ratio <= MOST["bf16"]


def test_chunks_that_begin_with_the_text_are_told(setting):
    """Assert it of kernels that cut as vLLM's do, and of a declaration that does."""
    for changed in ({"apart": True}, {"declares": 0}):
        t0, *_ = found(setting, front=FRONT, told="apart" not in changed, **changed)
        assert t0["scan_output"] > 0, changed
        assert not any(count for site, count in t0.items() if site != "scan_output")


def test_sums_in_front_count(setting):
    """Assert that roundings of sums that went far are beyond bounds that do not know of
    them."""
    t0, t1, _ = found(setting, front=FRONT, hurried=1e5, told=False)
    assert t0["scan_output"] > 0
    assert t1 > 0


def test_who_stands_in_front():
    """Assert it of the ways, and that calls are declared behind it."""
    assert parse_variant("packed:13").in_front(SEQ) == 13
    assert parse_variant("batched:2").in_front(SEQ) == 2 * SEQ
    assert parse_variant("chunks:4").in_front(SEQ) == 0


def test_only_streams_are_declared_otherwise(setting):
    model, *_ = setting
    for name, changes in (("vllm_emulated", False), ("sglang_emulated", True)):
        one = implementation_named(name)
        asked = {"architecture": "mamba2", "state_precision": "fp32"}
        prefill = one.execution(model.config, "bf16", **asked)
        assert prefill.behind(0) is prefill
        behind = prefill.behind(FRONT)
        assert (behind is not prefill) == changes
        if changes:
            assert behind.of("mamba2").form.grid == FRONT
        step = one.execution(model.config, "bf16", mode="decode", **asked)
        assert step.behind(FRONT) is step


@pytest.mark.slow  # an audit's three programs each
def test_the_emulator_cuts_as_the_stream_is_cut(setting):
    """Assert that a text behind 13 others rounds otherwise than alone, within bounds,
    and one that stands in front of whole chunks does not."""
    model, _, tokens = setting
    ways = ["whole", f"packed:{FRONT}", f"packed:{2 * SIZES.chunk}", "batched:1"]
    found = lyapunov.audit(
        model, "sglang_emulated", tokens[:SEQ], variants=ways, n_probes=2
    )
    whole, behind, aligned, batched = found.variants
    assert {one.verdict for one in (whole, behind, aligned)} == {CONSISTENT}
    assert batched.verdict == NOT_RUN
    apart = [one.logits[1].rel_l2 for one in (behind, aligned)]
    assert apart[0] != 0.0 == apart[1]


def test_a_dump_behind_another_text_is_not_bounded(setting, tmp_path):
    """Assert that it says why: nobody knows how far sums had come."""
    model, _, tokens = setting
    path = tmp_path / "stream.npz"
    np.savez(
        path,
        format=FORMAT,
        implementation="sglang_emulated",
        precision="bf16",
        state_precision="fp32",
        tokens=tokens[:SEQ],
        logits=np.zeros((SEQ, SIZES.vocab), np.float32),
        kind=f"packed:{FRONT}",
    )
    with pytest.raises(UsageError, match="send the request alone"):
        lyapunov.audit(model, path)
