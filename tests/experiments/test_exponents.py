"""Exponents in training: which checkpoints, what of them, and what goes with what."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from transformers import MambaConfig, MambaForCausalLM

import lyapunov
from experiments import exponents
from experiments.spectra.page import figures
from experiments.spectra.relations import correlation, relations

from .finetuned import byte_pairs, checkpoint


FACTORS = (1 / 16, 4.0)


def options(*given):
    return exponents.parser().parse_args(["--device", "cpu", *given])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exponents")
    checkpoint(folder, "mamba1")
    checkpoint(folder / "tuned", "mamba1")
    (folder / "tuned" / "mamba1").rename(folder / "tuned" / "mamba1-tuned-2")
    return folder


@pytest.fixture(scope="module")
def found(home):
    """What the command finds of one tiny Mamba-1, asked twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exponents, "FACTORS", FACTORS)
        yield _found(home)


def _found(home):
    out = home / "exponents.json"
    given = ["--models", str(home / "mamba1"), "--tuned", str(home / "tuned")]
    given += ["--seeds", "1", "--tokens", "64", "--device", "cpu", "--out", str(out)]
    exponents.main(given)
    first = json.loads(out.read_text())
    exponents.main(given)
    assert json.loads(out.read_text())["rows"] == first["rows"]
    return out, first


def test_every_checkpoint_is_examined_once(found):
    out, content = found
    kept = [tuple(row["settings"][k] for k in ("stage", "seed", "factor"))
            for row in content["rows"]]  # fmt: skip
    assert kept == [
        ("trained", 0, 1.0), ("initial", 0, 1.0),
        *(("scaled", 0, factor) for factor in FACTORS), ("tuned", 2, 1.0),
    ]  # fmt: skip
    assert out.with_suffix(".png").stat().st_size > 10_000
    page = out.with_suffix(".md").read_text()
    assert "| trained | -" in page
    assert "## What the sign does not say" in page


def test_exponents_of_the_first_layer_move_with_a(found):
    """Assert it: its dt comes from the embeddings, whatever A is.

    To fp32's error of the A_log written, and of exp: two units in the last place.
    """
    rows = found[1]["rows"]
    by = {(r["settings"]["stage"], r["settings"]["factor"]): r for r in rows}
    trained = by["trained", 1.0]["values"]["layers"][0]
    for factor in FACTORS:
        scaled = by["scaled", factor]["values"]["layers"][0]
        for end in ("max", "min"):
            # A_log is some 4 at most, and its error is one of A, relative
            assert scaled[end] == pytest.approx(factor * trained[end], rel=8 * 2**-23)
        assert scaled["dt_mean"] == trained["dt_mean"]


def test_no_exponent_is_positive_and_no_bound_is_broken(found):
    for row in found[1]["rows"]:
        assert all(layer["max"] <= 0 for layer in row["values"]["layers"])
        for one in row["values"]["precisions"].values():
            assert one["violations"] == 0
            assert 0 < one["rel_l2"] < 0.1
    top = max(la["max"] for row in found[1]["rows"] for la in row["values"]["layers"])
    figure = found[1]["figures"]["exponents.maximal"]
    assert figure["value"] == top
    assert figure["n"] == len(found[1]["rows"])


def test_initial_weights_are_those_of_the_seed(home, tmp_path):
    given = options("--models", str(home / "mamba1"), "--seeds", "2")
    checkpoints = exponents.Checkpoints(given, tmp_path)
    rows = [r for r, _ in checkpoints.rows(str(home / "mamba1"))
            if r["stage"] == "initial"]  # fmt: skip
    folders = [checkpoints.made(str(home / "mamba1"), row)[0] for row in rows]
    both = [load_file(folder / "model.safetensors") for folder in folders]
    name = "backbone.layers.0.mixer.in_proj.weight"
    assert not np.array_equal(both[0][name], both[1][name])
    trained = load_file(home / "mamba1" / "model.safetensors")
    assert not np.array_equal(both[1][name], both[0][name])
    assert both[0].keys() == trained.keys()


def test_a_recurrence_without_a_cannot_be_scaled(home, tmp_path):
    (tmp_path / "model").mkdir()
    config = (home / "mamba1" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config)
    from safetensors.numpy import save_file

    weights = load_file(home / "mamba1" / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.endswith("A_log")}
    save_file(kept, tmp_path / "model" / "model.safetensors")
    checkpoints = exponents.Checkpoints(options(), tmp_path)
    with pytest.raises(SystemExit, match="no A_log"):
        checkpoints.made(str(tmp_path / "model"), {"stage": "scaled", "factor": 4.0})


