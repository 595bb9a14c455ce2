"""Long copying, recall and look-up: what is asked, counted, compared."""

import json
import re
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from experiments import hybrids
from experiments.recall import asking
from experiments.recall.asking import Reader, answered, tokens_of
from experiments.recall.differences import difference, over_models
from experiments.trained.export import write_checkpoint
from experiments.trained.long_tasks import QUERIES, TASKS, episodes
from experiments.trained.networks import fresh

from ..helpers import not_none
from .finetuned import byte_pairs
from .small import SHAPES


CPU = torch.device("cpu")


def told(text, answers):
    """Every answer, found from what stands before it with a regular expression."""
    for answer in answers:
        before = text[: answer.start].decode()
        if text.startswith(b'"'):
            given = before[1 : before.index('"=')]
            yield given[len(before) - len(given) - 3]
        else:
            key = before[before.rindex("?") + 1 : -1]
            sep = "}" if text.startswith(b"{") else "?"
            yield not_none(re.search(rf"\b{key}:(\d+)", before[: before.index(sep)]))[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("context", [256, 1024, 2048])
def test_answers_follow_from_the_context_and_fill_it(task, context):
    for one in episodes(task, context, 4):
        assert 0.9 * context < len(one.text) <= context
        found = [bytes(one.text[a.start : a.stop]).decode() for a in one.answers]
        assert found == list(told(bytes(one.text), one.answers))
        assert len(found) == (QUERIES if task != "copy" else (context - 4) // 2)


def test_episodes_are_the_same_at_every_call_and_differ():
    first, again = (episodes("recall", 256, 3) for _ in range(2))
    assert [one.text for one in first] == [one.text for one in again]
    assert len({bytes(one.text) for one in first}) == 3


class Oracle:
    """Knows the episodes; of every other one it knows nothing."""

    def __init__(self, known, encode):
        self.known = [tokens_of(one, encode)[0] for one in known]

    def __call__(self, ids):
        logits = torch.zeros(*ids.shape, 2**14)
        for row, line in enumerate(ids.tolist()):
            if any(line[: len(one)] == one for one in self.known):
                following = torch.tensor([*line[1:], 0])
                logits[row].scatter_(1, following[:, None], 1.0)
        return logits


@pytest.fixture(scope="module")
def tokenizer():
    """Byte pairs, learned from episodes: up to three digits or six letters in one."""
    texts = [bytes(one.text).decode() for t in TASKS for one in episodes(t, 512, 20)]
    return byte_pairs(texts, 1000)


def in_bytes(text):
    return list(text.encode())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("how", ["bytes", "pairs"])
def test_what_is_known_is_counted_as_right(task, how, tokenizer):
    encode = in_bytes if how == "bytes" else tokenizer.encode
    known = episodes(task, 256, 6)[::2]
    asked = Reader("oracle", "oracle", Oracle(known, encode), encode)
    shares, most = answered(asked, task, 256, 6, CPU)
    assert shares == [1.0, 0.0] * 3
    assert (240 if how == "bytes" else 50) < most <= 256


@pytest.mark.parametrize("task", TASKS)
def test_tokens_of_the_answers_say_the_answers(task, tokenizer):
    """Assert it of bytes, which the answers' places count, and of byte pairs."""
    for one in episodes(task, 512, 3):
        wanted = [bytes(one.text[a.start : a.stop]).decode() for a in one.answers]
        ids, answers = tokens_of(one, in_bytes)
        assert bytes(ids) == bytes(one.text[: len(ids)])
        assert [(a.start, a.stop) for a in answers] == [
            (a.start, a.stop) for a in one.answers
        ]
        ids, answers = tokens_of(one, tokenizer.encode)
        assert len(ids) < 0.8 * len(one.text)
        told = [tokenizer.decode(ids[a]) for a in answers]
        if task == "copy":  # its tokens are the answers, not its letters
            assert "".join(told) == "".join(wanted)
            assert all(a.stop - a.start == 1 for a in answers)
        else:
            assert told == wanted


def test_checkpoints_of_transformers_are_asked_with_their_tokenizer(
    tmp_path, tokenizer
):
    """Assert a kind of its own, which no published figure is compared with."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    MambaForCausalLM(MambaConfig(vocab_size=1000, **sizes)).save_pretrained(
        tmp_path / "theirs"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    network = fresh(SHAPES["hybrid"], 0.0, CPU)
    (tmp_path / "hybrid").mkdir()
    write_checkpoint(tmp_path / "hybrid", network.shape, network.stored())
    out = tmp_path / "hybrids.json"
    given = ["--models", str(tmp_path / "theirs"), str(tmp_path / "hybrid")]
    given += ["--episodes", "2", "--contexts", "256", "--device", "cpu"]
    hybrids.main([*given, "--out", str(out)])
    content = json.loads(out.read_text())
    kinds = {r["settings"]["model"]: r["settings"]["kind"] for r in content["rows"]}
    assert kinds == {"theirs": "theirs", "hybrid": "hybrid"}
    tokens = {r["settings"]["model"]: r["values"]["tokens"] for r in content["rows"]}
    assert tokens["theirs"] < tokens["hybrid"]
    assert content["figures"] == {}


def row(kind, task, context, by_episode, model=None):
    own = {"model": model or kind, "kind": kind, "task": task, "context": context}
    return {"settings": own, "values": {"by_episode": by_episode}}


def test_differences_are_of_the_same_tasks_and_contexts():
    rows = [
        row("hybrid", "copy", 512, [1.0] * 20),
        row("mamba2", "copy", 512, [0.5] * 20),
        row("hybrid", "recall", 512, [1.0, 0.5] * 10),
        row("mamba2", "recall", 512, [1.0, 0.0] * 10),
        row("hybrid", "recall", 4096, [0.0] * 20),
        row("mamba2", "recall", 4096, [1.0] * 20),
        row("hybrid", "copy", 1024, [0.0] * 20),  # that nobody else was asked
    ]
    short, note = not_none(difference(rows, "hybrid", "mamba2", False))
    assert note == "interval over episodes, 1 against 1"
    assert short.value == pytest.approx(100 * (0.5 + 0.25) / 2)
    assert not_none(short.low) < short.value < not_none(short.high)
    assert short.n == 1
    long, _ = not_none(difference(rows, "hybrid", "mamba2", True))
    assert (long.value, long.low, long.high) == (-100, -100, -100)
    assert difference(rows, "hybrid", "mamba1", False) is None


def test_several_models_of_a_kind_are_what_the_interval_is_over():
    """Assert Welch's interval in closed form: two models each, equal variances."""
    rows = [
        row("hybrid", "copy", 512, [0.9] * 4, "one"),
        row("hybrid", "copy", 512, [0.7] * 4, "two"),
        row("mamba2", "copy", 512, [0.5] * 4, "three"),
        row("mamba2", "copy", 512, [0.3] * 4, "four"),
    ]
    found, note = not_none(difference(rows, "hybrid", "mamba2", False))
    # standard errors 10 and 10, so 2 degrees of freedom: t = 4.302653
    half = 4.302653 * 200**0.5
    assert 40 + half > 100  # more than a difference of accuracies can be
    assert (found.value, found.n) == (pytest.approx(40), 2)
    assert found.low == pytest.approx(40 - half, rel=1e-6)
    assert found.high == 100
    assert note == "interval over models, 2 against 2"


def test_a_single_model_borrows_the_spread_of_the_others():
    """Assert Student's interval in closed form: 2 models, 1 degree of freedom."""
    found = not_none(over_models([90.0, 70.0], [50.0]))
    half = 12.706205 * 200**0.5 * 1.5**0.5
    assert (found.value, found.n) == (30, 1)
    assert found.low == pytest.approx(30 - half, rel=1e-6)
    other = not_none(over_models([50.0], [90.0, 70.0]))
    assert (other.value, other.high) == (-30, pytest.approx(-not_none(found.low)))
    assert over_models([50.0], [90.0]) is None


def test_command_asks_once(tmp_path):
    for kind in ("hybrid", "mamba2"):
        torch.manual_seed(0)
        network = fresh(SHAPES[kind], 0.0, CPU)
        (tmp_path / kind).mkdir()
        write_checkpoint(tmp_path / kind, network.shape, network.stored())
    told = {"seed": 7, "command": "typed", "seconds": 2.0}
    told = {"training": told, "held_out_bits_per_byte": 7.5, "files": []}
    told |= {"environment": {"device": "a card"}}
    (tmp_path / "hybrid" / "training.json").write_text(json.dumps(told))
    out = tmp_path / "hybrids.json"
    given = ["--models", str(tmp_path / "hybrid"), str(tmp_path / "mamba2")]
    given += ["--episodes", "2", "--device", "cpu", "--out", str(out)]
    hybrids.main([*given, "--contexts", "256"])
    first = json.loads(out.read_text())
    assert len(first["rows"]) == 2 * len(TASKS) + 1
    text = out.with_suffix(".md").read_text()
    assert re.search(r"\| hybrid \| 7 \| 7\.5000 \| [\d.]+ \| - \|", text)
    assert "a card" not in text
    assert {r["settings"]["kind"] for r in first["rows"]} == {"hybrid", "mamba2"}
    assert set(first["figures"]) == {"hybrids.recall_above_mamba2"}
    hybrids.main([*given, "--contexts", "256", "2048", "--budget", "1e-9"])
    second = json.loads(out.read_text())
    assert second["rows"] == first["rows"]
    assert second["left_out"] == ["what the budget had no time for"]
    assert "Left out" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_memory_that_is_not_there_leaves_a_context_out(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = fresh(SHAPES["hybrid"], 0.0, CPU)
    write_checkpoint(tmp_path, network.shape, network.stored())

    def scarce(network, task, context, n, device):
        if task == "recall":
            raise torch.OutOfMemoryError
        return answered(network, task, context, n, device)

    monkeypatch.setattr(asking, "answered", scarce)
    out = tmp_path / "hybrids.json"
    given = ["--models", str(tmp_path), "--episodes", "2", "--device", "cpu"]
    hybrids.main([*given, "--contexts", "256", "--out", str(out)])
    content = json.loads(out.read_text())
    assert [r["settings"]["task"] for r in content["rows"]] == ["copy", "phonebook"]
    assert content["left_out"] == [f"{tmp_path.name} recall 256: out of memory"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--contexts", "64"], "256 or more"),
        (["--episodes", "0"], "1 or more"),
        (["--models", "nowhere"], "nowhere cannot be loaded"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, more, says, capsys):
    with pytest.raises(SystemExit) as ended:
        hybrids.main(["--out", str(tmp_path / "one.json"), "--device", "cpu", *more])
    assert says in f"{ended.value}" + capsys.readouterr().err


def test_a_page_of_nothing_asked_is_a_page(tmp_path):
    out = tmp_path / "hybrids.json"
    hybrids.main(["--budget", "1e-9", "--device", "cpu", "--out", str(out)])
    assert "what the budget had no time for" in out.with_suffix(".md").read_text()
