"""Assert that loops of one's own and Lightning's get the Trainer's figures."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

import lyapunov
from lyapunov._errors import ArgumentError, MissingExtraError, TokensError
from oracles.checkpoints.transformers import make

from .test_trainer import MAMBA, TOKENS, quick


__all__ = ["quick"]


@pytest.fixture(scope="module")
def network():
    return make("mamba", **MAMBA)


def test_a_loop_gets_plain_figures_where_a_check_is_due(quick, network, tmp_path):
    path = tmp_path / "stability.jsonl"
    callback = lyapunov.StabilityCallback(TOKENS, every=3, budget=1, path=path)
    logged = {}
    for step in range(1, 8):
        figures = callback.after_step(network, step)
        if figures:
            logged[step] = figures
    assert list(logged) == [1, 3, 6]
    for figures in logged.values():
        assert all(name.startswith("lyapunov/") for name in figures)
        assert all(type(value) is float for value in figures.values())
        assert figures["lyapunov/max_exponent"] == -0.5
        assert figures["lyapunov/decay_min"] == 0.1
        assert "lyapunov/decay_max" not in figures  # which is not finite
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6]


def test_a_loop_keeps_to_the_budget_and_is_told_of_wrong_arguments(quick, network):
    callback = lyapunov.StabilityCallback(TOKENS, every=1, budget=1e-9)
    made = [bool(callback.after_step(network, step)) for step in range(1, 7)]
    assert made == [True, True, False, False, False, False]
    assert callback.skipped == 4
    with pytest.raises(ArgumentError, match="step"):
        callback.after_step(network, -1)
    with pytest.raises(TokensError):
        lyapunov.StabilityCallback([41]).after_step(network, 0)


class Callback:
    """Stands in for Lightning's: every hook is there and does nothing."""

    def on_train_start(self, trainer, pl_module):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass


class Logger:
    """Stands in for a logger of Lightning's."""

    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request, monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    parts = request.param.split(".")
    for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
        module = ModuleType(name)
        vars(module)["Callback"] = Callback
        monkeypatch.setitem(sys.modules, name, module)


def fit(callback, network, *, batches=8, accumulate=2, rank=0):
    """Lightning's loop, as far as a callback sees of it; gives what loggers saw."""
    loggers = [Logger(), Logger()]
    trainer = SimpleNamespace(global_step=0, is_global_zero=rank == 0, loggers=loggers)
    module = SimpleNamespace(model=network)
    callback.on_train_start(trainer, module)
    for i in range(batches):
        trainer.global_step = (i + 1) // accumulate
        callback.on_train_batch_end(trainer, module, None, None, i)
    assert loggers[0].seen == loggers[1].seen
    return loggers[0].seen


def test_lightning_logs_each_step_once_to_every_logger(lightning, quick, network):
    callback = lyapunov.StabilityCallback(TOKENS, every=2, budget=1).for_lightning()
    assert isinstance(callback, Callback)
    seen = fit(callback, network)
    assert [step for step, _ in seen] == [0, 2, 4]
    assert all(metrics["lyapunov/max_exponent"] == -0.5 for _, metrics in seen)


def test_only_the_first_process_of_lightnings_checks(lightning, quick, network):
    callback = lyapunov.StabilityCallback(TOKENS, every=1).for_lightning()
    assert fit(callback, network, rank=1) == []


def test_lightnings_module_may_hold_the_model_elsewhere(lightning, quick, network):
    callback = lyapunov.StabilityCallback(TOKENS, every=4)
    made = callback.for_lightning(lambda module: module.model.backbone_owner)
    assert len(fit(made, SimpleNamespace(backbone_owner=network), batches=2)) == 1


def test_lightning_is_asked_for_where_it_is_missing(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        lyapunov.StabilityCallback().for_lightning()
    assert caught.value.hint == "pip install lightning"