def row(model, top, distance, predicted):
    layer = {"max": top, "memory_p50": -1 / top, "dt_max": 1.0, "stderr": 1e-3}
    one = {"rel_l2": distance, "kl_mean": distance**2, "sigma_t3": predicted}
    own = {"model": model, "stage": "trained", "factor": 1.0}
    values = {"layers": [layer], "precisions": {"bf16": one, "fp16": one}}
    return {"settings": own, "values": values}


def test_relations_are_rank_correlations():
    """Assert 1 and -1 of orders known, and none of what is constant or too few."""
    tops = [-0.9 + 0.08 * i for i in range(11)]
    rows = [row("a", top, 1 + top, None if i == 0 else 2 - i / 10)
            for i, top in enumerate(tops)]  # fmt: skip
    # nine are too few to be resampled
    rows += [row("b", -0.05 / i, 3.0 + i, 1.0 / i) for i in range(1, 10)]
    told = {(one["predictor"], one["measure"]): one for one in relations(rows)
            if one["precision"] == "bf16"}  # fmt: skip
    assert told["largest exponent", "rel_l2"]["a"]["rho"] == pytest.approx(1)
    assert told["median memory", "kl_mean"]["a"]["rho"] == pytest.approx(1)
    predicted = told["predicted by lyapunov-check", "rel_l2"]["a"]
    assert predicted["rho"] == pytest.approx(-1)
    assert predicted["n"] == 10  # one has no prediction
    assert told["largest dt", "rel_l2"]["a"] is None
    assert told["largest exponent", "rel_l2"]["b"] is None
    assert told["largest exponent", "rel_l2"]["all"]["n"] == 20


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(6)
    x, y = rng.integers(4, size=12), rng.normal(size=12)
    one = correlation(x.astype(float), y)
    assert one is not None
    assert one["rho"] == pytest.approx(spearmanr(x, y)[0], rel=1e-12)


def test_an_interval_of_chance_holds_nothing():
    rng = np.random.default_rng(5)
    one = correlation(rng.normal(size=40), rng.normal(size=40))
    assert one is not None
    assert one["low"] < 0 < one["high"]


def test_the_largest_exponent_has_its_own_error():
    rows = [row("a", -0.5, 1.0, 1.0), row("b", -0.25, 1.0, 1.0)]
    one = figures(rows)["exponents.maximal"]
    assert one["value"] == -0.25
    assert (one["low"], one["high"]) == pytest.approx((-0.25196, -0.24804))
    assert one["n"] == 2
    assert figures([]) == {}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tokens", "8"], "64 or more"),
        (["--seeds", "-1"], "0 or more"),
        (["--tuned", "nowhere"], "no folder"),
        (["--models", "nowhere"], "nowhere cannot be loaded"),
    ],
)
def test_what_cannot_be_examined_is_said(tmp_path, more, says, capsys):
    with pytest.raises(SystemExit) as ended:
        exponents.main(["--out", str(tmp_path / "one.json"), "--device", "cpu", *more])
    assert says in f"{ended.value}" + capsys.readouterr().err


def test_a_model_without_recurrence_is_left_out_by_name(tmp_path):
    checkpoint(tmp_path, "gpt_neox")
    with pytest.raises(SystemExit, match="no recurrence"):
        exponents.main(["--models", str(tmp_path / "gpt_neox"), "--device", "cpu",
                        "--out", str(tmp_path / "one.json")])  # fmt: skip


def test_checkpoints_of_transformers_are_examined_as_trained_and_initial(
    tmp_path, monkeypatch
):
    """Assert rows, tokens of their tokenizer, and that initial weights are others."""
    whole = lyapunov.check
    monkeypatch.setattr(  # exponents alone: what is rounded is examined above
        lyapunov, "check", lambda *given, **_: whole(*given, measure="none")
    )
    torch.manual_seed(7)
    config = MambaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    model = MambaForCausalLM(config)
    with torch.no_grad():
        model.get_parameter("backbone.layers.0.mixer.A_log").add_(1.0)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = byte_pairs(["What is the word?"], 300)
    tokenizer.save_pretrained(tmp_path / "theirs")

    ids = exponents.tokens_of(str(tmp_path / "theirs"), 64)
    assert ids.shape == (64,)
    text = exponents.read_tokens(512).astype(np.uint8).tobytes().decode()
    assert text.startswith(str(tokenizer.decode(ids)))

    out = tmp_path / "exponents.json"
    given = ["--models", str(tmp_path / "theirs"), "--seeds", "1", "--tokens", "64"]
    monkeypatch.setattr("experiments.spectra.page.publish", lambda path: None)
    exponents.main([*given, "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["settings"]["stage"] for row in rows] == ["trained", "initial"]
    trained, initial = (row["values"]["layers"][0] for row in rows)
    # A of transformers' initial weights is -1 to -4; the trained one's is e times that
    assert trained["max"] < 1.5 * initial["max"] < 0
