"""Questions after examples: what they ask, how they are scored, what is made of it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import in_context
from experiments.finetuning.items import SHOTS, Data
from experiments.finetuning.networks import load
from experiments.results import Results
from experiments.shots.documents import (
    TASKS,
    all_documents,
    documents,
    task_name,
    write_tasks,
)
from experiments.shots.harness import accuracies
from experiments.shots.improvement import improvement, shares
from experiments.shots.page import right_of
from experiments.shots.scoring import answered, log_likelihoods
from experiments.trained.tasks import GROUPS

from ..helpers import not_none
from .finetuned import KINDS, checkpoint, corpus


CPU = torch.device("cpu")
# additions on the way to a sum of the log probabilities of a few tokens, more or less:
# a layer's products of width 32, its norms, the head, log-softmax over 256
OPERATIONS = 2000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_context")
    corpus(folder / "corpus")
    for kind in KINDS:
        checkpoint(folder, kind)
    return folder


@pytest.fixture(scope="module")
def data(home):
    return Data.read(home / "corpus")


def answer_of(one) -> str:
    """The answer, found from the question's text alone."""
    if one.task == "labels":
        letters = one.prompt.strip(" =")
        group = next(g for g in GROUPS if set(letters) <= set(g))
        shown = re.findall(r"([a-x]{4})=([A-Z])", one.before)
        labels = {label for word, label in shown if set(word) <= set(group)}
        return labels.pop() if len(labels) == 1 else f"{labels}"
    if one.task == "numbers":
        n = int(not_none(re.search(r"Ann has (\d+)", one.prompt))[1])
        letter = not_none(re.search(rf"([A-D])\. {3 * n}\n", one.prompt))[1]
        return f" {letter}"
    given = one.prompt.split("### Input:\n")[1].split("\n")[0]
    if one.task == "repeat":
        return given
    if one.task == "reverse":
        return "".join(reversed(given))
    if one.task == "larger":
        return max(given.split(" or "), key=int)
    listed, asked = given.split("; ")
    if one.task == "find":
        return dict(pair.split("=") for pair in listed.split())[asked]
    letters = listed.split()
    return letters[letters.index(asked) + 1]


@pytest.mark.parametrize("task", TASKS)
def test_right_choices_follow_from_the_text_and_others_do_not(data, task):
    for shots in SHOTS:
        for one in documents(data, task, shots, 40):
            assert len(set(one.choices)) == len(one.choices) >= 2
            if task != "labels" or shots:
                assert one.choices[one.right] == answer_of(one)


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_added_to_the_same_questions(data, task):
    by_shots = [documents(data, task, shots, 20) for shots in SHOTS]
    for same in zip(*by_shots, strict=True):
        assert len({(one.prompt, one.choices, one.right) for one in same}) == 1
        lengths = [len(one.before) for one in same]
        assert lengths == sorted(set(lengths))
        assert all(same[-1].before.startswith(one.before) for one in same)
    places = [one.right for one in by_shots[0]]
    assert len(set(places)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_those_of_each_text_alone(home, kind):
    network = load(str(home / kind), CPU)
    rng = np.random.default_rng(0)
    text = lambda n: rng.integers(256, size=n).tolist()
    pairs = [(text(5), text(1)), (text(70), text(4)), (text(1), text(9))]
    found = log_likelihoods(network, pairs, CPU)
    for (read, told), (nats, _) in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = network(torch.tensor([read + told]))[0].double()
        own = torch.log_softmax(logits, -1)
        sum_ = sum(own[len(read) + i - 1, t].item() for i, t in enumerate(told))
        size = float(logits.abs().max()) + 1
        assert abs(sum_ - nats) <= len(told) * OPERATIONS * 2**-24 * size


def test_the_likeliest_continuation_is_said_to_be(home):
    network = load(str(home / "gpt_neox"), CPU)
    read = [3, 1, 4]
    told = []
    for _ in range(3):
        with torch.no_grad():
            told.append(int(network(torch.tensor([read + told]))[0, -1].argmax()))
    pairs = [(read, told), (read, [*told[:2], (told[2] + 1) % 256])]
    (best, likeliest), (less, other) = log_likelihoods(network, pairs, CPU)
    assert likeliest
    assert not other
    assert best > less


def test_a_network_that_knows_the_answer_is_right(data):
    class Knows(torch.nn.Module):
        encode = staticmethod(lambda text: list(text.encode()))

        def __init__(self, letter):
            super().__init__()
            self.letter = ord(letter)

        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 256)
            logits[..., self.letter] = 5
            return logits

    asked = documents(data, "numbers", 1, 24)
    right = answered(Knows("B"), asked, CPU)  # pyright: ignore[reportArgumentType]
    assert right.tolist() == [one.choices[one.right] == " B" for one in asked]


def test_improvement_is_relative_to_zero_shot():
    right = np.zeros((1, 2, 4, 8), bool)
    right[0, 0, 0, :2] = True  # 25 %, then 50, 75, 100
    for k, share in enumerate((4, 6, 8)):
        right[0, 0, k + 1, :share] = True
    right[0, 1, :, :4] = True  # 50 % throughout
    assert improvement(right) == pytest.approx((100 + 200 + 300 + 0 + 0 + 0) / 6)
    right[0, 1] = False  # of nothing there is no improvement
    assert improvement(right) == pytest.approx((100 + 200 + 300 + 0 + 0 + 0) / 6)


