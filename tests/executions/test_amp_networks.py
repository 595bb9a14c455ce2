"""Autocast over attention, MLPs and experts, held to what torch itself casts."""

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.formats import BF16, FP32
from lyapunov.implementations import executions_for
from lyapunov.implementations._autocast import CAST, KEPT, autocast_parameters
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.implementations.transformers.network_runner import TransformersNetwork
from lyapunov.sublayers.kinds import KINDS
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..families.runs import divergences


# Of these the kernels of mamba_ssm, which are emulated, cast something else.
OF_THE_MIXER = ("mamba1", "mamba2")
NETWORKS = [
    ("llama", "grouped heads"),
    ("gpt_neox", "parallel"),
    ("falcon_h1", "all multipliers"),
]
FOLLOWED = {
    *("mamba1", "mamba2", "mamba3", "attention", "mlp", "experts", "shared"),
    "short_conv",
}
"""Kinds that autocast is followed for: of others what runs them so was not read."""
SEQ = 12


@functools.cache
def models(family, name):
    """(torch's, ours) of one small random network in fp32."""
    network = make(family, **CONFIGURATIONS[family][name])
    network.set_attn_implementation("eager")
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    return network, lyapunov.load(folder)


def under_autocast(model, precision="bf16-amp", mode="prefill"):
    [execution] = executions_for(
        model.config, [precision], architecture=model.layout.architecture, mode=mode
    )
    return execution


def test_every_kind_says_of_each_parameter_once_whether_it_is_cast():
    assert CAST.keys() == KEPT.keys() == KINDS.keys()
    for kind in KINDS:
        both = (*CAST[kind], *KEPT[kind])
        assert len(set(both)) == len(both), kind
    with pytest.raises(UsageError, match="'convolution'"):
        autocast_parameters("convolution", BF16)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, marks=[] if case in NETWORKS[:1] else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_every_parameter_of_every_family_is_in_a_list(family, name, mode):
    """Assert that a name in neither list is refused, and that none is."""
    _, model = models(family, name)
    if not {layer.kind for layer in model.sublayers} <= FOLLOWED:
        with pytest.raises(UsageError, match="bf16-amp is followed for") as caught:
            under_autocast(model, mode=mode)
        assert "--precision bf16" in caught.value.hint
        return
    execution = under_autocast(model, mode=mode)
    for layer in model.sublayers:
        own = execution.of(layer.kind)
        for name, array in model.raw_parameters(layer.layer).items():
            fmt = own.parameter_format(name)
            assert fmt in (BF16, FP32)
            assert (fmt == BF16) == (name in CAST[layer.kind])
            if array.ndim > 1 and name not in KEPT[layer.kind]:
                assert fmt == BF16, (layer.kind, name)
        with pytest.raises(UsageError, match=r"'new_proj'.*is cast"):
            own.parameter_format("new_proj")


def cast_by_torch(network, tokens):
    """Names of the parameters that autocast on the CPU copies to bf16."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    places = {p.data_ptr(): name for name, p in network.named_parameters()}
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
                seen.add(places.get(args[0].data_ptr()))
            return out

    with torch.no_grad(), Watch(), torch.autocast("cpu", torch.bfloat16):
        network(torch.tensor(tokens), use_cache=False)
    return seen - {None}


@pytest.mark.parametrize(("family", "name"), NETWORKS)
def test_what_is_cast_is_what_torch_casts(family, name):
    """Assert every parameter of attention and MLPs, and the projections of mixers."""
    network, model = models(family, name)
    seen = cast_by_torch(network, np.arange(SEQ)[None] % 50)
    execution = under_autocast(model)
    compared = 0
    for layer in model.sublayers:
        own = execution.of(layer.kind)
        for name, part in model.layout.parts[layer.layer].items():
            if layer.kind in OF_THE_MIXER and not name.endswith("_proj"):
                continue
            wanted = all(stored in seen for stored in part.names)
            assert (own.parameter_format(name) == BF16) == wanted, (layer.kind, name)
            compared += wanted
    assert compared >= 6
    assert execution.parameter_format("head") == BF16
    assert execution.parameter_format("embedding") == FP32
    assert seen & {"lm_head.weight", "embed_out.weight"}
    assert model.layout.names.embedding not in seen


class UnderAutocast(TransformersNetwork):
    """Torch's own autocast on the CPU over fp32 weights."""

    def __init__(self, execution, network):
        super().__init__(execution)
        self._under: Any = network

    def built(self, model):
        import torch

        run = torch.autocast("cpu", torch.bfloat16)(self._under.forward)
        network = self._under

        class Cast(torch.nn.Module):
            device = network.device

            def named_modules(self, *_, **__):
                return network.named_modules()

            def get_input_embeddings(self):
                return network.get_input_embeddings()

            def forward(self, *given, **named):
                return run(*given, **named)

        return torch, Cast()

    def trace(self, model, tokens):
        """As hooks see it, but for the norm: what products read of it is a cast."""
        for record in super().trace(model, tokens):
            if isinstance(record, SublayerRecord) and "norm" in record.stored:
                own = self.execution.of(record.kind).sites["norm"]
                cast = np.asarray(record.stored["norm"])
                if own == BF16:
                    cast = cast.astype(np.float32).astype(jax.numpy.bfloat16)
                record.stored["norm"] = jax.numpy.asarray(cast.astype(np.float64))
            yield record


@contextlib.contextmanager
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), NETWORKS[:2])
def test_torch_itself_is_within_the_bounds(family, name):
    """Assert it of every sublayer, that bounds are tight, and that weights that stay in
    fp32 (as if autocast left them) are caught."""
    network, model = models(family, name)
    tokens = np.random.default_rng(3).integers(0, 50, (1, SEQ))
    execution = under_autocast(model)
    with wide():
        for found in divergences(
            model, execution, UnderAutocast(execution, network).trace(model, tokens)
        ):
            assert found.first is None, (found.layer, found.first)
            measured = float(found.whole.measured_square.sum()) ** 0.5
            bound = float(found.whole.bound_square.sum()) ** 0.5
            assert 0 < measured <= bound < 100 * measured
        uncast = dataclasses.replace(
            execution,
            kinds={
                kind: dataclasses.replace(
                    one, parameters=dict.fromkeys(one.parameters, FP32)
                )
                for kind, one in execution.kinds.items()
            },
        )
        caught = [
            found.layer.kind
            for found in divergences(
                model, uncast, UnderAutocast(uncast, network).trace(model, tokens)
            )
            if found.first is not None
        ]
    assert {"attention", "mlp"} <= set(caught)
