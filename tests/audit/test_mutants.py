"""Implementations broken on purpose: each is called a bug where it starts.

transformers' own functions are replaced one at a time; a way that does not meet the
replaced function stays right.
"""

import pytest
import torch
from transformers.models.mamba import modeling_mamba

from lyapunov.results._audit import BUG, CONSISTENT, SUSPICIOUS

from .conftest import SEQ


# every way of running a text is compiled: about ten seconds each
pytestmark = pytest.mark.slow


HALF = SEQ // 2
LATE = 27


def forgets_the_state(monkeypatch):
    """From one token on, a step starts from zeros."""
    step, calls = modeling_mamba.mamba_selective_state_update, []

    def broken(state, *args, **options):
        calls.append(1)
        # two layers a token, the first one a step as well
        if len(calls) > 2 * LATE:
            state.zero_()
        return step(state, *args, **options)

    monkeypatch.setattr(modeling_mamba, "mamba_selective_state_update", broken)


def loses_the_window(monkeypatch):
    """A step's convolution sees the present token alone."""
    step = modeling_mamba.causal_conv1d_update

    def broken(hidden_states, conv_state, *args, **options):
        return step(hidden_states, torch.zeros_like(conv_state), *args, **options)

    monkeypatch.setattr(modeling_mamba, "causal_conv1d_update", broken)


def lets_padding_in(monkeypatch):
    """The mask is ignored."""
    monkeypatch.setattr(
        modeling_mamba, "apply_mask_to_padding_states", lambda states, mask: states
    )


def stores_the_neighbours_state(monkeypatch):
    """After a prompt each row of the batch gets another row's state."""
    from transformers import DynamicCache

    update = DynamicCache.update_recurrent_state

    def broken(self, states, *args, **options):
        return update(self, torch.roll(states, 1, 0), *args, **options)

    monkeypatch.setattr(DynamicCache, "update_recurrent_state", broken)


def keeps_the_state_in_bf16(monkeypatch):
    """The cache is rounded to 8 bits at every step, where fp32 is declared."""
    step = modeling_mamba.mamba_selective_state_update

    def broken(state, *args, **options):
        out = step(state, *args, **options)
        state.copy_(state.to(torch.bfloat16).float())
        return out

    monkeypatch.setattr(modeling_mamba, "mamba_selective_state_update", broken)


def drops_the_skip(monkeypatch):
    """D u is missing in a step."""
    step = modeling_mamba.mamba_selective_state_update

    def broken(state, u, dt, A, B, C, D=None, **options):
        return step(state, u, dt, A, B, C, None, **options)

    monkeypatch.setattr(modeling_mamba, "mamba_selective_state_update", broken)


# what is broken -> the way that meets it, and the token and tensor where it starts
MUTANTS = [
    (forgets_the_state, "steps", LATE, "gated"),
    (loses_the_window, "steps", 1, "conv"),
    (drops_the_skip, "steps", 0, "gated"),
    (lets_padding_in, "padded_left:5", 0, "conv"),
    (stores_the_neighbours_state, f"padded_left:5,{HALF}", HALF, "gated"),
]


@pytest.mark.parametrize(
    ("mutate", "variant", "token", "tensor"),
    MUTANTS,
    ids=lambda x: getattr(x, "__name__", None),
)
def test_broken_functions_are_found(
    audited, monkeypatch, mutate, variant, token, tensor
):
    """Assert layer, token and tensor; the whole text does not meet the function."""
    mutate(monkeypatch)
    found = audited("whole", variant)
    assert found["whole"].verdict == CONSISTENT
    run = found[variant]
    assert run.verdict == BUG
    first = run.first_violation
    assert (first.layer, first.token, first.tensor) == (0, token, tensor)
    assert run.layers[0].first_violation == first


def test_a_worse_cache_than_declared_is_not_rounding(audited, monkeypatch):
    """Assert that it is a bug, or suspicious at the least."""
    keeps_the_state_in_bf16(monkeypatch)
    assert audited("steps")["steps"].verdict in (BUG, SUSPICIOUS)
