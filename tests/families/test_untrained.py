"""Fresh networks of every family are called untrained, and lost parts by their name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lyapunov
from lyapunov.exponents._initialisation import at_initialisation
from lyapunov.questions._layer_facts import layer_facts
from lyapunov.sublayers.kinds import KINDS
from oracles.checkpoints.configurations import CONFIGURATIONS, SMALL
from oracles.checkpoints.transformers import TEXT as TEXT_OF, make, redraw, save

from ..helpers import not_none


MAMBA = {**SMALL, "num_hidden_layers": 2, "state_size": 8}
FAMILIES = {
    "mamba": MAMBA,
    **{family: next(iter(named.values())) for family, named in CONFIGURATIONS.items()},
}
ALL = [("mamba", "plain", MAMBA)] + [
    (family, name, config)
    for family, named in CONFIGURATIONS.items()
    for name, config in named.items()
]
NO_STEP_SIZE = (
    *("gpt_neox", "llama", "olmo", "olmo2", "lfm2", "rwkv", "xlstm"),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe", "lara_mini", "olmo_hybrid"),
    *("kimi_linear", "bailing_hybrid", "recurrent_gemma", "minimax"),
)
"""Without a recurrence of a dt, an A and a D; `test_delta_exponents` asks delta rules
for parameters that were lost."""
RECURRENT = [family for family in FAMILIES if family not in NO_STEP_SIZE]
MODELS = Path(__file__).parents[2] / "experiments" / "models"


def fresh(family: str, config, seed=0):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(TEXT_OF.get(family, family), **config)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def told(folder):
    model = lyapunov.load(str(folder))
    return [
        at_initialisation(
            model.raw_parameters(sublayer.layer),
            getattr(model.config.sublayers[sublayer.layer], "norm_offset", 0.0),
        )
        for sublayer in model.sublayers
    ]


@pytest.mark.parametrize(
    ("family", "config"), [pytest.param(f, c, id=f"{f}-{n}") for f, n, c in ALL]
)
def test_every_sublayer_of_a_fresh_network_is_at_its_initialisation(
    family, config, tmp_path
):
    """Assert it as `from_config` makes it, in fp32 and in bf16, and of none whose
    vectors were moved."""
    network = fresh(family, config)
    for dtype in ("float32", "bfloat16"):
        found = told(save(network, tmp_path / dtype, dtype))
        assert all(found)
    redraw(network)
    folder = save(network, tmp_path / "moved")
    moved = told(folder)
    # OLMo's norms have no weights, MiniMax's are sublayers of their own, and matrices
    # are as good as fresh ones
    alone = {"olmo": KINDS, "minimax": ("attention", "experts")}.get(family, ())
    kinds = [one.kind for one in lyapunov.load(str(folder)).sublayers]
    assert moved == [kind in alone for kind in kinds]


def test_norms_around_an_offset_begin_at_0():
    """Assert it of those that the offset is added to: not of the one behind a gate."""
    fresh = {"norm": np.zeros(8), "gate_norm": np.ones(8)}
    assert at_initialisation(fresh, 1.0)
    assert not at_initialisation(fresh)
    assert not at_initialisation({"norm": np.ones(8), "gate_norm": np.ones(8)}, 1.0)


def test_matrices_tell_where_no_norm_does():
    """Assert a draw of either distribution, and none with the tails of training; small
    matrices and vectors say nothing."""
    rng = np.random.default_rng(1)
    # constants are no draw, and say nothing
    assert at_initialisation({"diagonal_decay": np.tril(np.ones((4, 64, 64)))}) is None
    for matrix in (rng.normal(size=(64, 64)), rng.uniform(-1, 1, (64, 64))):
        assert at_initialisation({"up": matrix})
        heavy = matrix * np.exp(0.5 * rng.normal(size=matrix.shape))
        assert at_initialisation({"up": heavy}) is False
    assert at_initialisation({"up": np.zeros((64, 64))})
    assert at_initialisation({"up": np.full((64, 64), np.nan)}) is False
    assert at_initialisation({"up": np.ones((4, 4)), "up_bias": np.ones(900)}) is None


# ---- parts of a network that is not fresh


def record_of(model, sublayer, seed=2):
    """A reference's record as the facts read it, made up."""
    rng = np.random.default_rng(seed)
    sizes = model.config.sublayers[sublayer.layer]
    width = sizes.d_inner if sublayer.kind == "mamba1" else sizes.heads
    dt = np.logaddexp(0, rng.normal(-2, 2, (1, 40, width)))
    observed = {"dt": dt, "state": np.ones((1, 40)), "log_decay": -dt}
    return SimpleNamespace(output=rng.normal(size=(1, 40, 4)), observed=observed)


def suspected(folder):
    """Of each recurrent sublayer, its kind and what it is suspected of."""
    model = lyapunov.load(str(folder))
    found = []
    for sublayer in model.sublayers:
        if KINDS[sublayer.kind].recurrent:
            facts = layer_facts(model, sublayer, record_of(model, sublayer))
            found.append((sublayer.kind, facts.suspicions, facts.suspects))
    assert found
    return found


def is_named(key, name):
    endings = {
        "dt_bias": ("dt_bias", "dt_proj.bias", "dt_proj_bias"),
        "A_log": ("A_log",),
        "D": (".D",),
    }[name]
    return key.endswith(endings)


