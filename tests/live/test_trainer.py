"""Assert that the callback logs what a check finds and leaves training as it is."""

import json
import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UnsupportedCheckpointError, UsageError
from oracles.checkpoints.transformers import make

from ..helpers import not_none


TOKENS = np.arange(24) % 40
MAMBA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 1,
    "pad_token_id": None,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*", "ignore::DeprecationWarning"
)


class Watch:
    """What a logger behind the callback would be told."""

    def __new__(cls):
        from transformers import TrainerCallback

        class Seen(TrainerCallback):
            def __init__(self):
                self.logs = []

            def on_log(self, args, state, control, logs=None, **kwargs):
                self.logs.append(dict(not_none(logs)))

        return Seen()


def trainer(network, folder, callbacks=(), steps=4):
    import torch
    from transformers import Trainer, TrainingArguments

    rows = torch.arange(16 * 8).reshape(16, 8) % 40
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=steps,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    given: dict[str, Any] = {"train_dataset": data, "callbacks": list(callbacks)}
    return Trainer(model=network, args=arguments, **given)


@pytest.fixture
def quick(monkeypatch):
    """A check that reads every weight and computes nothing, for what is no figure."""
    output = SimpleNamespace(sigma_t3=0.01, measured_rel_l2=None)
    row = SimpleNamespace(memory_tokens=None, decay_min=0.1, decay_max=math.inf)

    def check(model, tokens, **settings):
        for i in range(len(model.sublayers)):
            model.layout.layer(i)
        return SimpleNamespace(
            exponents=SimpleNamespace(max=-0.5, layers=[row]),
            precisions=[SimpleNamespace(output=output, network=None)],
            findings=[],
        )

    monkeypatch.setattr("lyapunov.questions._training.check", check)


@pytest.mark.slow
def test_figures_of_every_check_are_in_the_history(tmp_path):
    network = make("mamba", **MAMBA)
    start = lyapunov.check(
        lyapunov.from_torch(network), TOKENS, precisions=["bf16"], effort="quick"
    )
    lines = tmp_path / "stability.jsonl"
    callback = lyapunov.StabilityCallback(TOKENS, every=2, budget=1.0, path=lines)
    run = trainer(network, tmp_path / "out", [callback])
    run.train()
    end = lyapunov.check(
        lyapunov.from_torch(network), TOKENS, precisions=["bf16"], effort="quick"
    )

    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["step"] for line in written] == [0, 2, 4]
    for line, report in ((written[0], start), (written[-1], end)):
        output = report.precisions[0].output
        assert line["lyapunov/max_exponent"] == report.exponents.max
        assert line["lyapunov/predicted_divergence"] == output.sigma_t3
        assert line["lyapunov/measured_divergence"] == output.measured_rel_l2
        assert line["findings"] == [f.code for f in report.findings]
        row = report.exponents.layers[0]
        assert line["lyapunov/decay_min"] == row.decay_min
        assert line["lyapunov/decay_max"] == row.decay_max
        assert line["lyapunov/memory_tokens"] == not_none(row.memory_tokens).p90
        assert line["lyapunov/seconds"] > 0
    assert written[0]["lyapunov/max_exponent"] != (written[-1]["lyapunov/max_exponent"])
    logged = {
        entry["step"]: entry
        for entry in run.state.log_history
        if "lyapunov/max_exponent" in entry
    }
    for step in (2, 4):
        (line,) = [line for line in written if line["step"] == step]
        assert line["lyapunov/max_exponent"] == logged[step]["lyapunov/max_exponent"]
    # in an entry of their own, as the loss is in one
    assert [e["step"] for e in run.state.log_history if "loss" in e] == [4]


def add(callback, run):
    run.add_callback(callback)


def attach(callback, run):
    assert callback.attach(run) is callback


def in_a_list(callback, run):
    run.callback_handler.callbacks.insert(0, callback)


@pytest.mark.parametrize("way", [add, attach, in_a_list])
def test_the_callback_reaches_every_logger(tmp_path, quick, way):
    """Assert that loggers before it are told too, wherever the callback stands."""
    watch = Watch()
    run = trainer(make("mamba", **MAMBA), tmp_path, [watch], steps=2)
    way(lyapunov.StabilityCallback(TOKENS, every=1, budget=1.0), run)
    run.train()
    kept = [e for e in run.state.log_history if "lyapunov/max_exponent" in e]
    assert [e["step"] for e in kept] == [0, 1, 2]
    told = [log for log in watch.logs if "lyapunov/max_exponent" in log]
    assert len(told) == 3
    assert told[0]["lyapunov/predicted_divergence"] == 0.01
    # neither what a model does not have nor what JSON cannot hold
    assert told[0].keys() & {"lyapunov/decay_max", "lyapunov/memory_tokens"} == set()
    assert any("loss" in log for log in watch.logs)


@pytest.mark.slow
def test_training_is_bit_by_bit_the_same(tmp_path):
    import torch

    def trained(callbacks):
        network = make("mamba", **MAMBA)
        random.seed(1)
        np.random.seed(1)
        trainer(network, tmp_path, callbacks).train()
        drawn: Any = np.random.get_state()
        states = random.getstate(), drawn[1], torch.get_rng_state()
        return network, states

    plain, before = trained([])
    watched, after = trained([lyapunov.StabilityCallback(TOKENS, every=1, budget=1.0)])
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])
    assert watched.training == plain.training
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checks_keep_to_their_budget(tmp_path, quick):
    callback = lyapunov.StabilityCallback(TOKENS, every=1, budget=1e-6)
    trainer(make("mamba", **MAMBA), tmp_path, [callback]).train()
    # the first compiles, the second tells what one costs
    assert callback.skipped == 3


def test_weights_that_diverge_do_not_end_training(tmp_path, quick):
    import torch
    from transformers import TrainerCallback

    network = make("mamba", **MAMBA)

    class Diverge(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            with torch.no_grad():
                network.backbone.layers[0].mixer.D[0] = float("nan")

    callback = lyapunov.StabilityCallback(TOKENS, every=1, budget=1.0)
    run = trainer(network, tmp_path, [Diverge(), callback], steps=2)
    with pytest.warns(UserWarning, match="NaN and 0 infinite"):
        run.train()
    assert run.state.global_step == 2
    failed = [e["step"] for e in run.state.log_history if "lyapunov/failed" in e]
    assert failed == [1, 2]


def test_what_cannot_be_checked_is_told_before_training(tmp_path):
    from transformers.models.bert import BertConfig, BertForMaskedLM

    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2}
    small["num_hidden_layers"] = 1
    network = BertForMaskedLM(BertConfig(vocab_size=40, intermediate_size=8, **small))
    callback = lyapunov.StabilityCallback(TOKENS)
    with pytest.raises(UnsupportedCheckpointError, match="bert"):
        trainer(network, tmp_path, [callback]).train()
    callback = lyapunov.StabilityCallback(TOKENS + 40)
    with pytest.raises(lyapunov.LyapunovError):
        trainer(make("mamba", **MAMBA), tmp_path, [callback]).train()


@pytest.mark.parametrize(
    "given",
    [
        *({"every": value} for value in (0, 1.5, "9", True, None)),
        *({"budget": value} for value in (0.0, 1.5, "1", True, float("nan"))),
        *({"probes": value} for value in (-1, 1.5, None)),
        *({"precision": value} for value in ("int8", ["bf16"], None)),
        *({"seed": value} for value in (-1, 0.5)),
        {"path": 3},
    ],
)
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(UsageError):
        lyapunov.StabilityCallback(TOKENS, **given)
