"""Assert what lower precision in blocks does to the output of a network around them."""

import math
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import ArgumentError, UsageError
from lyapunov.mixers._replaced import ReplacedBlocks
from lyapunov.questions import _network_output


pytest.importorskip("torch")

import torch
from torch import nn

from .emulation import StateIn8Bits, emulated_in_place
from .networks import (
    LENGTH,
    WIDTH,
    BothWays,
    FourWays,
    InsideATransformer,
    Mamba1Block,
    drawn,
    made,
)


QUICK: dict[str, Any] = {"precisions": ["bf16"], "effort": "quick"}


class Named(BothWays):
    """With logits by name, as libraries give them, and a hidden tensor."""

    def forward(self, tokens):
        return {"logits": super().forward(tokens), "hidden": (self.embed(tokens),)}


def tokens(seed: int = 2, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, LENGTH), generator=generator)


def row(network, inputs, **settings) -> Any:
    given: Any = QUICK | settings
    (precision,) = lyapunov.watch(network, **given)(inputs).precisions
    assert precision.network is not None
    return precision.network


def by_hand(network, inputs, names, **kernel) -> float:
    """The same by NumPy's kernel in the network's own forward."""
    with torch.no_grad():
        reference = network(inputs).double()
        with emulated_in_place(network, names, **kernel):
            moved = network(inputs).double()
    return float((moved - reference).norm() / reference.norm())


@pytest.mark.parametrize(
    ("settings", "kernel"),
    [({}, {}), ({"state_precision": "fp8_e4m3"}, {"kernel": StateIn8Bits})],
    ids=["bf16", "a state in e4m3"],
)
def test_effect_is_that_of_another_emulation(settings, kernel):
    """Equal bit for bit, unless a number lies so near the middle of two that the order
    of an fp32 sum decides: that moves it by a unit where rounding moves all by 0.29 of
    one, which changes the effect by sqrt(12 / 10^4) of itself, since the blocks store
    10^4 numbers. 1 % leaves no room for one."""
    network = made(BothWays)
    found = row(network, tokens(), output=True, **settings)
    wanted = by_hand(network, tokens(), ["forth", "back"], **kernel)
    assert found.measured_rel_l2 == pytest.approx(wanted, rel=0.01)
    assert found.decisions_total == 2
    if settings:  # what the state alone does would be seen
        without = by_hand(network, tokens(), ["forth", "back"])
        assert abs(wanted / without - 1) > 0.05


def test_each_block_alone_is_that_of_another_emulation():
    network = made(BothWays)
    found = row(network, tokens(), output=True, effort="standard", probes=0)
    assert set(found.by_block) == {"forth", "back"}
    for name, value in found.by_block.items():
        wanted = by_hand(network, tokens(), [name])
        assert value == pytest.approx(wanted, rel=0.01)
    # two blocks, so that mistaking one for the other would be seen
    assert not math.isclose(*found.by_block.values(), rel_tol=0.05)


@pytest.mark.parametrize("wrong", ["one is skipped", "the other's weights"])
def test_a_block_that_is_skipped_or_mistaken_would_be_seen(wrong, monkeypatch):
    """With such a defect planted the tests above would fail."""
    network = made(BothWays)
    right = by_hand(network, tokens(), ["forth", "back"])
    begun, placed = ReplacedBlocks.__enter__, _network_output._place

    def skipping(blocks):
        blocks._found = blocks._found[:1]
        return begun(blocks)

    first = []

    def mistaken(number, one, source):
        first.append(one)
        return placed(number, one._replace(mixer=first[0].mixer), source)

    if wrong == "one is skipped":
        monkeypatch.setattr(ReplacedBlocks, "__enter__", skipping)
        with pytest.raises(UsageError, match="not called as often"):
            row(network, tokens(), output=True)
        return
    monkeypatch.setattr(_network_output, "_place", mistaken)
    found = row(network, tokens(), output=True, probes=0)
    assert abs(found.measured_rel_l2 / right - 1) > 0.05


def test_a_block_in_a_transformer_whose_batch_is_in_the_middle():
    network, x = made(InsideATransformer), drawn(LENGTH, 2, WIDTH)
    found = row(network, x, output=True, sequence_first=["block"])
    wanted = by_hand(network, x, ["block"])
    assert found.measured_rel_l2 == pytest.approx(wanted, rel=0.01)
    assert 1 / 3 < found.calibration_z < 3


