"""What torch and transformers round inside one module, against what is declared."""

import dataclasses
import importlib
import inspect

import numpy as np
import pytest

from lyapunov.arithmetic import Rounded
from lyapunov.formats import BF16, FP16
from lyapunov.implementations.transformers.networks import (
    GATE_NORM_ROUNDS_ONCE,
    RESIDUAL_AS_IT_IS,
    transformers_network,
)
from lyapunov.sublayers.mlp import activate
from lyapunov.sublayers.sites import GELU_NEW

from .test_limits import FAMILIES, case, execution_of


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("name", "fmt"), [("bfloat16", BF16), ("float16", FP16)])
def test_gelu_new_rounds_each_operation(name, fmt):
    """Assert the library's activation of 16-bit numbers, but near a tie of tanh.

    tanh is exact here and within 2 ulp of fp32 there: at most 2^-13 of what is stored
    in bf16, and 2^-10 in fp16, is that near. In one operation it is another function.
    """
    import torch
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 4001).to(getattr(torch, name))
    theirs = ACT2FN["gelu_new"](x).double().numpy()
    parts = [part for part in GELU_NEW if part != "square" or fmt is BF16]
    sites = {f"activated_{part}": fmt for part in parts} | {"activated": fmt}
    numbers = {site: form.numbers() for site, form in sites.items()}
    ours = activate(Rounded(numbers), x.double().numpy(), "gelu_new", "activated")
    assert np.mean(np.asarray(ours) != theirs) <= 0.002
    fused = {"activated": fmt.numbers()}
    ours = activate(Rounded(fused), x.double().numpy(), "gelu_new", "activated")
    assert np.mean(np.asarray(ours) != theirs) > 0.1


@pytest.mark.parametrize(
    "family",
    ["mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "zamba2"],
)
def test_gated_norms_of_steps_round_as_declared(family):
    """Assert whether what is normalised is rounded before the weight multiplies it."""
    import torch

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (kind,) = [c for n, c in vars(module).items() if n.endswith("RMSNormGated")]
    sizes = {"hidden_size": 64, "group_size": 64, "norm_before_gate": False}
    known = inspect.signature(kind).parameters
    norm = kind(**{key: value for key, value in sizes.items() if key in known})
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()
    x, gate, weight = draw(1, 200, 64), draw(1, 200, 64), draw(64)
    norm = norm.bfloat16()
    with torch.no_grad():
        norm.weight.copy_(weight)
        found = norm(x, gate)
    y = x.float() * torch.nn.functional.silu(gate.float())
    hat = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    once = (weight.float() * hat).bfloat16()
    twice = weight * hat.bfloat16()
    expected, other = once, twice
    if family not in GATE_NORM_ROUNDS_ONCE:
        expected, other = twice, once
    apart = lambda y: (found != y).double().mean().item()
    # sums of fp32 in another order move a number near a tie
    assert apart(expected) < 0.01
    assert apart(other) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_declare_what_their_norms_round(family):
    """Assert it of the execution that a check takes."""
    _, model = case(family)
    rounds = "gate_norm_hat" in execution_of(model, "decode").sites
    assert rounds == (family not in GATE_NORM_ROUNDS_ONCE)
    assert "gate_norm_hat" not in execution_of(model, "prefill").sites


@pytest.mark.parametrize("family", ["mamba2", "falcon_mamba", "nemotron_h"])
def test_the_residual_has_the_format_that_modules_give_it(family):
    """Assert it where there is the switch, which Nemotron-H does not read."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    read = "residual_in_fp32" in inspect.getsource(module)
    _, model = case("nemotron_h")
    config = dataclasses.replace(model.config, residual_in_fp32=True)
    residual = transformers_network(config, family, "bf16").sites["residual"]
    assert (residual.name == "fp32") == read
    assert read == (family not in RESIDUAL_AS_IT_IS)


@pytest.mark.parametrize("kind", ["mlp", "experts", "shared"])
def test_each_operation_of_gelu_new_is_declared(kind):
    """Assert its stores in every kind that has an activation, but those of fp32."""
    _, model = case("nemotron_h")
    for fmt in (BF16, FP16):
        network = transformers_network(model.config, "nemotron_h", fmt.name)
        parts = {part for part in GELU_NEW if part != "square" or fmt is BF16}
        found = network.of(kind).sites
        begins = ["activated_"] + ["expert_activated_"] * (kind == "experts")
        for begin in begins:
            assert parts == {
                name.removeprefix(begin) for name in found if name.startswith(begin)
            }
