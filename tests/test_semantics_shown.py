"""Show with transformers itself that what the findings tell is no rounding."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov.findings._semantics import clipped_dt, semantic_findings
from lyapunov.implementations.transformers._cache import cache_of
from oracles.checkpoints.configurations import MAMBA2
from oracles.checkpoints.transformers import logits, make, tolerance

from .helpers import given_cache, not_none


TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3])
MAMBA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}
# a difference in function is told from one in rounding by this many tolerances
APART = 100


def stepped(network, tokens) -> np.ndarray:
    """Logits (seq, vocab) of steps with a cache, a token at a time."""
    import torch

    rows, given = [], {}
    with torch.no_grad():
        for token in tokens:
            out = network(torch.tensor([[int(token)]]), use_cache=True, **given)
            given = given_cache(network, cache_of(out))
            rows.append(out.logits[0, -1].double().numpy())
    return np.stack(rows)


def seen_dt(model, tokens):
    """Per layer, how many dt of the reference lie at its limits."""
    import jax

    counts = {}
    with jax.enable_x64(True):
        records: Any = lyapunov.implementations.Reference().trace(model, tokens[None])
        for record in records:
            if "dt" in getattr(record, "observed", {}):
                limits = model.config.sublayers[record.layer].dt_limit
                dt = np.asarray(record.observed["dt"])
                counts[record.layer] = clipped_dt(dt, limits)
    return counts


@pytest.mark.parametrize("limits", [(0.3, 0.6), (0.0, 1e6)])
def test_steps_do_not_limit_dt(limits):
    """Assert another function where limits bind, and the same where they do not."""
    network = make("mamba2", **MAMBA2, n_groups=2, time_step_limit=limits)
    apart = np.abs(logits(network, TOKENS) - stepped(network, TOKENS)).max()
    allowed = tolerance(network, TOKENS)
    model = lyapunov.from_torch(network)
    found = semantic_findings(model, 16, observed=seen_dt(model, TOKENS))
    if limits[1] > 1.0:
        assert apart <= allowed
        assert found == []
    else:
        assert apart > APART * allowed
        (finding,) = found
        assert finding.code == "LYA011"
        assert not_none(finding.value) > 0.1


# --- the fused kernel of training, in torch from its source ---------------------------


def fused(norm_after: bool):
    """`mamba_inner_fn`, with dt normalised behind dt_proj as there, or before it."""
    import torch
    import torch.nn.functional as F

    def norm(x, eps):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    def inner(
        xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D,
        *, delta_bias, b_c_dt_rms_eps=None, **kwargs,
    ):  # fmt: skip
        x, z = xz.chunk(2, dim=1)
        seq, rank, states = x.shape[-1], dt_proj.shape[1], A.shape[1]
        taps = conv_weight.shape[-1]
        x = F.conv1d(x, conv_weight, conv_bias, padding=taps - 1, groups=x.shape[1])
        x = F.silu(x[..., :seq])
        dt, B, C = F.linear(x.mT, x_proj).split([rank, states, states], dim=-1)
        eps = b_c_dt_rms_eps
        if eps is not None:
            B, C = norm(B, eps), norm(C, eps)
            dt = F.linear(dt, dt_proj) if norm_after else norm(dt, eps)
            dt = norm(dt, eps) if norm_after else F.linear(dt, dt_proj)
        else:
            dt = F.linear(dt, dt_proj)
        dt = F.softplus(dt + delta_bias)
        state, rows = torch.zeros(*x.shape[:2], states), []
        for t in range(seq):
            decay = torch.exp(dt[:, t, :, None] * A)
            state = decay * state + (dt[:, t] * x[..., t])[..., None] * B[:, t, None]
            rows.append((state * C[:, t, None]).sum(-1) + D * x[..., t])
        return F.linear(torch.stack(rows, 1) * F.silu(z.mT), out_proj, out_bias)

    return inner


@pytest.mark.parametrize("norm_after", [True, False])
def test_falcon_mamba_trains_another_function(norm_after, monkeypatch):
    """Assert that the place of the norm is all that makes the difference."""
    from transformers.models.falcon_mamba import modeling_falcon_mamba as module

    network = make("falcon_mamba", **MAMBA)
    monkeypatch.setattr(module, "mamba_inner_fn", fused(norm_after))
    served = logits(network, TOKENS)
    trained = logits(network.train(), TOKENS)
    allowed = tolerance(network.eval(), TOKENS)
    apart = np.abs(trained - served).max()
    assert apart > APART * allowed if norm_after else apart <= allowed
    found = semantic_findings(lyapunov.from_torch(network), 16)
    assert [f.code for f in found] == ["LYA012"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj"])
def test_adapters_without_gradient(target, kernel, monkeypatch):
    """Assert that the finding names the modules whose adapter torch does not reach."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.models.mamba import modeling_mamba as module

    network = make("mamba", **MAMBA).train()
    if kernel:
        monkeypatch.setattr(module, "mamba_inner_fn", fused(False))
    wrapped = get_peft_model(network, LoraConfig(r=2, target_modules=[target])).train()
    ids = torch.tensor(TOKENS)[None]
    loss = wrapped(ids, labels=ids).loss
    reached = loss.requires_grad  # nothing but the adapter could ask for a gradient
    if reached:
        loss.backward()
        grads = [p.grad for name, p in wrapped.named_parameters() if "lora_B" in name]
        assert all(not_none(grad).abs().max() > 0 for grad in grads)

    targets = [n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")]
    found = semantic_findings(lyapunov.from_torch(wrapped), 16, adapter_targets=targets)
    told = " ".join(f.message for f in found if f.code == "LYA014")
    everywhere = f"{target} on every path" in told
    in_kernel = everywhere or f"{target} in training" in told
    assert reached == (not in_kernel if kernel else not everywhere)
