"""Fine-tuning: adapters are reached, runs go on where they were cut, data is right."""

import copy

import numpy as np
import pytest
import torch

import experiments.finetune as command
from experiments.finetuning import networks, plan, training
from experiments.finetuning.items import SHOTS, TASKS, Data
from experiments.finetuning.unit import Unit
from experiments.results import Results

from .finetuned import KINDS, checkpoint, corpus


CPU = torch.device("cpu")
RECIPE = training.Recipe(
    learning_rate=1e-2, steps=2, batch=4, length=128, rank=2, alpha=4, clip=1.0,
    questions=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data.read(corpus(tmp_path_factory.mktemp("text") / "corpus"))


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("model"), request.param))


@pytest.mark.parametrize("method", networks.METHODS)
def test_all_that_is_trained_gets_a_gradient(saved, data, method):
    torch.manual_seed(0)
    network = networks.load(saved, CPU)
    model = networks.adapt(network, method, 2, 4)
    rng = np.random.default_rng(0)
    ids, wanted = training.windows(network, data, "training", rng, 4, 128)
    training.loss_of(model(ids[:, :-1]), ids, wanted).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if method != "full":
        assert all("lora_" in name for name in trained)
        # LoRA's second matrix is 0 at first: only it has a gradient that is not
        trained = {n: p for n, p in trained.items() if "lora_B" in n}
    assert trained
    for name, weight in trained.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_mamba1_computes_what_transformers_does(tmp_path):
    from experiments.trained.networks import fresh

    from .finetuned import SHAPES

    network = networks.load(str(checkpoint(tmp_path, "mamba1")), CPU)
    torch.manual_seed(1)
    theirs = fresh(SHAPES["mamba1"], 0.0, CPU).eval()
    ids = torch.arange(40).reshape(2, 20) % 256
    with torch.no_grad():
        torch.testing.assert_close(network(ids), theirs(ids).logits)


def test_saved_weights_are_read_again(saved, tmp_path):
    network = networks.load(saved, CPU)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.01
    state = copy.deepcopy(network.inner.state_dict())
    assert network.save is not None
    network.save({k: v.clone() for k, v in state.items()}, tmp_path / "out")
    again = networks.load(str(tmp_path / "out"), CPU)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids), network(ids))


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_runs_of_one_seed_are_equal(tmp_path, data, precision):
    found = []
    saved = str(checkpoint(tmp_path, "gpt_neox"))
    for _ in range(2):
        torch.manual_seed(3)
        network = networks.load(saved, CPU)
        model = networks.adapt(network, "lora-all", 2, 4)
        training.train(model, network, data, RECIPE, precision, 3, CPU)
        asked = training.ask_all(data, 2)
        found.append(training.answer(model, network, asked, precision, CPU))
    one, other = found
    assert one.name == other.name
    assert training.against(one, other, asked)["choices"]["kl"] == 0.0


def test_only_responses_are_learnt(data, saved):
    network = networks.load(saved, CPU)
    rng = np.random.default_rng(0)
    ids, wanted = training.windows(network, data, "training", rng, 8, 300)
    for row, mask in zip(ids.tolist(), wanted.tolist(), strict=True):
        learnt = bytes(
            byte if keep else 0 for byte, keep in zip(row[1:], mask, strict=True)
        )
        assert b"Instruction" not in learnt
        assert b"Question" not in learnt
        assert b"\n\n" in learnt


def test_questions_follow_from_the_seed_and_have_their_shots(data):
    asked = training.ask_all(data, 3)
    assert len(asked) == len(TASKS) * len(SHOTS) * 3
    again = training.ask_all(data, 3)
    assert [q.before + q.item.text for q in asked] == [
        q.before + q.item.text for q in again
    ]
    for question in asked:
        ends = question.before.count("\n\n")
        assert ends == question.shots
        if question.task == "choices":
            assert question.item.response in question.item.choices


def options(folder, saved, *more):
    return command.parser().parse_args(
        ["--corpus", str(folder / "corpus"), "--models", saved, "--device", "cpu",
         "--seeds", "2", "--rates", "0.01", "--steps", "2", "--batch", "4",
         "--length", "128", "--questions", "2", "--methods", "full", "lora-all",
         "--out", str(folder / "out.json"), "--scratch", str(folder / "scratch"),
         *more]
    )  # fmt: skip


def values(results):
    """What was found, by settings, times apart."""
    return {
        str(sorted(row["settings"].items(), key=str)): {
            k: v for k, v in row["values"].items() if k != "training_seconds"
        }
        for row in results.rows()
    }


def everything(given):
    for model in given.models:
        for method in given.methods:
            Unit(given).tune(model, method)
        for seed in range(given.seeds):
            Unit(given).compare(model, seed)


class Cut(Exception):
    """What ends a run here."""


def test_a_run_that_was_cut_goes_on(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        corpus(folder / "corpus")
    saved = str(checkpoint(tmp_path, "gpt_neox"))
    everything(options(whole, saved))
    given = options(parts, saved)
    run, left = Unit.run, [5]

    def few(unit, model, row):
        if not left[0]:
            raise Cut
        left[0] -= 1
        return run(unit, model, row)

    monkeypatch.setattr(Unit, "run", few)
    with pytest.raises(Cut):
        everything(given)
    assert plan.missing(given, "compare")
    left[0] = 100
    everything(given)
    done = 2 + 2 * (2 * 3 + 2)
    assert left[0] == 100 - (done - 5)  # nothing was run twice
    one, other = (Results(folder / "out.json") for folder in (whole, parts))
    assert len(other.rows()) == done
    assert values(one) == values(other)
    assert not plan.missing(given, "compare")
    assert not plan.missing(given, "tune")


def test_without_the_reference_a_unit_begins_anew(tmp_path):
    corpus(tmp_path / "corpus")
    given = options(tmp_path, str(checkpoint(tmp_path, "gpt_neox")), "--seeds", "1")
    for method in given.methods:
        Unit(given).tune(given.models[0], method)
    unit = Unit(given)
    unit.compare(given.models[0], 0)
    before = Results(given.out).rows()
    for file in given.scratch.glob("*.npz"):
        file.unlink()
    content = Results(given.out).read()["rows"]
    Results(given.out).put(rows=content[:-1])
    assert plan.missing(given, "compare")
    Unit(given).compare(given.models[0], 0)
    after = Results(given.out).rows()
    assert len(after) == len(before)
    assert not plan.missing(given, "compare")


def test_the_budget_is_kept(tmp_path):
    corpus(tmp_path / "corpus")
    given = options(tmp_path, str(checkpoint(tmp_path, "gpt_neox")), "--until", "1")
    Unit(given).tune(given.models[0], "full")
    assert Results(given.out).rows() == []


def test_order_that_has_no_reference_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--corpus", str(tmp_path), "--precisions", "bf16", "fp32"])
    assert "come first" in capsys.readouterr().err


def test_missing_corpus_says_what_is_needed(tmp_path):
    with pytest.raises(SystemExit, match="gsm8k_train"):
        Data.read(tmp_path)
