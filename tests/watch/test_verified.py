"""Assert that a block is what its tensors look like, or is refused with a distance."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import ArgumentError, UsageError
from lyapunov.questions._verified import verified


pytest.importorskip("torch")

import torch
from torch.nn import functional as F

from .networks import (
    LENGTH,
    WIDTH,
    Mamba1Block,
    Mamba3Block,
    OtherNames,
    SequenceFirst,
    drawn,
    made,
    mamba2_block,
)


QUICK: dict[str, Any] = {"precisions": ["bf16"], "effort": "quick"}


def inputs() -> torch.Tensor:
    return drawn(2, LENGTH, WIDTH)


class Gelu(Mamba1Block):
    def activated(self, x):
        return F.gelu(x)


class Backwards(Mamba1Block):
    def forward(self, x):
        return super().forward(x.flip(1)).flip(1)


class WithoutSkip(Mamba1Block):
    def forward(self, x):
        wrong = made(Mamba1Block)
        wrong.load_state_dict(self.state_dict())
        with torch.no_grad():
            wrong.D *= 0.0
        return wrong(x)


class AlmostRight(Mamba1Block):
    """One part in ten thousand: 20 times what fp32 can do."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-4)


class OtherDecay(Mamba3Block):
    A_floor = 0.9


@pytest.mark.parametrize(
    "block", [Gelu, Backwards, WithoutSkip, AlmostRight, SequenceFirst, OtherDecay]
)
def test_another_function_is_refused(block):
    network = made(block)
    with pytest.raises(UsageError, match="another function") as told:
        lyapunov.watch(network, **QUICK)(inputs())
    assert "of its size away" in told.value.message
    assert "lyapunov.mixer(kind" in told.value.hint


@pytest.mark.parametrize("block", [Mamba1Block, Mamba3Block, mamba2_block])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_own_types_are_verified(block, dtype):
    """What it gave lies within the bound of its own type, and uses some of it."""
    torch.manual_seed(3)
    network = block().to(dtype)
    report = lyapunov.watch(network, **QUICK)(inputs().to(dtype))
    (told,) = [line for line in report.assumptions if "what it gave" in line]
    words = told.rsplit(", ", 1)[1].split(" ")
    share, z = float(words[0]), float(words[5])
    assert 0.0 < share <= 1.0
    assert z > 0.0
    if dtype == torch.bfloat16 and block is not Mamba3Block:  # which runs in fp64
        assert share > 0.01
        assert 0.5 < z < 2.0  # an eighth to a quarter of what is refused


class ALittleTooLarge(torch.nn.Module):
    """A block of width whose output is multiplied."""

    def __init__(self, factor: float = 1.0003):
        super().__init__()
        self.block, self.factor = Mamba1Block(128, 8, 8), factor
        hook = lambda module, given, result: result * self.factor
        self.block.out_proj.register_forward_hook(hook)

    def forward(self, x):
        return self.block(x)


def test_what_a_bound_in_fp32_lets_through_is_refused_all_the_same():
    """Of a block that is 128 wide the bound is more than that of the output."""
    x = drawn(1, LENGTH, 128)
    told = lyapunov.watch(made(lambda: ALittleTooLarge(1.0)), measure="none")(x)
    share = float(told.assumptions[0].rsplit(", ", 1)[1].split(" ")[0])
    distance = float(told.assumptions[0].split("on cpu is ")[1].split(" ")[0])
    assert distance / share > 3.1e-4
    with pytest.raises(UsageError, match="times what roundings in fp32 make of it"):
        lyapunov.watch(made(ALittleTooLarge), measure="none")(x)


def test_a_norm_before_the_gate_is_found_by_the_output():
    """transformers' norm has no attribute that says it: the output does."""
    network = made(mamba2_block)
    found = lyapunov.mixers.find_mixers(network)
    orders = [getattr(m.sizes, "norm_before_gate", None) for m in found[0].describe()]
    assert orders == [False, True]
    watched = lyapunov.watch(network, **QUICK)
    watched(inputs())
    sizes = verified(watched.calls[0], "it").mixer.sizes
    assert getattr(sizes, "norm_before_gate", None) is False


def test_a_class_of_ones_own():
    """Registered by class or by name; the exponents are the same block's."""
    network = made(OtherNames)

    def describe(module):
        names = {
            "in_proj": "in_proj_of_weight",
            "conv_weight": "conv1d_of_weight",
            "conv_bias": "conv1d_of_bias",
            "x_proj": "x_proj_of_weight",
            "dt_proj": "dt_proj_of_weight",
            "dt_bias": "dt_proj_of_bias",
            "A_log": "A_log",
            "D": "D",
            "out_proj": "out_proj_of_weight",
        }
        weights = {name: getattr(module, stored) for name, stored in names.items()}
        weights["conv_weight"] = weights["conv_weight"][:, 0]
        how = {"activation": "silu", "weightless_norm_epsilon": None}
        return lyapunov.mixer("mamba1", weights, **how)

    reports = [
        lyapunov.watch(network, mixers={key: describe}, **QUICK)(inputs())
        for key in (OtherNames, "")
    ]
    own = lyapunov.watch(network.core[0], **QUICK)(inputs())
    for report in reports:
        assert report.exponents.max == own.exponents.max