def test_all_calls_of_one_block_are_replaced():
    network, image = made(FourWays), drawn(2, 4, 8, WIDTH)
    found = row(network, image, output=True)
    wanted = by_hand(network, image, ["block"])
    assert found.measured_rel_l2 == pytest.approx(wanted, rel=0.01)
    assert found.by_block == {}


def test_prediction_over_seeds():
    """z² is a mean of squares of what one run did over what four draws did: over eight
    networks of ten outputs its rms is within a factor 2 of 1, and no one is beyond 3,
    where a wrong sigma would have all."""
    found = []
    for seed in range(8):
        network = made(BothWays, seed)
        one = row(network, tokens(seed), output=True, probes=8)
        assert one.sigma_withheld is None
        assert one.sigma_t3 > one.shift_rel_l2 > 0
        assert one.nonlinearity < 0.05
        found.append(one.calibration_z)
    assert 0.5 < float(np.sqrt(np.mean(np.square(found)))) < 2.0
    assert 1 / 3 < float(np.median(found)) < 3
    assert max(found) < 3.0


def test_ways_to_name_an_output():
    network = made(Named)
    rows = [
        row(network, tokens(), output=output)
        for output in ("logits", lambda found: found["logits"])
    ]
    assert rows[0].output == "logits"
    assert rows[1].output == "<lambda>"
    assert rows[0].measured_rel_l2 == rows[1].measured_rel_l2
    untouched = row(network, tokens(), output=lambda found: found["hidden"][0])
    assert untouched.measured_rel_l2 == 0.0
    assert untouched.shape == [2, LENGTH, WIDTH]


def test_metrics_that_decide_and_that_are_numbers():
    network = made(BothWays)
    signs = row(network, tokens(), output=True, metric=lambda y: y > 0)
    assert signs.decisions_total == 10
    mean = row(network, tokens(), output=True, metric=lambda y: y.mean())
    with torch.no_grad():
        wanted = float(network(tokens()).mean())
    assert mean.metric_reference == pytest.approx(wanted, rel=1e-6)
    assert mean.metric_value != mean.metric_reference
    assert mean.decisions_changed is None
    none = row(network, tokens(), output=True, metric=False)
    assert none.decision is None


def test_changed_decisions_are_counted():
    """Of sums rounded to multiples so small that bf16 moves nearly all of them."""
    network = made(BothWays)
    fine = lambda y: torch.round(y * 1e7).long()
    found = row(network, tokens(), output=True, metric=fine)
    assert found.decisions_changed > 5


def state_of(network: Any) -> tuple:
    hooks = [
        len(one._forward_hooks) + len(one._forward_pre_hooks)
        for one in network.modules()
    ]
    modes = [one.training for one in network.modules()]
    values = {name: x.clone() for name, x in network.state_dict().items()}
    gradients = [p.grad for p in network.parameters()]
    return hooks, modes, values, gradients, torch.random.get_rng_state()


def assert_as_before(before: tuple, after: tuple) -> None:
    assert before[:2] == after[:2]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(x, after[2][name]) for name, x in before[2].items())
    pairs = zip(before[3], after[3], strict=True)
    assert all(x is y for x, y in pairs)
    assert torch.equal(before[4], after[4])


class WithBatchNorm(BothWays):
    """Whose running means change with every forward in training."""

    def __init__(self):
        super().__init__()
        self.behind = nn.BatchNorm1d(5)

    def forward(self, tokens):
        return self.behind(super().forward(tokens))


def test_nothing_changes_in_the_network():
    network = made(WithBatchNorm).train()
    network(tokens()).sum().backward()
    before = state_of(network)
    found = row(network, tokens(), output=True, probes=1)
    assert found.measured_rel_l2 > 0
    assert_as_before(before, state_of(network))


class Raises(BothWays):
    """From its third forward on."""

    runs = 0

    def forward(self, tokens):
        found = super().forward(tokens)
        self.runs += 1
        if self.runs > 2:
            raise RuntimeError("no third time")
        return found


def test_nothing_is_left_behind_where_a_forward_raises():
    network = made(Raises)
    before = state_of(network)
    with pytest.raises(RuntimeError, match="no third time"):
        row(network, tokens(), output=True)
    assert_as_before(before, state_of(network))
    assert network.runs == 3


class Drops(BothWays):
    def forward(self, tokens):
        return nn.functional.dropout(super().forward(tokens), 0.5, self.training)


class Writes(nn.Module):
    """Into what it is given."""

    def __init__(self):
        super().__init__()
        self.block = Mamba1Block()

    def forward(self, x):
        x += self.block(x)
        return x


