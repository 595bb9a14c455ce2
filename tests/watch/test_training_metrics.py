"""Assert what a training of any network logs, and that it trains as it would have."""

import math

import pytest

import lyapunov
from lyapunov._errors import UsageError


pytest.importorskip("torch")

import torch

from .networks import BothWays, made
from .test_network_output import (
    Drops,
    WithBatchNorm,
    assert_as_before,
    state_of,
    tokens,
)


NAMES = {"max_exponent", "decay_min", "decay_max", "memory_tokens", "findings"}


def test_figures_are_those_of_a_watch():
    network = made(BothWays).train()
    found = lyapunov.training_metrics(network, tokens(), output=True, probes=4)
    more = {"measured_divergence", "predicted_divergence"}
    assert set(found) == {f"lyapunov/{name}" for name in NAMES | more}
    assert all(type(x) is float and math.isfinite(x) for x in found.values())
    watched = lyapunov.watch(
        made(BothWays), precisions=["bf16"], effort="quick", output=True, probes=4
    )
    report = watched(tokens())
    network_output = report.precisions[0].network
    assert network_output is not None
    assert found["lyapunov/max_exponent"] == report.exponents.max
    assert found["lyapunov/measured_divergence"] == network_output.measured_rel_l2
    assert found["lyapunov/predicted_divergence"] == network_output.sigma_t3


@pytest.mark.parametrize("inputs", [tokens(), (tokens(),), {"tokens": tokens()}])
def test_inputs_alone_in_a_tuple_or_by_name(inputs):
    found = lyapunov.training_metrics(made(BothWays), inputs)
    assert set(found) == {f"lyapunov/{name}" for name in NAMES}


@pytest.mark.parametrize("kind", [WithBatchNorm, Drops])
def test_training_goes_on_as_it_would_have(kind):
    """Step for step, with batch norms and dropout; also the modes of parts."""

    def trained(*, looked_at: bool) -> dict[str, torch.Tensor]:
        network = made(kind).train()
        network.norm.eval()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(3):
            optimiser.zero_grad()
            network(tokens(step)).square().sum().backward()
            if looked_at:
                before = state_of(network)
                lyapunov.training_metrics(network, tokens(), output=True)
                assert_as_before(before, state_of(network))
            optimiser.step()
        return network.state_dict()

    with torch.random.fork_rng():
        alone = trained(looked_at=False)
        watched = trained(looked_at=True)
    assert all(torch.equal(x, watched[name]) for name, x in alone.items())


def test_modes_come_back_where_a_check_fails():
    network = made(BothWays).train()
    before = state_of(network)
    with pytest.raises(UsageError, match="no 'logits'"):
        lyapunov.training_metrics(network, tokens(), output="logits")
    assert_as_before(before, state_of(network))