@pytest.mark.parametrize("name", ["dt_bias", "A_log", "D"])
@pytest.mark.parametrize("family", RECURRENT)
def test_a_lost_parameter_is_named_in_every_family(family, name, tmp_path):
    """Assert that its zeros are told in every recurrent sublayer, by its own name, and
    nothing where nothing is lost."""
    import torch

    network = make(family, **FAMILIES[family])
    if name == "dt_bias":
        for _, suspicions, suspects in suspected(save(network, tmp_path / "whole")):
            assert (suspicions, suspects) == ([], [])
    with torch.no_grad():
        zeroed = [p.zero_() for k, p in network.named_parameters() if is_named(k, name)]
    assert zeroed
    for kind, suspicions, suspects in suspected(save(network, tmp_path / "lost")):
        noun = "head" if kind == "mamba2" else "channel"
        assert suspicions[0].startswith(f"{name} is 0 in every {noun}")
        assert suspects == [name]


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrences_initialised_anew_are_named_in_every_family(family, tmp_path):
    """Assert it of A_log, dt_bias and D of a fresh network in one whose norms and
    matrices were moved: lost, and not untrained."""
    import torch

    network, start = make(family, **FAMILIES[family]), fresh(family, FAMILIES[family])
    values = dict(start.named_parameters())
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if any(is_named(key, name) for name in ("dt_bias", "A_log", "D")):
                parameter.copy_(values[key])
    folder = save(network, tmp_path / "anew")
    assert not all(told(folder))
    for _, suspicions, suspects in suspected(folder):
        assert "exactly as before training" in suspicions[0]
        assert suspects == ["A_log", "dt_bias", "D"]


def _copy_of(folder, name, change):
    from safetensors.numpy import load_file, save_file

    source = MODELS / name
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    for key, array in tensors.items():
        tensors[key] = np.ascontiguousarray(change(key, array))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["dt_bias", "D"])
def test_a_lost_parameter_of_mamba3_is_named(name, tmp_path):
    """Assert it of the trained Mamba-3, which has no A_log, and nothing of it whole."""
    lost = lambda key, array: 0 * array if is_named(key, name) else array
    for kind, suspicions, suspects in suspected(
        _copy_of(tmp_path / "m", "mamba3", lost)
    ):
        assert kind == "mamba3"
        assert suspicions == [
            f"{name} is 0 in every head: it was zeroed or never loaded"
        ]
        assert suspects == [name]
    for _, suspicions, _ in suspected(MODELS / "mamba3"):
        assert suspicions == []
    assert not any(told(MODELS / "mamba3"))


def test_a_trained_mamba2_drawn_anew_as_transformers_does_is_named(tmp_path):
    """Assert LYA008's words in every layer of the trained Mamba-2, 8 heads each."""
    rng = np.random.default_rng(3)

    def anew(key, array):
        if key.endswith("A_log"):
            return np.log(np.arange(1, len(array) + 1)).astype(array.dtype)
        if key.endswith(".D"):
            return np.ones_like(array)
        if key.endswith("dt_bias"):
            dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), array.shape))
            return (dt + np.log(-np.expm1(-dt))).astype(array.dtype)
        return array

    folder = _copy_of(tmp_path / "anew", "mamba2", anew)
    found = suspected(folder)
    assert len(found) == 5
    for _, suspicions, suspects in found:
        assert "A_log, dt_bias and D are exactly as before training" in suspicions[0]
        assert suspects == ["A_log", "dt_bias", "D"]
    assert not any(told(folder))


# ---- whole checks


TEXT = np.frombuffer(
    b"It was the best of times, it was the worst of times. " * 3, np.uint8
)


def test_an_untrained_network_gets_one_word_for_all_of_it(tmp_path):
    """Assert LYA020 alone, on text, where its loss is above what frequencies need; and
    that the verdict's line and the advice say so."""
    from lyapunov.report import to_table

    folder = save(fresh("mamba", {**MAMBA, "vocab_size": 256}), tmp_path / "model")
    report = lyapunov.check(
        str(folder), TEXT[:80].astype(int), measure="none", tokens_are_text=True
    )
    loss = not_none(report.reference)
    assert loss.judged
    assert loss.loss_bits_per_token > not_none(loss.unigram_bits)
    assert [finding.code for finding in report.findings] == ["LYA020"]
    assert "trained weights" in report.summary.recommendation
    assert report.summary.exit_code == 0
    lines = to_table(report).splitlines()
    assert any(text.startswith("! EXPONENTS NEGATIVE, BUT") for text in lines)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [MODELS.parents[1] / "analysis/models/mamba1-24-layers", *sorted(MODELS.iterdir())],
    ids=lambda folder: folder.name,
)
def test_trained_models_of_this_project_raise_no_alarm(folder):
    """Assert none of LYA008, LYA016, LYA017 and LYA020 on the bundled text."""
    home = Path(lyapunov.__file__).parent / "assets" / "mamba1-bytes"
    text = np.frombuffer((home / "heldout.txt").read_bytes()[:512], np.uint8)
    report = lyapunov.check(
        str(folder), text.astype(int), measure="none", growth=False,
        tokens_are_text=True,
    )  # fmt: skip
    assert not_none(report.reference).judged
    assert not_none(report.reference).loss_bits_per_token < 2
    alarms = {"LYA008", "LYA016", "LYA017", "LYA020"}
    assert not alarms & {finding.code for finding in report.findings}