def test_a_network_that_draws_is_refused():
    with pytest.raises(UsageError, match="two runs on the same inputs") as told:
        row(made(Drops).train(), tokens(), output=True)
    assert told.value.hint == "model.eval()"
    assert row(made(Drops), tokens(), output=True).measured_rel_l2 > 0


def test_a_network_that_writes_into_its_inputs():
    found = row(made(Writes), drawn(2, LENGTH, WIDTH), output=True)
    assert 0 < found.measured_rel_l2 < 0.01


def broken(y):
    raise ValueError("nothing here")


@pytest.mark.parametrize(
    ("network", "settings", "words", "hint"),
    [
        (Named, {"output": "logit"}, "no 'logit'", "logits"),
        (Named, {"output": "hidden"}, "tuple, no tensor", "logits"),
        (Named, {"output": True}, "dict, no tensor", "logits"),
        (Named, {"output": 0}, r"no \[0\]", "logits"),
        (Named, {"output": broken}, "raised ValueError", "logits"),
        (BothWays, {"output": "logits"}, "no 'logits'", "output=True"),
        (BothWays, {"output": lambda y: y.argmax(-1)}, "int64", "metric="),
        (BothWays, {"output": lambda y: y / 0}, "not finite", "inputs"),
        (BothWays, {"output": True, "metric": broken}, "raised ValueError", "(2, 5)"),
        (BothWays, {"output": True, "metric": lambda y: y}, "shape", "one number"),
    ],
)
def test_outputs_and_metrics_that_are_none(network, settings, words, hint):
    with pytest.raises(UsageError, match=words) as told:
        row(made(network), tokens(), **settings)
    assert hint in told.value.hint


def test_arguments_that_are_wrong():
    network = made(BothWays)
    for wrong in (0.5, False, ""):
        with pytest.raises(ArgumentError, match="output is"):
            lyapunov.watch(network, output=wrong)
    with pytest.raises(ArgumentError, match="metric is"):
        lyapunov.watch(network, output=True, metric="accuracy")
    with pytest.raises(UsageError, match="without output="):
        lyapunov.watch(network, metric=bool)
    with pytest.raises(UsageError, match="measure='none'"):
        lyapunov.watch(network, output=True, measure="none")
    with lyapunov.watch(network, output=True) as seen:
        network(tokens())
    with pytest.raises(UsageError, match="needs the inputs"):
        seen.report()


def test_a_network_in_sixteen_bits_has_no_prediction():
    network = made(Mamba1Block, seed=3).to(torch.bfloat16)
    x = drawn(2, LENGTH, WIDTH).to(torch.bfloat16)
    report = lyapunov.watch(network, output=True, **QUICK, probes=1)(x)
    (precision,) = report.precisions
    one = precision.network
    assert one is not None
    assert one.sigma_t3 is None
    assert one.sigma_withheld is not None
    assert "itself runs in bf16" in one.sigma_withheld
    assert any("itself runs in bf16" in line for line in report.assumptions)


def test_blocks_see_the_call_and_keep_what_stands_beside():
    """A tuple keeps its rest, a hook of the user's sees what goes on instead."""

    class Pair(Mamba1Block):
        def forward(self, x):
            return super().forward(x), "beside"

    block = made(Pair)
    seen: list[Any] = []
    block.register_forward_hook(lambda _, given, result: seen.append(result))
    (found,) = lyapunov.mixers.find_mixers(block)
    x = drawn(2, LENGTH, WIDTH)
    with torch.no_grad(), ReplacedBlocks([found], lambda *call: 2.0 * call[3]):
        result = block(x)
    with torch.no_grad():
        assert torch.equal(result[0], 2 * block(x)[0])
    assert result[1] == "beside"
    assert seen[0] is result


def test_every_form_shows_the_output_and_no_tokens(tmp_path):
    network = made(Named)
    watched = lyapunov.watch(
        network, precisions=["bf16"], output="logits", bounds=False
    )
    report = watched(tokens())
    texts = [str(report)]
    for ending in ("md", "html", "json"):
        report.save(tmp_path / f"report.{ending}")
        texts.append((tmp_path / f"report.{ending}").read_text(encoding="utf-8"))
    for text in texts[:3]:
        assert "Output of the network: logits (2 x 5)" in text
        assert "decisions (argmax of the last axis): 0 of 2 change" in text
        assert "top token" not in text
    again = lyapunov.report.read_report(tmp_path / "report.json")
    assert isinstance(again, lyapunov.Report)
    assert again.precisions[0].network == report.precisions[0].network
