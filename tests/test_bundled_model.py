"""Assert that the bundled model is small, trained, and as good as its card says.

Independent of this project's own code: transformers reads and runs the files.
"""

import hashlib
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HOME = Path(__file__).parents[1] / "lyapunov" / "assets" / "mamba1-bytes"
PROMISED = 1.8  # bits per byte on held-out text, at most
BLOCK = 64  # bytes; surprise is correlated within words, hardly from block to block


@pytest.fixture(scope="module")
def record():
    return json.loads((HOME / "training.json").read_text())


@pytest.fixture(scope="module")
def model():
    found = transformers.MambaForCausalLM.from_pretrained(HOME, dtype=torch.float32)
    return found.eval()


@pytest.fixture(scope="module")
def surprise(model, record):
    """Bits for each byte but the first of the opening of the held-out text."""
    text = (HOME / "heldout.txt").read_bytes()
    ids = torch.tensor([list(text[: record["evaluation"]["opening_bytes"]])])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1].double()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return nats / math.log(2)


def test_all_files_together_are_five_megabytes_at_most():
    assert sum(f.stat().st_size for f in HOME.rglob("*") if f.is_file()) <= 5_000_000


def test_files_are_those_that_were_measured(record):
    for file in record["files"]:
        data = (HOME / file["name"]).read_bytes()
        assert len(data) == file["bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]


def test_config_is_a_byte_level_mamba():
    config = json.loads((HOME / "config.json").read_text())
    assert config["model_type"] == "mamba"
    assert config["architectures"] == ["MambaForCausalLM"]
    assert config["vocab_size"] == 256
    assert config["lyapunov_tokenizer"] == "bytes"
    assert config["num_hidden_layers"] >= 6
    assert config["dtype"] == "float32"


def test_parameters_are_about_a_million_and_finite(model, record):
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == record["parameters"]
    assert 0.8e6 < record["parameters"] < 1.3e6
    assert all(p.isfinite().all() for p in parameters)
    assert all(p.dtype == torch.float32 for p in parameters)


def test_card_and_record_state_the_same_numbers(record):
    card = (HOME / "README.md").read_text()
    stated = re.search(r"Held-out bits per byte: ([\d.]+)", card)
    assert stated is not None
    assert float(stated.group(1)) == record["held_out_bits_per_byte"] <= PROMISED
    assert f"{record['parameters']:,} parameters" in card
    assert record["training"]["command"] in card
    assert "license: apache-2.0" in card
    assert "public domain" in " ".join(card.split())
    assert all(file["sha256"] in card for file in record["data"]["files"])


def test_held_out_documents_were_trained_on_nowhere(record):
    """Their byte ranges do not overlap, and few of their long strings recur."""
    documents = [d for part in record["data"]["documents"].values() for d in part]
    spans = sorted((d["file"], d["start"], d["stop"]) for d in documents)
    for (file, _, stop), (other, start, _) in pairwise(spans):
        assert file != other or stop <= start
    assert all(d["overlap"] < 0.05 for d in documents)
    kept_out = sum(d["stop"] - d["start"] for d in documents)
    whole = sum(file["bytes"] for file in record["data"]["files"])
    assert record["data"]["training_bytes"] == whole - kept_out


def test_held_out_text_is_plain_english_of_a_handy_size():
    text = (HOME / "heldout.txt").read_bytes().decode("ascii")
    assert 16_000 <= len(text) <= 65_536
    assert "Boatswain!" in text


def test_recurrences_were_trained_not_only_initialised(model):
    """They left transformers' initial values: A_log = log(1..16) and D = 1 exactly,
    dt's weights within 1/sqrt(rank), softplus of dt's bias within [1e-3, 0.1]."""
    for layer in model.backbone.layers:
        mixer = layer.mixer
        start = torch.arange(1, mixer.A_log.shape[1] + 1).log().expand_as(mixer.A_log)
        assert (mixer.A_log - start).square().mean().sqrt() > 0.1
        assert (mixer.D - 1).square().mean().sqrt() > 0.05
        within = mixer.dt_proj.weight.shape[1] ** -0.5
        assert (mixer.dt_proj.weight.abs() > within).float().mean() > 0.01
        dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
        assert ((dt < 0.999e-3) | (dt > 0.1001)).any()


def test_held_out_bits_per_byte_are_as_promised(surprise):
    """Within the promise and three standard errors of so short a sample."""
    blocks = torch.stack([b.mean() for b in surprise.split(BLOCK) if len(b) == BLOCK])
    error = (blocks.std() / math.sqrt(len(blocks))).item()
    assert error < 0.15
    assert surprise.mean().item() <= PROMISED + 3 * error


def test_score_on_another_machine_is_reproduced(surprise, record):
    """The recorded score, from CUDA kernels, by another implementation on a CPU.

    Both run in fp32 and the record has four decimals (5e-5). A forward of about 150
    dependent operations, each good to 2^-24 of values below 2^5, leaves logits that
    are good to 150 * 2^5 * 2^-24 = 3e-4, and a mean over bytes no worse.
    """
    expected = record["evaluation"]["opening_bits_per_byte"]
    measured = surprise.mean().item()
    assert abs(measured - expected) < 5e-5 + 2 * 3e-4 / math.log(2)
