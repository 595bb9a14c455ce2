"""A changed weight set against its base: measured as NumPy measures it, and explained.

NumPy's network runs both weight sets whole; the study goes layer by layer.
"""

import json

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from scipy.special import log_softmax

import lyapunov
from lyapunov._errors import LyapunovError, UsageError
from lyapunov.questions._changes import parameter_changes
from lyapunov.questions._weight_sets import other_weights, rounded_weights
from lyapunov.report.json import schema
from oracles.checkpoints.mamba1 import save_mamba_ssm, save_transformers
from oracles.networks.mamba1 import NumpyMamba, Sizes, random_weights

from ..helpers import forget_programs, not_none, programs_compiled


SIZES = Sizes(layers=3)
UNTIED = SIZES._replace(tied=False)
SEQ = 24
MIXER = "backbone.layers.{}.mixer."


@pytest.fixture(scope="module")
def weights():
    return random_weights(np.random.default_rng(21), SIZES)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(22).integers(0, SIZES.vocab, (2, SEQ))


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return lyapunov.load(
        save_transformers(tmp_path_factory.mktemp("base") / "model", weights, SIZES)
    )


def moved(weights, size, seed=5):
    """Weights changed in every entry by about `size` of its tensor's scale."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + size * np.std(array) * rng.normal(size=array.shape)).astype(
            np.float32
        )
        for name, array in weights.items()
    }


def numpy_effect(base, changed, tokens, sizes=SIZES):
    """Relative L2 without means, mean KL and changed leaders, over the batch."""
    before = np.array([NumpyMamba(base, sizes).logits(row) for row in tokens])
    after = np.array([NumpyMamba(changed, sizes).logits(row) for row in tokens])
    centred = lambda x: x - x.mean(axis=-1, keepdims=True)
    relative = np.linalg.norm(centred(after - before)) / np.linalg.norm(centred(before))
    p, q = log_softmax(before, axis=-1), log_softmax(after, axis=-1)
    kl = np.sum(np.exp(p) * (p - q), axis=-1).mean()
    return relative, kl, int(np.sum(before.argmax(-1) != after.argmax(-1)))


def hold_to_numpy(report, base, changed, tokens, sizes=SIZES):
    relative, kl, flips = numpy_effect(base, changed, tokens, sizes)
    # two fp64 networks, each within about 1e-12 of its logits
    assert report.output.measured_rel_l2 == pytest.approx(relative, abs=1e-11)
    assert report.output.kl_mean == pytest.approx(kl, abs=1e-11)
    assert report.output.argmax_flips == flips
    assert sum(row.violations for row in report.layers) == 0


@pytest.mark.parametrize(
    "layout", [save_transformers, pytest.param(save_mamba_ssm, marks=pytest.mark.slow)]
)
def test_another_checkpoint_is_measured_as_numpy_does(
    model, weights, tokens, tmp_path, layout
):
    """Either layout: names and a padded vocabulary differ, the network does not."""
    changed = moved(weights, 0.02)
    other = layout(tmp_path / "other", changed, SIZES)
    change = other_weights(model, other)
    (report,) = parameter_changes(model, tokens, [change])
    hold_to_numpy(report, weights, changed, tokens)
    assert report.kind == "checkpoint"
    assert {f["name"] for f in report.files} >= {"config.json"}
    assert report.output.argmax_total == tokens.size
    for i, row in enumerate(report.layers):
        assert row.layer == i
        assert 0 < row.local_l2 <= not_none(row.bound_l2)
        assert not_none(row.floor_ratio) >= 1.0
        assert row.bound_ratio == pytest.approx(not_none(row.bound_l2) / row.local_l2)
        name = MIXER.format(i) + "A_log"
        apart = changed[name].astype(float) - weights[name]
        share = np.linalg.norm(apart) / np.linalg.norm(weights[name].astype(float))
        assert row.weights["A_log"] == pytest.approx(share, rel=1e-12)
    assert set(report.outside) == {"embedding", "norm_f", "head"}


def test_first_order_is_left_by_the_second(model, weights, tokens, tmp_path):
    """A tenth of the change leaves a tenth as much beyond first order."""
    beyond = []
    for size in (1e-3, 1e-4):
        step = moved(weights, size)
        folder = save_transformers(tmp_path / f"{size}", step, SIZES, dtype="float64")
        change = other_weights(model, folder)
        (report,) = parameter_changes(model, tokens, [change], floor=False)
        measured = not_none(report.output.measured_rel_l2)
        beyond.append(report.nonlinearity)
        off = abs(report.predicted_rel_l2 - measured)
        assert off <= not_none(report.nonlinearity) * measured * (1 + 1e-9)
        assert report.layers[0].floor_ratio is None
    assert beyond[0] < 0.1
    # fp32 keeps three or more digits of the smaller change, the third order is 1e-3
    assert beyond[0] / beyond[1] == pytest.approx(10.0, rel=0.2)


@pytest.mark.parametrize("group", ["all", "A_log", "conv", "embedding_and_head"])
def test_rounded_weights_are_those_of_ml_dtypes(model, weights, tokens, group):
    names = {
        "all": lambda name: True,
        "A_log": lambda name: name.endswith("A_log"),
        "conv": lambda name: "conv1d" in name,
        "embedding_and_head": lambda name: "embeddings" in name,
    }[group]
    changed = {
        name: array.astype(ml_dtypes.bfloat16).astype(np.float32)
        if names(name)
        else array
        for name, array in weights.items()
    }
    change = rounded_weights(model, f"bf16:{group}")
    (report,) = parameter_changes(model, tokens, [change])
    hold_to_numpy(report, weights, changed, tokens)
    assert report.kind == "rounding"
    touched = {name for row in report.layers for name in row.weights}
    if group == "embedding_and_head":
        assert touched == set()
        assert set(report.outside) == {"embedding", "head"}
        assert report.layers[2].local_l2 == report.layers[2].bound_l2 == 0.0
        assert report.layers[2].accumulated_l2 > 0
    elif group != "all":
        assert (
            touched == {"A_log": {"A_log"}, "conv": {"conv_weight", "conv_bias"}}[group]
        )
        assert report.outside == {}


def test_matrices_under_scales_are_those_of_torch(model, weights, tokens):
    """Without a group every projection, and the report says what is kept."""
    torch = pytest.importorskip("torch")

    def scaled(array):
        w = torch.tensor(array)
        scale = w.abs().max() / 448
        return ((w / scale).to(torch.float8_e4m3fn).double() * scale.double()).numpy()

    changed = {
        name: scaled(array) if name.endswith("_proj.weight") else array
        for name, array in weights.items()
    }
    change = rounded_weights(model, "fp8_e4m3")
    (report,) = parameter_changes(model, tokens, [change])
    hold_to_numpy(report, weights, changed, tokens)
    assert report.name == "fp8_e4m3-tensor:all"
    assert report.weight_format == "fp8_e4m3 with one fp32 scale a matrix"
    projections = ["in_proj", "x_proj", "dt_proj", "out_proj"]
    assert sorted(report.rounded) == sorted(f"mamba1.{name}" for name in projections)
    assert {"embedding", "head", "norm_f", "mamba1.A_log", "mamba1.conv_weight"} < set(
        report.kept
    )
    assert all(set(row.weights) == set(projections) for row in report.layers)
    assert report.outside == {}


def test_an_untied_head_alone(weights, tokens, tmp_path):
    """Nothing before the head moves, and its effect is linear."""
    base = random_weights(np.random.default_rng(23), UNTIED)
    changed = base | {"lm_head.weight": base["lm_head.weight"] * np.float32(1.5)}
    before = lyapunov.load(save_transformers(tmp_path / "a", base, UNTIED))
    other = save_transformers(tmp_path / "b", changed, UNTIED)
    (report,) = parameter_changes(before, tokens, [other_weights(before, other)])
    hold_to_numpy(report, base, changed, tokens, UNTIED)
    # the head is multiplied by 1.5 in fp32, rounded to within 2^-24
    assert report.output.measured_rel_l2 == pytest.approx(0.5, abs=2.0**-22)
    assert not_none(report.nonlinearity) < 1e-12
    assert list(report.outside) == ["head"]
    assert all(row.accumulated_l2 == 0 for row in report.layers)


def test_the_same_weights_have_no_effect(model, tokens):
    (report,) = parameter_changes(
        model, tokens, [other_weights(model, model.checkpoint.folder)]
    )
    assert report.output.measured_rel_l2 == 0.0
    assert report.predicted_rel_l2 == 0.0
    assert report.nonlinearity is None
    assert all(row.bound_ratio is None and row.weights == {} for row in report.layers)


def adapter(folder, layer, seed=0, rank=2, alpha=4, d_model=SIZES.d_model):
    """An adapter of one x_proj as PEFT lays it out, made by hand: folder and B A."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    rows = SIZES.dt_rank + 2 * SIZES.d_state
    A = 0.1 * rng.normal(size=(rank, 2 * d_model)).astype(np.float32)
    B = 0.1 * rng.normal(size=(rows, rank)).astype(np.float32)
    name = f"base_model.model.backbone.layers.{layer}.mixer.x_proj."
    folder.mkdir()
    save_file(
        {f"{name}lora_A.weight": A, f"{name}lora_B.weight": B},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    settings["base_model_name_or_path"] = "somebody/base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, alpha / rank * (B.astype(float) @ A.astype(float))


def test_an_adapter_is_measured_as_numpy_does(model, weights, tokens, tmp_path):
    folder, delta = adapter(tmp_path / "lora", 1)
    name = MIXER.format(1) + "x_proj.weight"
    changed = weights | {name: weights[name].astype(np.float64) + delta}
    (report,) = parameter_changes(model, tokens, [other_weights(model, folder)])
    hold_to_numpy(report, weights, changed, tokens)
    assert report.kind == "adapter"
    assert [row.weights != {} for row in report.layers] == [False, True, False]
    assert [row.accumulated_l2 > 0 for row in report.layers] == [False, True, True]
    assert {f["name"] for f in report.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def _other(tmp_path, sizes, **config):
    made = random_weights(np.random.default_rng(2), sizes)
    return save_transformers(tmp_path / "other", made, sizes, **config)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: _other(t, SIZES._replace(layers=2)), "n_layers 2 and 3"),
        (lambda t: _other(t, Sizes(layers=3, d_model=8)), "d_model 8 and 12"),
        (lambda t: _other(t, SIZES._replace(vocab=41)), "padded_vocab_size 41 and 40"),
        (lambda t: _other(t, SIZES._replace(epsilon=1e-3)), "norm_epsilon 0.001"),
        (lambda t: _other(t, SIZES, model_type="falcon_mamba"), "(falcon_mamba and"),
        (lambda t: t / "nowhere", "no such file or folder"),
        (lambda t: adapter(t / "a", 7)[0], "layers.7.mixer.x_proj"),
        (lambda t: adapter(t / "a", 0, d_model=8)[0], "shape (8, 16); the base's"),
    ],
    ids=["layers", "width", "vocabulary", "norm", "family", "path", "layer", "adapter"],
)
def test_what_is_no_weight_set_of_this_network_is_refused(model, tmp_path, make, says):
    with pytest.raises(LyapunovError) as caught:
        other_weights(model, make(tmp_path))
    assert says in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_weights_beyond_a_format_are_refused(tokens, tmp_path):
    made = random_weights(np.random.default_rng(2), SIZES)
    made[MIXER.format(1) + "D"][4] = 500.0
    model = lyapunov.load(save_transformers(tmp_path / "model", made, SIZES))
    change = rounded_weights(model, "fp8_e4m3-unscaled:D")
    with pytest.raises(UsageError, match="D of layer 1 holds 500, beyond 448"):
        parameter_changes(model, tokens, [change])


