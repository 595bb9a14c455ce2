"""The trained models that are kept: whole, as recorded, and read by lyapunov."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lyapunov
from experiments import hybrids
from experiments.recall.asking import Reader, answered


FOLDERS = sorted(Path(hybrids.__file__).with_name("models").iterdir())
MOST = 60_000_000  # bytes of all


def test_all_kinds_are_kept_and_small():
    assert [folder.name for folder in FOLDERS] == [
        "gated_delta", "gpt_neox", "hybrid", "kimi_delta", "mamba1", "mamba2", "mamba3",
    ]  # fmt: skip
    sizes = [file.stat().st_size for folder in FOLDERS for file in folder.iterdir()]
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) < MOST


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_files_and_numbers_are_those_of_the_record(folder):
    """Assert digests, parameters, and that the card tells the record's loss."""
    record = json.loads((folder / "training.json").read_text())
    for file in record["files"]:
        data = (folder / file["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
    told = f"{record['held_out_bits_per_byte']:.4f}"
    card = (folder / "README.md").read_text()
    assert told in card
    assert record["training"]["command"] in card
    # of equal size: within 2 % of 2.16 million
    assert record["parameters"]["without_embedding"] == pytest.approx(2.16e6, rel=0.02)
    assert record["training"]["steps_done"] == record["training"]["steps"] == 2200


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_fp64_logits_answer_what_the_networks_answered(folder):
    """Assert recall in 256 bytes as results/hybrids.json has it of the GPU in bf16.

    Of the same 4 episodes with 8 questions each; one answer may fall otherwise.
    """
    results = json.loads((hybrids.FOLDER / "hybrids.json").read_text())
    wanted = {"model": folder.name, "task": "recall", "context": 256}.items()
    (row,) = [r for r in results["rows"] if wanted <= r["settings"].items()]
    model = lyapunov.load(folder)

    def logits(ids):
        return torch.tensor(np.stack([model.logits(text) for text in ids.numpy()]))

    asked = Reader(folder.name, folder.name, logits, lambda text: list(text.encode()))
    shares, _ = answered(asked, "recall", 256, 4, torch.device("cpu"))
    for ours, theirs in zip(shares, row["values"]["by_episode"][:4], strict=True):
        assert abs(ours - theirs) <= 1 / 8