def test_weights_are_those_of_each_call():
    """A step of training between two forwards changes the exponents of the second."""
    network = made(Mamba1Block)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    with lyapunov.watch(network, **QUICK) as seen:
        network(inputs()).square().sum().backward()
        optimiser.step()
        network(inputs())
    first, second = seen.report().exponents.layers
    assert first.max != second.max


def _state(network) -> tuple:
    tensors = {n: t.clone() for n, t in network.state_dict().items()}
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()
    ]
    return tensors, hooks, [m.training for m in network.modules()]


class Noisy(torch.nn.Module):
    """A block between BatchNorm and dropout."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.block = Mamba1Block()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, fail=False):
        x = self.block(self.norm(x.transpose(1, 2)).transpose(1, 2))
        if fail:
            raise RuntimeError("the user's own")
        return self.drop(x)


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_changes_in_the_network(fail):
    network = made(Noisy).train()
    before, random = _state(network), torch.get_rng_state()
    watched = lyapunov.watch(network, **QUICK)
    if fail:
        with pytest.raises(RuntimeError, match="the user's own"):
            watched(inputs(), fail=True)
    else:
        watched(inputs())
    after = _state(network)
    assert torch.equal(random, torch.get_rng_state())
    assert before[1:] == after[1:]
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name])
    assert all(p.grad is None for p in network.parameters())


def _wider(network):
    with torch.no_grad():
        network.D = torch.nn.Parameter(torch.ones(3))


def _meta(network):
    network.to("meta")


def _eight_bits(network):
    network.in_proj.weight = torch.nn.Parameter(
        torch.zeros(4 * WIDTH, WIDTH, dtype=torch.int8), requires_grad=False
    )


def _not_finite(network):
    with torch.no_grad():
        network.A_log[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_wider, "D has shape"),
        (_meta, "no values"),
        (_eight_bits, "a quantised module"),
    ],
)
def test_modules_that_cannot_be_watched(spoil, told):
    network = made(Mamba1Block)
    spoil(network)
    with pytest.raises(UsageError, match=told) as error:
        lyapunov.watch(network)
    assert error.value.hint


def test_weights_that_are_not_finite():
    network = made(Mamba1Block)
    _not_finite(network)
    with pytest.raises(UsageError, match="gave values that are not finite"):
        lyapunov.watch(network, **QUICK)(inputs())
    with pytest.raises(ArgumentError, match=r"A_log .* not finite"):
        lyapunov.mixers.find_mixers(network)[0].describe()


def test_what_is_no_network_or_has_no_block():
    with pytest.raises(UsageError, match="no torch module"):
        lyapunov.watch("model")
    plain = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(UsageError, match="no module of it has any tensor") as error:
        lyapunov.watch(plain)
    assert "mixers={Class: describe}" in error.value.hint
    near = made(Mamba1Block)
    del near.x_proj
    with pytest.raises(UsageError, match=r"Mamba1Block .* lacks x_proj"):
        lyapunov.watch(near)
    with pytest.raises(UsageError, match=r"torch\.compile"):
        lyapunov.watch(torch.compile(made(Mamba1Block)))


def test_arguments_and_calls_that_are_not_followed():
    network = made(Mamba1Block)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"layers": [0]}, "takes no layers"),
        ({"options": {"chunks": 3}}, "no option"),
        ({"sequence_first": ["nobody"]}, "no block"),
        ({"mixers": {"nobody": lambda m: m}}, "no module is"),
        ({"mixers": {3: lambda m: m}}, "mixers has"),
        ({"mixers": {Mamba1Block: lambda m: m}}, "gave"),
        ({"precisions": ["fp12"]}, "precision"),
    ]
    for wrong, told in mistakes:
        with pytest.raises(UsageError, match=told) as error:
            lyapunov.watch(network, **wrong)
        assert error.value.hint
    with pytest.raises(UsageError, match="was called"):
        lyapunov.watch(network).report()
    broken = inputs()
    broken[0, 0, 0] = np.inf
    with pytest.raises(UsageError, match="not finite"):
        lyapunov.watch(network, **QUICK)(broken)

    class Cached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = CachedBlock()

        def forward(self, x):
            return self.block(x, cache={})

    with pytest.raises(UsageError, match="called with cache"):
        lyapunov.watch(made(Cached), **QUICK)(inputs())


class CachedBlock(Mamba1Block):
    def forward(self, x, cache=None):
        return super().forward(x)


class WithoutChunk(torch.nn.Module):
    """transformers' block under a class that does not say what a chunk is."""

    def __init__(self):
        super().__init__()
        self.core = [mamba2_block()]  # a list: no submodule
        for name, child in self.core[0].named_children():
            self.add_module(name, child)
        for name in ("dt_bias", "A_log", "D"):
            setattr(self, name, getattr(self.core[0], name))
        self.ngroups = self.core[0].n_groups

    def forward(self, x):
        return self.core[0](x)


def test_an_option_that_nothing_says():
    """The error names what to give, which then does."""
    network = made(WithoutChunk)
    with pytest.raises(UsageError, match="nothing says chunk") as error:
        lyapunov.watch(network)
    assert "options={'chunk'" in error.value.hint
    report = lyapunov.watch(network, options={"chunk": 16}, **QUICK)(inputs())
    assert report.exponents.layers[0].kind == "mamba2"
