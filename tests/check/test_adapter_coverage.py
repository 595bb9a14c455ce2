"""An adapter that reaches part of a network, or names what is not there, is told so."""

import json

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.findings import _rules as findings
from lyapunov.findings._changes import change_findings, coverage_gaps
from lyapunov.questions._weight_sets import other_weights
from lyapunov.results._check import OutputDivergence, ParameterChangeReport
from oracles.checkpoints.configurations import BAMBA
from oracles.checkpoints.transformers import make, save


pytest.importorskip("transformers")

SUBLAYERS = 6  # mixer, MLP, attention, MLP, mixer, MLP: 2 recurrent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    settings = {**BAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]}
    folder = tmp_path_factory.mktemp("base") / "model"
    return lyapunov.load(save(make("bamba", **settings), folder))


def lora(model, folder, modules, zeros=(), **settings):
    """A folder as PEFT writes it, for modules named below `model.`."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {}
    for module in modules:
        rows, columns = model.layout.checkpoint.shape(f"model.{module}.weight")
        for way, shape in (("A", (2, columns)), ("B", (rows, 2))):
            value = rng.normal(size=shape).astype(np.float32)
            if module in zeros and way == "B":
                value = np.zeros_like(value)
            tensors[f"base_model.model.model.{module}.lora_{way}.weight"] = value
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


MIXERS = ["layers.0.mamba.in_proj", "layers.2.mamba.in_proj"]
ATTENTION = [f"layers.1.self_attn.{name}_proj" for name in "qv"]
CASES = {
    "every mixer": (MIXERS, {"target_modules": ["in_proj"]}, (2, 2), []),
    "attention alone": (
        ATTENTION,
        {"target_modules": ["q_proj", "v_proj"]},
        (0, 1),
        ["changes 0 of 2 recurrent sublayers (1 of 6 sublayers)"],
    ),
    "one mixer, and names of another family": (
        [MIXERS[0], "layers.0.feed_forward.up_proj"],
        {"target_modules": ["in_proj", "up_proj", "x_proj", "c_attn"]},
        (1, 2),
        [
            "changes 1 of 2 recurrent sublayers (2 of 6 sublayers)",
            "its settings name x_proj, c_attn, no module of the base",
        ],
    ),
    "named, and not there": (
        MIXERS,
        {"target_modules": ["mamba.in_proj", "out_proj"]},
        (2, 2),
        ["its settings name out_proj, for which it has no weights"],
    ),
    "chosen layers": (
        MIXERS[1:],
        {"target_modules": ["in_proj"], "layers_to_transform": [2]},
        (1, 1),
        [],
    ),
    "chosen layers without a mixer": (
        ATTENTION,
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
        (0, 1),
        ["changes 0 of 2 recurrent sublayers (1 of 6 sublayers)"],
    ),
    "an expression names nothing": (
        MIXERS,
        {"target_modules": r".*\.(in_proj|nowhere)"},
        (2, 2),
        [],
    ),
    "a tied head": (MIXERS, {"modules_to_save": ["lm_head"]}, (2, 2),
                    ["its settings name lm_head, for which it has no weights"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_an_adapter_leaves_out(model, tmp_path, name):
    """Assert figures and words, and a warning exactly where there are words."""
    modules, settings, touched, gaps = CASES[name]
    change = other_weights(model, lora(model, tmp_path / "a", modules, **settings))
    coverage = change.coverage
    assert coverage is not None
    assert (coverage.recurrent_touched, coverage.sublayers_touched) == touched
    assert (coverage.recurrent_total, coverage.sublayers_total) == (2, SUBLAYERS)
    assert (coverage.updates, coverage.zero_updates) == (len(modules), 0)
    assert coverage_gaps(coverage) == gaps
    report = ParameterChangeReport(
        "a", "adapter", [], OutputDivergence(), 0.0, None, {}, coverage=coverage
    )
    found = list(change_findings(report))
    assert [f.code for f in found] == ["LYA019"] * bool(gaps)
    for finding in found:
        assert finding.severity == "warning"
        assert all(gap in finding.message for gap in gaps)
        assert (finding.value, finding.limit) == (touched[0], 2)
    assert findings.select_findings(found, ignore=["LYA019"]) == []


def test_an_update_of_zeros_touches_nothing(model, tmp_path):
    """Assert it of lora_B before training, and of lora_alpha 0."""
    folder = lora(model, tmp_path / "a", MIXERS, zeros=MIXERS[:1])
    coverage = other_weights(model, folder).coverage
    assert coverage is not None
    assert (coverage.recurrent_touched, coverage.zero_updates) == (1, 1)
    assert "1 of its 2 updates are zero" in coverage_gaps(coverage)
    idle = other_weights(model, lora(model, tmp_path / "b", MIXERS, lora_alpha=0))
    assert idle.coverage is not None
    assert (idle.coverage.recurrent_touched, idle.coverage.zero_updates) == (0, 2)


def test_an_adapter_on_an_adapter_is_refused(model, tmp_path):
    """The first would be lost without a word."""
    folder = lora(model, tmp_path / "a", MIXERS)
    change = other_weights(model, folder)
    change.model.checkpoint = model.checkpoint
    with pytest.raises(UsageError, match="merged in already"):
        other_weights(change.model, folder)


def test_pefts_own_settings_are_read(model, tmp_path):
    """PEFT says nothing of gate_proj where there is an in_proj to match."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.checkpoint.folder)
    config = peft.LoraConfig(r=2, target_modules=["in_proj", "c_proj"])
    wrapped = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    wrapped.save_pretrained(tmp_path / "lora")
    coverage = other_weights(model, tmp_path / "lora").coverage
    assert coverage is not None
    assert coverage.names_absent == ["c_proj"]
    assert coverage.names_without_weights == []
    assert (coverage.recurrent_touched, coverage.zero_updates) == (2, 0)