def test_shares_are_of_the_transformer():
    rng = np.random.default_rng(3)
    draw = lambda p: rng.random((3, 2, 4, 200)) < np.array(p)[:, None]
    right = {
        "gpt_neox": draw([0.25, 0.5, 0.5, 0.5]),
        "mamba1": draw([0.25, 0.375, 0.375, 0.375]),
    }
    found = shares(right, "gpt_neox")
    assert found["gpt_neox"]["share"] == 100
    ends = [found["gpt_neox"][k] for k in ("share_low", "share_high")]
    assert ends == pytest.approx([100, 100], rel=1e-12)
    mamba = found["mamba1"]
    assert mamba["share_low"] < 50 < mamba["share_high"]
    assert mamba["share_low"] < mamba["share"] < mamba["share_high"]
    assert mamba["low"] < 50 < mamba["high"]


def test_there_is_no_share_of_no_improvement():
    rng = np.random.default_rng(3)
    right = {name: rng.random((1, 2, 4, 50)) < 0.3 for name in ("gpt_neox", "mamba1")}
    found = shares(right, "gpt_neox")
    assert found["mamba1"]["share"] is None
    assert found["mamba1"]["share_low"] is None


def arguments(home, out, *more):
    return [
        "--corpus", str(home / "corpus"), "--questions", "2", "--device", "cpu",
        "--out", str(out), "--models", *(str(home / kind) for kind in KINDS), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_command_asks_every_checkpoint_once(home, tmp_path):
    out, tuned = tmp_path / "in_context.json", tmp_path / "tuned"
    checkpoint(tuned, "mamba2").rename(tuned / "mamba2-tuned-3")
    checkpoint(tuned, "gpt_neox").rename(tuned / "gpt_neox-tuned-0")
    in_context.main(arguments(home, out, "--tuned", str(tuned)))
    first = json.loads(out.read_text())
    kept = [(r["settings"]["model"], r["settings"]["tuned"], r["settings"]["seed"])
            for r in first["rows"]]  # fmt: skip
    assert kept == [
        ("mamba1", False, 0), ("mamba2", False, 0), ("mamba2", True, 3),
        ("gpt_neox", False, 0), ("gpt_neox", True, 0),
    ]  # fmt: skip
    assert set(first["figures"]) == {
        "in_context.pretrained.mamba", "in_context.pretrained.mamba2",
        "in_context.tuned.mamba2",
    }  # fmt: skip
    asked = all_documents(Data.read(home / "corpus"), 2)
    again = answered(load(str(home / "mamba1"), CPU), asked, CPU)
    assert (right_of(first["rows"][0]).ravel() == again).all()
    in_context.main(arguments(home, out, "--tuned", str(tuned)))
    assert json.loads(out.read_text())["rows"] == first["rows"]
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_lm_eval_is_asked_by_the_command(home, tmp_path):
    out = tmp_path / "in_context.json"
    one = ["--models", str(home / "gpt_neox"), "--harness"]
    in_context.main(arguments(home, out, *one))
    content = json.loads(out.read_text())
    assert [r["settings"]["stage"] for r in content["rows"]] == ["asked", "harness"]
    assert len(content["rows"][1]["values"]["tasks"]) == len(TASKS) * len(SHOTS)
    assert content["differs_from_lm_eval"] == []
    assert "counted otherwise in 0" in out.with_suffix(".md").read_text()


def test_lm_eval_counts_as_we_do(home, data, tmp_path):
    """Two of its tasks, one of which needs the examples."""
    network = load(str(home / "mamba2"), CPU)
    write_tasks(data, 12, tmp_path)
    names = [task_name("labels", 3), task_name("larger", 0)]
    theirs = accuracies(network, CPU, names, folder=tmp_path)
    for name, task, shots in zip(names, ("labels", "larger"), (3, 0), strict=True):
        ours = answered(network, documents(data, task, shots, 12), CPU).mean()
        assert theirs[name]["accuracy"] == pytest.approx(ours, abs=1e-12)


def test_a_count_of_lm_eval_that_differs_is_seen(home, tmp_path):
    results = Results(tmp_path / "one.json")
    own = {"stage": "asked", "model": "a", "questions": 2, "tuned": False, "seed": 0}
    accuracy = {f"{task} {k}": 0.5 for task in TASKS for k in SHOTS}
    theirs = {task_name(t, k): {"accuracy": 0.5} for t in TASKS for k in SHOTS}
    theirs[task_name("find", 3)] = {"accuracy": 1.0}
    results.add(own, {"accuracy": accuracy}, 1.0, {})
    results.add(own | {"stage": "harness"}, {"tasks": theirs}, 1.0, {})
    assert in_context.differences(results) == [
        {"model": "a", "task": "find 3", "ours": 0.5, "lm_eval": 1.0}
    ]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--questions", "0"], "1 or more"),
        (["--tuned", "nowhere"], "no folder"),
        (["--corpus", "nowhere"], "gsm8k_train.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_said(home, tmp_path, more, says, capsys):
    with pytest.raises(SystemExit) as ended:
        in_context.main(arguments(home, tmp_path / "one.json", *more))
    assert says in f"{ended.value}" + capsys.readouterr().err


def test_an_unknown_benchmark_is_said(home, tmp_path, monkeypatch):
    # to index lm-eval's own tasks takes ten seconds
    manager = lambda **_: SimpleNamespace(all_tasks=["winogrande"])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    with pytest.raises(SystemExit, match="no task winegrand"):
        in_context.main(
            arguments(home, tmp_path / "one.json", "--benchmarks", "winegrand")
        )
