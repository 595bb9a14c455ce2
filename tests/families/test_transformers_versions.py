"""Versions of transformers that compute something else are followed, or refused."""

import importlib
import importlib.util
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.implementations import executions_for
from lyapunov.implementations.transformers._source import (
    READ,
    RIGHT,
    assume_version,
    body_of,
    installed,
    refuse_other_functions,
    rounds_before_weight,
    source,
)
from lyapunov.implementations.transformers.networks import NORM_ROUNDS_ONCE
from lyapunov.sublayers import Mamba1Sizes, Mamba2Sizes, NetworkConfig


ROOT = Path(__file__).parents[2]
GATED = ("mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "zamba2")

# as in 5.17's modeling_mamba2.py, modeling_bamba.py and modeling_granitemoehybrid.py
WHOLE = """
class {name}RMSNormGated(torch.nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states, gate=None):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)

        if gate is not None:
            hidden_states = hidden_states * nn.functional.silu(gate.to(torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)

        return self.weight * hidden_states.to(input_dtype)


class Mixer(nn.Module):
    def __init__(self, config):
        self.n_groups, self.group_size = config.n_groups, 1
"""
# as in 5.24's
GROUPED = """
class {name}RMSNormGated(torch.nn.Module):
    def __init__(self, hidden_size, group_size, eps=1e-6):
        super().__init__()
        self.group_size = group_size

    def forward(self, hidden_states, gate=None):
        group_count = hidden_states.shape[-1] // self.group_size
        hidden_states = hidden_states.view(-1, group_count, self.group_size)


@use_kernel_func_from_hub_with_fallback("causal_conv1d_update", "causal_conv1d")
def causal_conv1d_update(hidden_states):
    if seq_len == 1:
        return None
"""
# as in 5.17's modeling_falcon_h1.py, and as in 5.24's
SQUEEZED = """
class FalconH1RMSNormGated(torch.nn.Module):
    def forward(self, hidden_states, gate=None):
        hidden_states = hidden_states.view(batch_size, seq_len, self.n_groups, -1)
        if seq_len == 1:
            hidden_states = hidden_states.squeeze(1)
"""
KEPT = SQUEEZED.replace("seq_len == 1:", "input_ndim == 2:")
# as in 5.17's modeling_nemotron_h.py, which lends its gated norm, and as in 5.18's
LENT = "from ...models.zamba2.modeling_zamba2 import Zamba2RMSNormGated\n"
TWICE = """
class NemotronHRMSNorm(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden_states.to(input_dtype)
"""
ONCE = """
class NemotronHRMSNormGated(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states_group = None
        return self.weight * hidden_states.to(input_dtype)


class NemotronHRMSNorm(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return (self.weight.to(torch.float32) * hidden_states).to(input_dtype)
"""


def network(groups, gate_norm=True):
    """One Mamba-2 mixer of so many groups of the gated norm."""
    sizes = Mamba2Sizes(
        d_model=16, d_inner=32, d_state=4, heads=8, groups=groups, d_conv=4, chunk=8,
        norm_epsilon=1e-5, gate_norm_epsilon=1e-5, gate_norm=gate_norm,
        norm_groups=groups,
    )  # fmt: skip
    return NetworkConfig(50, 50, 16, (sizes,))


def execution_of(config, family, mode="prefill"):
    """What a check of that network through transformers takes."""
    (found,) = executions_for(
        config, ["bf16"], architecture=family, mode=mode, measure="transformers"
    )
    return found


@pytest.fixture
def version(tmp_path, monkeypatch):
    """Put a version with these modeling files in the place of the installed one."""

    def put(number, **files):
        for family, code in files.items():
            place = tmp_path / "models" / family / f"modeling_{family}.py"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(code)
        found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
        monkeypatch.setattr(metadata, "version", lambda name: number)

    return put


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("family", GATED)
def test_a_gated_norm_without_groups_is_refused_where_there_are_several(
    family, mode, version
):
    """Assert the sentence, and no refusal where it is the same function."""
    version("5.17.0", **{family: WHOLE.format(name="Any")})
    with pytest.raises(UsageError) as refused:
        execution_of(network(8), family, mode)
    message = str(refused.value)
    assert "transformers 5.17 normalises" in message
    assert family in message
    assert "8 groups" in message
    assert "pip install -U 'transformers>=5.23'" in refused.value.hint
    execution_of(network(1), family, mode)
    execution_of(network(8, gate_norm=False), family, mode)
    version("5.24.0", **{family: GROUPED.format(name="Any")})
    execution_of(network(8), family, mode)


def test_a_gated_norm_of_another_family_is_read_there(version):
    version("5.17.0", nemotron_h=LENT, zamba2=WHOLE.format(name="Zamba2"))
    with pytest.raises(UsageError, match="all channels together"):
        execution_of(network(2), "nemotron_h")
    version("5.17.0", zamba2=GROUPED.format(name="Zamba2"))
    execution_of(network(2), "nemotron_h")


def test_a_gated_norm_that_drops_the_axis_of_tokens_is_refused(version):
    version("5.17.0", falcon_h1=SQUEEZED)
    with pytest.raises(UsageError, match=r"transformers 5\.17 drops an axis"):
        execution_of(network(1), "falcon_h1", "decode")
    execution_of(network(1, gate_norm=False), "falcon_h1", "decode")
    version("5.23.0", falcon_h1=KEPT)
    execution_of(network(4), "falcon_h1", "decode")


def test_where_a_norm_rounds_is_followed(version):
    """Assert it of Nemotron-H, whose norms changed with 5.18."""
    version("5.17.0", nemotron_h=TWICE)
    sites = execution_of(network(1), "nemotron_h").of("mamba2").sites
    assert {"norm_hat", "norm"} <= set(sites)
    assert "norm_f_hat" in execution_of(network(1), "nemotron_h").sites
    version("5.18.0", nemotron_h=ONCE)
    found = execution_of(network(1), "nemotron_h")
    assert "norm_hat" not in {*found.sites, *found.of("mamba2").sites}
    assert "norm_f_hat" not in found.sites


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_versions_before_those_that_were_read_are_refused(mode, version):
    """Assert it of networks and of a plain Mamba-1."""
    version("5.10.4", llama="")
    plain = NetworkConfig(50, 50, 16, (Mamba1Sizes(16, 32, 4, 4, 1, 1e-5),))
    for config, family in ((network(1), "llama"), (plain, "mamba1")):
        with pytest.raises(UsageError, match=r"transformers 5\.10 is older") as refused:
            execution_of(config, family, mode)
        assert "pip install -U" in refused.value.hint


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ("5.17.0", "5.17 is installed"),
        ("5.24.1", "5.24 is installed"),
        ("5.25.0", "5.25 is installed, whose code was not read"),
        ("6.0.0.dev0", "6.0 is installed, whose code was not read"),
    ],
)
def test_a_report_says_which_version_was_read(number, told, version):
    version(number, mamba2="")
    plain = NetworkConfig(50, 50, 16, (Mamba1Sizes(16, 32, 4, 4, 1, 1e-5),))
    for config, family in ((network(1), "mamba2"), (plain, "mamba1")):
        (line,) = [
            one
            for one in execution_of(config, family).assumptions
            if "installed" in one
        ]
        assert line.endswith(f"from 5.17 to 5.24; {told}")


