"""Training: it learns, goes on where it was cut, and writes what it says."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lyapunov
from experiments import train as command
from experiments.bundled.corpus import Corpus
from experiments.trained import loop, networks, resume
from experiments.trained.export import finish
from studies.problems import Problem

from ..helpers import not_none
from .small import SHAPES, corpus, settings


CPU = torch.device("cpu")


def run(folder, given, leave=lambda step: False):
    folder.mkdir(exist_ok=True)
    return loop.train(corpus(), SHAPES[given.kind], given, folder, CPU, leave)


def same(one, other):
    """Assert that two outcomes are equal bit for bit, time apart."""
    assert (one.step, one.best_step, one.best_score) == (
        other.step,
        other.best_step,
        other.best_score,
    )
    assert one.history == other.history
    assert one.best.keys() == other.best.keys()
    for name, value in one.best.items():
        assert torch.equal(value, other.best[name]), name


@pytest.mark.parametrize(
    "kind", ["gpt_neox", pytest.param("mamba2", marks=pytest.mark.slow)]
)
def test_a_run_that_was_cut_is_the_run_that_was_not(tmp_path, kind):
    """Assert it bit for bit, weights, optimizer and history, with dropout."""
    given = settings(kind)
    whole = run(tmp_path / "whole", given)
    cut = tmp_path / "cut"
    for where in (1, 3, 5):  # between validations, and once before any
        assert run(cut, given, lambda step, where=where: step == where) is None
    parts = not_none(run(cut, given))
    same(whole, parts)
    assert [row["step"] for row in parts.history] == [2, 4, 6]
    last = [
        not_none(resume.load(tmp_path / name, vars(given)))["weights"]
        for name in ("whole", "cut")
    ]
    for name, value in last[0].items():
        assert torch.equal(value, last[1][name]), name


def test_dropouts_generator_is_part_of_the_state(tmp_path, monkeypatch):
    """Assert that a run which forgets it ends elsewhere: the test above would see."""
    given = settings("gpt_neox")
    whole = not_none(run(tmp_path / "whole", given))
    run(tmp_path / "cut", given, lambda step: step == 3)
    monkeypatch.setattr(resume, "set_generators", lambda states, device: None)
    other = not_none(run(tmp_path / "cut", given))
    assert any(not torch.equal(v, other.best[k]) for k, v in whole.best.items())


def test_the_loss_falls(tmp_path):
    """Assert that text of seven words is learnt far below eight bits."""
    given = settings(
        "gpt_neox", steps=60, every=30, share=0.25, dropout=0.0, learning_rate=2e-2
    )
    outcome = not_none(run(tmp_path / "run", given))
    first, last = (row["validation_bits_per_byte"] for row in outcome.history)
    assert last < first < 8
    assert last < 3
    answers = [row["validation_bits_per_answer_byte"] for row in outcome.history]
    assert answers[-1] < 6  # letters, digits and capitals: at most log2(62) by guessing


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """Assert an error for people."""
    with pytest.raises(Problem, match="not finite at step 2"):
        run(tmp_path / "run", settings("gpt_neox", learning_rate=1e30, clip=1e30))


def test_steps_count_with_their_own_rate():
    """Assert warm-up, peak and end of the schedule."""
    rates = [loop.rate(step, 100) for step in range(1, 101)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] < 1e-15


@pytest.fixture
def cut(tmp_path):
    run(tmp_path / "run", settings("gpt_neox"), lambda step: step == 3)
    return tmp_path / "run"


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "other bytes"])
def test_a_damaged_state_is_refused(cut, damage):
    """Assert an error for people, and that the file is named."""
    file = cut / resume.NAME
    data = bytearray(file.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 4
    new = {"cut off": data[:-100], "empty": b"", "other bytes": b"PK" * 500}
    file.write_bytes(new.get(damage, data))
    with pytest.raises(Problem, match=r"resume.pt is damaged.*\nhint: delete it"):
        run(cut, settings("gpt_neox"))


def test_a_state_of_other_settings_is_refused(cut):
    """Assert that the error says which."""
    with pytest.raises(Problem, match="other settings: steps 6, not 7; seed 3, not 4"):
        run(cut, settings("gpt_neox", steps=7, seed=4))


def test_a_write_that_fails_leaves_the_old_state(cut, monkeypatch):
    """Assert that the state is the old one, whole."""
    before = (cut / resume.NAME).read_bytes()

    def broken(*given):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="no space"):
        run(cut, settings("gpt_neox"))
    assert (cut / resume.NAME).read_bytes() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    given = settings("gpt_neox")
    outcome = not_none(run(folder, given))
    network = networks.fresh(SHAPES["gpt_neox"], 0.0, CPU)
    record = finish(corpus(), network, given, outcome, "a command", folder, CPU)
    return folder, outcome, record


def test_the_folder_holds_the_best_weights(finished):
    """Assert files, digests, and the weights of the step that was kept."""
    folder, outcome, record = finished
    names = {file.name for file in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "training.json"}
    assert json.loads((folder / "training.json").read_text()) == json.loads(
        json.dumps(record)
    )
    for file in record["files"]:
        data = (folder / file["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
    embedding = lyapunov.load(folder).layout.embedding(np.arange(256))
    np.testing.assert_array_equal(embedding, outcome.best["gpt_neox.embed_in.weight"])


def test_the_record_says_what_was_done(finished):
    """Assert scores, loss curve, seeds, versions, tokens."""
    _, outcome, record = finished
    how = record["training"]
    assert how["tokens"] == 6 * 4 * 128
    assert (how["seed"], how["steps_done"], how["library"]) == (3, 6, "transformers")
    assert [row["step"] for row in how["history"]] == [2, 4, 6]
    assert how["kept_step"] == outcome.best_step
    assert 0 < record["held_out_bits_per_byte"] < 8.5
    for one in record["held_out_tasks"].values():
        assert 0 <= one["accuracy"] <= 1
        assert one["answers"] > 0
    assert record["environment"]["torch"] == torch.__version__
    assert record["parameters"]["without_embedding"] == SHAPES["gpt_neox"].parameters()


SMALL = "--width 32 --layers 2 --batch 2 --length 256 --eval-bytes 64 --eval-windows 1"


def call(monkeypatch, folder, rest):
    monkeypatch.setattr(Corpus, "read", lambda folder: corpus())
    command.main(
        [*f"--corpus nowhere --out {folder} --device cpu {SMALL} {rest}".split()]
    )


def test_the_command_leaves_in_time_and_goes_on(tmp_path, monkeypatch, capsys):
    """Assert `--seconds`, going on, and the last line."""
    rest = "--kind gpt_neox --steps 3 --every 2"
    call(monkeypatch, tmp_path, f"{rest} --seconds 1e-9")
    said = capsys.readouterr()
    assert "run again to go on" in said.err
    assert not (tmp_path / "training.json").exists()
    call(monkeypatch, tmp_path, rest)
    said = capsys.readouterr()
    assert "step 2/3" in said.err
    assert "step 1/3" not in said.err
    assert "bytes/s" in said.err
    assert said.out.startswith("gpt_neox: held-out bits per byte ")
    record = json.loads((tmp_path / "training.json").read_text())
    assert "--steps 3" in record["training"]["command"]


@pytest.mark.parametrize("kind", ["gated_delta", "kimi_delta"])
def test_the_command_trains_delta_rules(tmp_path, monkeypatch, kind):
    """Assert that decays move too, and that the folder is read as it was judged."""
    rest = f"--kind {kind} --steps 1 --every 1 --matrices bf16 --learning-rate 0.1"
    call(monkeypatch, tmp_path, rest)
    torch.manual_seed(0)
    began = networks.fresh(SHAPES[kind], 0.0, CPU).stored()
    ended = load_file(tmp_path / "model.safetensors")
    assert set(began) == set(ended)
    moved = {name for name, value in ended.items() if (value != began[name]).any()}
    assert {name.split(".")[-1] for name in moved} >= {"A_log", "dt_bias", "weight"}
    assert all("layernorm" in name for name in set(ended) - moved)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["training"]["library"] == "transformers"
    embedding = lyapunov.load(tmp_path).layout.embedding(np.arange(256))
    judged = ended["model.embed_tokens.weight"].double().numpy()
    np.testing.assert_array_equal(embedding, judged)


def test_a_cut_run_can_be_finished_as_it_is(tmp_path, monkeypatch, capsys):
    """Assert `--finish`: refused before a validation, else the steps done."""
    rest = "--kind gpt_neox --steps 4 --every 1"
    with pytest.raises(Problem, match="no cut run"):
        call(monkeypatch, tmp_path, f"{rest} --finish")
    call(monkeypatch, tmp_path, f"{rest} --seconds 1e-9")
    call(monkeypatch, tmp_path, f"{rest} --finish")
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["training"]["steps_done"] == 1
    assert record["training"]["tokens"] == 2 * 256


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("--kind mamba4", "invalid choice"),
        ("--kind mamba1 --width 33", "--width must be a multiple of 16"),
        ("--kind mamba1 --length 100", "--length must be 256 or more"),
        ("--kind mamba1 --steps 0", "--steps must be 1 or more"),
        ("--kind mamba1 --tasks 1.0", "--tasks and --dropout must be"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch, capsys, rest, says):
    """Assert the parser's error, and that nothing was written."""
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path / "out", rest)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_matrices_are_kept_in_bf16_if_asked(tmp_path):
    """Assert formats on disk, that the rounded weights were judged, and the card."""
    given = settings("gpt_neox")
    outcome = not_none(run(tmp_path, given))
    network = networks.fresh(SHAPES["gpt_neox"], 0.0, CPU)
    record = finish(
        corpus(), network, given, outcome, "a command", tmp_path, CPU, matrices="bf16"
    )
    kept = load_file(tmp_path / "model.safetensors")
    name = "gpt_neox.embed_in.weight"
    assert torch.equal(kept[name], outcome.best[name].bfloat16())
    assert {v.dtype for v in kept.values() if v.ndim == 2} == {torch.bfloat16}
    assert {v.dtype for v in kept.values() if v.ndim != 2} == {torch.float32}
    assert torch.equal(network.inner.state_dict()[name], kept[name].float())
    assert record["matrices"] == "bf16"
    assert "matrices in bf16" in (tmp_path / "README.md").read_text()