def test_bad_tokens_are_refused(model):
    change = rounded_weights(model, "bf16")
    with pytest.raises(LyapunovError, match="40"):
        parameter_changes(model, np.array([0, 40]), [change])
    assert parameter_changes(model, np.array([0, 1]), []) == []


def test_check_reports_every_change_and_the_chosen_layers(model, tokens, tmp_path):
    folder, _ = adapter(tmp_path / "lora", 1)
    forget_programs()
    with programs_compiled() as compiled:
        report = lyapunov.check(
            model,
            tokens,
            measure="none",
            layers=[1],
            against=folder,
            round_weights=["bf16:A_log", "fp16:D"],
        )
    assert "_sublayer_change" in compiled
    # one program for all parameters, not an operation for each of their shapes
    assert len(compiled) <= 20, compiled
    names = [change.name for change in report.parameter_changes]
    assert names == [str(folder), "bf16:A_log", "fp16:D"]
    assert [[r.layer for r in c.layers] for c in report.parameter_changes] == [[1]] * 3
    assert report.settings["against"] == str(folder)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(document["parameter_changes"]) == 3
    coverage = document["parameter_changes"][0]["coverage"]
    assert (coverage["recurrent_touched"], coverage["recurrent_total"]) == (1, 3)
    (told,) = [f for f in report.findings if f.code == "LYA019"]
    assert "changes 1 of 3 recurrent sublayers" in told.message
    jsonschema.validate(document, schema())
    quick = lyapunov.check(
        model, tokens, measure="none", effort="quick", round_weights=["bf16:A_log"]
    )
    row, whole = quick.parameter_changes[0].layers[1], report.parameter_changes[1]
    assert row.local_l2 == pytest.approx(whole.layers[0].local_l2, rel=1e-9)
    assert row.local_max == pytest.approx(whole.layers[0].local_max, rel=1e-9)
    assert row.bound_l2 is row.violations is row.elements_total is None
    assert (quick.summary.verdict, quick.summary.bounded_share) == ("measured", None)


def test_the_command_ends_with_two_and_a_clear_line(model, tmp_path, capsys):
    from lyapunov.command._cli import main

    other = _other(tmp_path, SIZES._replace(layers=2))
    base = str(model.checkpoint.folder)
    arguments = [base, "--against", str(other), "--length", "8", "--measure", "none"]
    code = main.main(arguments, standalone_mode=False)
    shown = capsys.readouterr().err
    assert code == 2
    assert "n_layers 2 and 3" in shown
    assert "hint: " in shown
    assert "Traceback" not in shown