def test_no_version_is_no_accusation(monkeypatch):
    """Assert that an execution is still declared where transformers is not there."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installed() is None
    assert assume_version().endswith("none is installed here")
    assert execution_of(network(8), "mamba2").name == "transformers prefill, bf16"


def test_what_is_asked_for_is_what_was_read():
    """Assert that the package asks for no version that is refused."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [x for x in project["optional-dependencies"]["torch"] if "former" in x]
    assert asked == [f"transformers>={'.'.join(map(str, READ[0]))}"]


@pytest.mark.parametrize("family", GATED)
def test_what_is_refused_is_what_the_installed_modules_do(family):
    """Assert the refusal against the modules of the version that is installed.

    The oracle is the norm in fp64 by groups, of torch's fp32: 2^-24 a rounding.
    """
    import torch

    from oracles.checkpoints.transformers import make

    from .options import FIRST

    key = {"mamba2": "n_groups", "nemotron_h": "n_groups", "zamba2": "mamba_ngroups"}
    settings = {**FIRST[family], key.get(family, "mamba_n_groups"): 2}
    if family == "falcon_h1":
        settings |= {"mamba_rms_norm": True, "mamba_norm_before_gate": False}
    built = make(family, **settings)
    norm = next(m for m in built.modules() if type(m).__name__.endswith("NormGated"))
    rng = np.random.default_rng(0)
    x, gate = rng.normal(size=(2, 2, 3, norm.weight.shape[0])).astype("f4")
    x[..., : x.shape[-1] // 2] *= 9
    gated = x * (gate / (1 + np.exp(-gate, dtype="f8")))
    groups = gated.reshape(*x.shape[:-1], 2, -1)
    scale = np.sqrt((groups**2).mean(-1, keepdims=True) + norm.variance_epsilon)
    weight = norm.weight.detach().double().numpy()
    expected = weight * (groups / scale).reshape(x.shape)
    right = True
    for part in (slice(0, 3), slice(0, 1)):
        with torch.no_grad():
            found = norm(torch.tensor(x[:, part]), torch.tensor(gate[:, part]))
        right &= found.shape == x[:, part].shape and np.allclose(
            found.numpy(), expected[:, part], rtol=2.0**-16, atol=0
        )
    assert body_of(source(family), "RMSNormGated") or family == "nemotron_h"
    if not right:
        with pytest.raises(UsageError):
            refuse_other_functions(family, network(2).sublayers)
        assert (installed() or RIGHT) < RIGHT
        return
    refuse_other_functions(family, network(2).sublayers)


@pytest.mark.parametrize("family", [*GATED, "jamba", "zamba", "llama", "olmo2"])
def test_norms_of_the_installed_modules_round_as_declared(family):
    """Assert whether what is normalised is rounded before the weight multiplies it."""
    import torch

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (kind,) = [c for n, c in vars(module).items() if n.endswith("RMSNorm")]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()
    x, weight = draw(1, 200, 64), draw(64)
    norm = kind(64, eps=1e-5).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(weight)
        found = norm(x)
    y = x.float()
    hat = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
    once, twice = (weight.float() * hat).bfloat16(), weight * hat.bfloat16()
    apart = lambda y: (found != y).double().mean().item()
    declared = family in NORM_ROUNDS_ONCE and not rounds_before_weight(family)
    # sums of fp32 in another order move a number near a tie
    assert apart(once if declared else twice) < 0.01
    assert apart(twice if declared else once) > 0.1
