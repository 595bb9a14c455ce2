"""A perturbation of a sublayer's state or input stays under its bound."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random Mamba-1 away from its initialisation."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import lyapunov

    torch.manual_seed(3)
    network = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=64, hidden_size=24, num_hidden_layers=2, state_size=4
        )
    )
    with torch.no_grad():
        for block in network.backbone.layers:
            block.mixer.A_log.uniform_(-1.0, 2.5)
            block.mixer.D.normal_()
            block.mixer.dt_proj.bias.add_(torch.randn(48))
    folder = tmp_path_factory.mktemp("perturbed")
    network.save_pretrained(folder)
    return lyapunov.load(folder)


@pytest.fixture(scope="module")
def stream(model):
    """What enters the second sublayer."""
    import lyapunov

    tokens = np.random.default_rng(5).integers(0, 64, 48)
    records = list(lyapunov.trace(model, tokens))
    return np.asarray(records[1].residual + records[1].hidden)[0]


@pytest.mark.parametrize("kind", ["initial_state", "one_input", "all_inputs"])
@pytest.mark.parametrize("size", [1e-9, 1e-4, 0.3])
def test_no_direction_exceeds_the_bound_and_it_is_not_vacuous(
    model, stream, kind, size
):
    """Assert that measured <= bound at every token, and bound < 100 x measured."""
    from lyapunov.bounds.sublayer_perturbation import sublayer_perturbation

    result = sublayer_perturbation(model, 1, stream, kind=kind, size=size, token=11)
    # each forward carries about (operations on a path) x 2^-53 of its own
    own = 2 * 24 * 48 * 2.0**-53 * max(1.0, float(np.abs(stream).max()))
    assert np.all(result.measured_by_token <= result.bound_by_token + own)
    assert result.measured > 0
    if size <= 1e-4:
        # at 0.3 the second order is as large as the first
        assert result.bound.value < 100 * result.measured


def test_nothing_moves_before_the_perturbed_token(model, stream):
    """Assert that one input's perturbation is causal, in bound and measurement."""
    from lyapunov.bounds.sublayer_perturbation import sublayer_perturbation

    result = sublayer_perturbation(
        model, 1, stream, kind="one_input", size=1e-3, token=20
    )
    assert np.all(result.bound_by_token[:20] == 0)
    assert np.all(result.measured_by_token[:20] == 0)
    assert np.all(result.bound_by_token[20:] > 0)


def test_small_perturbations_scale(model, stream):
    """Assert that halving a small perturbation halves its bound to first order."""
    from lyapunov.bounds.sublayer_perturbation import sublayer_perturbation

    whole, half = (
        sublayer_perturbation(model, 1, stream, kind="all_inputs", size=s).bound.value
        for s in (1e-8, 5e-9)
    )
    # the second-order part is of relative size 1e-8 times constants of the network
    assert whole / half == pytest.approx(2.0, rel=1e-4)


def test_unknown_kinds_are_named(model, stream):
    """Assert that a wrong kind says which ones there are."""
    import lyapunov
    from lyapunov.bounds.sublayer_perturbation import sublayer_perturbation

    with pytest.raises(lyapunov.LyapunovError, match="no perturbation 'weights'"):
        sublayer_perturbation(model, 1, stream, kind="weights", size=1.0)
