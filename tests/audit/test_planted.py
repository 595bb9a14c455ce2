"""Eight planted faults of a cache or a mask: each is a bug, at its first token.

A table of families and faults says where each is told, or why a family cannot have it.
The text runs by steps, two sequences beside each other; a mask is of a padded text.
"""

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations.transformers._cache import cache_argument
from lyapunov.implementations.transformers.network_runner import TransformersNetwork
from lyapunov.results._audit import BUG, CONSISTENT

from ..helpers import not_none
from . import planted
from .conftest import FAMILIES, SEQ_OF_FAMILIES as SEQ
from .planted import LATE


# what is broken -> how, in which tensors of the cache, and the first token concerned;
# of a narrower format the first that can be, where its error is beyond the bound
STATE, WINDOW, KEYS = "recurrent_states", "conv_states", "keys"
FAULTS = {
    "state stale": (planted.stale_state, STATE, LATE),
    "state lost": (planted.lost, STATE, LATE),
    "state a token late": (planted.late_state, STATE, 1),
    "state in a narrower format": (planted.narrow, STATE, 1),
    "state of another row": (planted.of_another_row, STATE, LATE),
    "window lost": (planted.lost, WINDOW, LATE),
    "keys stale": (planted.stale_keys, KEYS, LATE),
    "keys lost": (planted.lost, KEYS, LATE),
    "keys a token late": (planted.late_keys, KEYS, 1),
    "keys in a narrower format": (planted.narrow, KEYS, 1),
    "keys of another row": (planted.of_another_row, KEYS, LATE),
    "wrong positions": (planted.wrong_position, KEYS, LATE),
}
ATTENTION = ("attention", "latent_attention")
RECURRENT = ("mamba1", "mamba2", "gated_delta", "kimi_delta")
NO_RECURRENCE = "no sublayer has a state or a window"
NO_ATTENTION = "no sublayer has keys and values"
NO_POSITIONS = "attention is told no positions"


def cannot_have(family, fault):
    """The reason why a family cannot have it, None where it can."""
    carried = FAULTS[fault][1]
    if family == "gpt_neox" and carried != KEYS:
        return NO_RECURRENCE
    if family == "mamba2" and carried == KEYS:
        return NO_ATTENTION
    if fault == "wrong positions" and family not in ("gpt_neox", "qwen3_next"):
        return NO_POSITIONS
    return None


CELLS = [(family, fault) for family in FAMILIES for fault in FAULTS]
CAN = [cell for cell in CELLS if cannot_have(*cell) is None]
CANNOT = [cell for cell in CELLS if cannot_have(*cell) is not None]


def two_texts(model):
    vocab = model.config.vocab_size
    return np.random.default_rng(3).integers(1, vocab, (2, SEQ))


def broken(monkeypatch, plant):
    """Let a fault into each network that is built."""
    built = TransformersNetwork.built

    def with_fault(self, model):
        torch, network = built(self, model)
        plant(network)
        return torch, network

    monkeypatch.setattr(TransformersNetwork, "built", with_fault)


def first_that(model, kinds):
    return next(layer.layer for layer in model.sublayers if layer.kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "fault"), CAN)
def test_faults_of_a_cache_are_bugs(models, monkeypatch, family, fault):
    """Assert a bug in the first sublayer that is handed the tensors, at the first token
    that reads them wrongly, and nothing before."""
    model, _ = models(family)
    function, what, token = FAULTS[fault]
    broken(
        monkeypatch,
        lambda net: planted.plant(net, function, what, not_none(cache_argument(net))),
    )
    tokens = two_texts(model)
    (run,) = lyapunov.audit(model, "transformers", tokens, variants="steps").variants
    assert run.verdict == BUG
    first = run.first_violation
    assert first is not None
    kinds = ATTENTION if what == KEYS else RECURRENT
    layer = first_that(model, kinds)
    assert (first.layer, first.batch) == (layer, 0)
    if function is not planted.narrow:
        assert first.token == token
    assert first.token >= token
    assert first.measured > first.bound
    assert not any(x.violations for x in run.layers[:layer])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_runs_without_a_fault_are_rounding(models, family):
    """Assert it of both sequences by steps, and of a padded text."""
    model, _ = models(family)
    given = model, "transformers", two_texts(model)
    for run in lyapunov.audit(*given, variants=["steps", "padded_left:3"]).variants:
        assert (run.verdict, run.violations) == (CONSISTENT, 0), run.first_violation


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_that_is_ignored_is_a_bug(models, monkeypatch, family):
    """Assert it at the first sublayer in which tokens meet, and at the first token."""
    model, _ = models(family)
    broken(monkeypatch, planted.without_mask)
    given = model, "transformers", two_texts(model)
    (run,) = lyapunov.audit(*given, variants="padded_left:3").variants
    assert run.verdict == BUG
    first = not_none(run.first_violation)
    layer = first_that(model, (*RECURRENT, *ATTENTION))
    assert (first.layer, first.token) == (layer, 0)


@pytest.mark.parametrize(("family", "fault"), CANNOT)
def test_a_fault_that_a_family_cannot_have_is_said_why(models, family, fault):
    """Assert the reason of the table from the network itself."""
    model, _ = models(family)
    kinds = {layer.kind for layer in model.sublayers}
    sizes = [x for x in model.config.sublayers if x.kind in ATTENTION]
    reason = cannot_have(family, fault)
    if reason == NO_RECURRENCE:
        assert not any(x.recurrent for x in model.config.sublayers)
    elif reason == NO_ATTENTION:
        assert not kinds & set(ATTENTION)
    else:
        assert reason == NO_POSITIONS
        assert sizes
        assert all(getattr(x, "rotary", 0) == 0 for x in sizes)
