"""The share of a state's roundings in what all of them do at the logits."""

import dataclasses

import pytest

import lyapunov
from lyapunov.bounds.probes import Probes
from lyapunov.formats import BF16, FP16
from lyapunov.implementations import Reference, mamba_ssm_decode
from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers

from ..helpers import not_none
from .estimates import estimates


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    save_transformers(folder, hard_weights("plain"), SIZES)
    return lyapunov.load(str(folder)), tokens_for("plain")[None]


def with_sites(execution, **formats):
    """An execution that stores these and nothing else."""
    return dataclasses.replace(execution, sites=formats)


def test_share_of_a_state_is_all_where_nothing_else_is_stored(small):
    """Assert it to the last bit, and that nobody says it of a state in fp32."""
    model, tokens = small
    steps = mamba_ssm_decode("bf16", state_precision="bf16")
    executions = [
        with_sites(steps, state=BF16),
        mamba_ssm_decode("bf16", state_precision="fp32"),
    ]
    alone, none = estimates(model, tokens, executions, n_readouts=0)
    assert alone.estimate.state_share == 1.0
    assert none.estimate.state_share is None


def test_share_of_a_state_falls_with_the_square_of_its_unit(small):
    """Assert 1/64 for three bits more beside the same other stores.

    Of two shares s and t of one rest, s / (1 - s) over t / (1 - t) is 64; a store of
    logits takes its part in both. The draws are the same, but for the binades that the
    offsets' sizes follow: a factor of 2 covers all states at either end of theirs.
    """
    model, tokens = small
    rest = {"gated": BF16, "conv": BF16}
    executions = [
        with_sites(mamba_ssm_decode("bf16", state_precision=name), state=form, **rest)
        for name, form in (("bf16", BF16), ("fp16", FP16))
    ]
    coarse, fine = (
        not_none(one.estimate.state_share)
        for one in estimates(model, tokens, executions, n_probes=2, n_readouts=0)
    )
    assert 0 < fine < coarse < 1
    odds = coarse / (1 - coarse) / (fine / (1 - fine))
    assert 32 < odds < 128


def test_share_of_a_state_takes_no_program_of_its_own(small, programs):
    """Assert that the run of its roundings alone is the other probes' program."""
    model, tokens = small
    execution = mamba_ssm_decode("bf16", state_precision="bf16")
    for of_state in (False, True):
        probes = Probes(model, tokens, execution, n_probes=1, seed=0, of_state=of_state)
        reference = Reference().trace(model, tokens)
        for layer in model.sublayers:
            probes.sublayer(layer, next(reference))
        probes.head()
        if not of_state:
            programs.clear()
    assert not {"run_sampled", "_together", "_norm_sampled"} & {*programs}
