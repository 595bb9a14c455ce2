"""An adapter merged while it is read is what PEFT makes of it; others are refused."""

import json
import shutil

import numpy as np
import pytest

from lyapunov._errors import LyapunovError
from lyapunov.checkpoints._adapter import adapted, is_adapter, open_adapter

from ..helpers import assert_within, gamma


peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TARGETS = ["in_proj", "x_proj", "dt_proj"]


def _network(tied=True, d_model=16):
    torch.manual_seed(0)
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=40,
            hidden_size=d_model,
            num_hidden_layers=2,
            state_size=4,
            tie_word_embeddings=tied,
        )
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Where the base lies."""
    folder = tmp_path_factory.mktemp("base") / "model"
    _network().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(base, tmp_path_factory):
    """A function: settings -> adapter's folder and merged weights by name."""

    def made(safe=True, **settings):
        network = transformers.MambaForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            wrapped = peft.get_peft_model(network, config)
            with torch.no_grad():
                for p in wrapped.parameters():
                    if p.requires_grad:
                        p.add_(0.1 * torch.randn_like(p))
        folder = tmp_path_factory.mktemp("adapter") / "lora"
        # True and "auto" say so with a warning where the embedding is targeted
        wrapped.save_pretrained(
            folder, safe_serialization=safe, save_embedding_layers=False
        )
        return folder, wrapped

    return made


def _layout(base):
    import lyapunov

    return lyapunov.load(base).layout


def _merged(base, folder):
    return adapted(_layout(base), open_adapter(folder))


NAMES = {
    "norm": "norm.weight",
    "in_proj": "mixer.in_proj.weight",
    "conv_weight": "mixer.conv1d.weight",
    "conv_bias": "mixer.conv1d.bias",
    "x_proj": "mixer.x_proj.weight",
    "dt_proj": "mixer.dt_proj.weight",
    "dt_bias": "mixer.dt_proj.bias",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
    "out_proj": "mixer.out_proj.weight",
}


def _hold_to_peft(base, folder, wrapped):
    """Every parameter against merge_and_unload; the count of those that changed."""
    layout, before = _merged(base, folder), _layout(base)
    state = {
        k: v.detach().double().numpy()
        for k, v in wrapped.merge_and_unload().state_dict().items()
    }
    changed = 0
    for i in range(2):
        plain = before.layer(i)
        for key, array in layout.layer(i).items():
            expected = state[f"backbone.layers.{i}.{NAMES[key]}"]
            expected = expected[:, 0] if key == "conv_weight" else expected
            # fp32: products and sums of at most 8 terms, the scaling, the addition
            size = np.abs(expected) + np.abs(plain[key])
            size = size + (np.abs(expected - plain[key])).max() * 8
            assert_within(array, expected, gamma(12, 2.0**-24) * size, key)
            changed += not np.array_equal(array, plain[key])
    norm = layout.final_norm()
    assert_within(norm, state["backbone.norm_f.weight"], 0.0, "norm_f")
    return changed


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"r": 4, "lora_alpha": 16, "target_modules": TARGETS}, 6),
        ({"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": TARGETS}, 6),
        (
            {
                "r": 2,
                "lora_alpha": 5,
                "target_modules": TARGETS,
                "rank_pattern": {"x_proj": 3, "layers.1.mixer.in_proj": 8},
                "alpha_pattern": {r"layers\.\d+\.mixer\.dt_proj": 7},
            },
            6,
        ),
        ({"r": 4, "target_modules": ["in_proj"], "bias": "all"}, 6),
        ({"r": 4, "target_modules": ["dt_proj"], "bias": "lora_only"}, 4),
        ({"r": 4, "target_modules": ["dt_proj"], "lora_bias": True}, 4),
        ({"r": 4, "target_modules": ["in_proj"], "layers_to_transform": [1]}, 1),
        ({"r": 2, "target_modules": ["in_proj"], "modules_to_save": ["x_proj"]}, 4),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else str(x),
)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
# PEFT takes the bias of a low-rank part for a tensor that was not gathered
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")
def test_merged_is_what_peft_merges(base, make, settings, count, safe):
    folder, wrapped = make(safe=safe, **settings)
    assert is_adapter(folder)
    assert _hold_to_peft(base, folder, wrapped) == count


def test_embedding_and_head(base, make):
    """As served: the low-rank part of the embedding leaves a tied head alone."""
    folder, wrapped = make(r=4, lora_alpha=8, target_modules=["embeddings"])
    layout, before = _merged(base, folder), _layout(base)
    module = wrapped.base_model.model.backbone.embeddings
    rows = np.array([[3, 0], [39, 3]])
    with torch.no_grad():
        expected = module(torch.tensor(rows)).double().numpy()
    size = np.abs(expected).max() + np.abs(before.embedding(rows)).max()
    assert_within(layout.embedding(rows), expected, gamma(12, 2.0**-24) * size)
    assert not np.array_equal(layout.embedding(rows), before.embedding(rows))
    assert np.array_equal(layout.head(5, 9), before.head(5, 9))


def test_low_rank_head(tmp_path):
    """An untied head with a low-rank part, rows at a time."""
    folder = tmp_path / "model"
    _network(tied=False).save_pretrained(folder)
    network = transformers.MambaForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    wrapped = peft.get_peft_model(network, config)
    wrapped.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    layout = _merged(folder, tmp_path / "lora")
    head = wrapped.merge_and_unload().lm_head.weight.detach().double().numpy()
    own = _layout(folder).head(0, 40)
    size = np.abs(head) + np.abs(own) + 8 * np.abs(head - own).max()
    assert_within(layout.head(7, 40), head[7:], gamma(12, 2.0**-24) * size[7:])


def test_modules_of_a_layer_that_was_trained_whole(base, make):
    """`modules_to_save` of the whole mixer brings A_log, D and the convolution."""
    folder, wrapped = make(
        r=2, target_modules=["embeddings"], modules_to_save=["mixer"]
    )
    layout = _merged(base, folder)
    state = wrapped.merge_and_unload().state_dict()
    for i in range(2):
        for key, array in layout.layer(i).items():
            if key != "norm":
                found = state[f"backbone.layers.{i}.{NAMES[key]}"].double().numpy()
                found = found[:, 0] if key == "conv_weight" else found
                assert np.array_equal(array, found), key


@pytest.fixture(scope="module")
def plain(make):
    """An ordinary adapter's folder."""
    return make(r=4, target_modules=TARGETS)[0]


def _refused(folder, base):
    with pytest.raises(LyapunovError) as caught:
        _merged(base, folder)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"peft_type": None}, "only LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"target_parameters": ["A_log"]}, "bare parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's own weights"),
        ({"r": 5}, "rank 4 and 4; adapter_config.json says 5"),
        ({"r": 0}, "says r = 0"),
        ({"r": "4"}, "says r = 4"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"rank_pattern": ["in_proj"]}, "not an object"),
        ({"rank_pattern": {"(a*)*b": 4}}, "expression"),
        ({"rank_pattern": {"(": 4}}, "expression"),
        ({"rank_pattern": {"a" * 300: 4}}, "expression"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_other_settings_are_refused(plain, base, tmp_path, change, says):
    folder = shutil.copytree(plain, tmp_path / "lora")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    assert says in _refused(folder, base)


def test_adapter_of_a_wider_base(plain, tmp_path):
    wide = tmp_path / "wide"
    _network(d_model=24).save_pretrained(wide)
    message = _refused(plain, wide)
    assert "makes a change of shape (32, 1); the base's is (48, 2)" in message


def _rewritten(plain, tmp_path, change):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(plain, tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file)
    return folder


FIRST = "base_model.model.backbone.layers.0.mixer.in_proj."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.update({FIRST.replace("rs.0", "rs.9") + "lora_A.weight": 0}),
            "which the base does not have",
        ),
        (
            lambda t: t.update({"base_model.model.model.q_proj.lora_A.weight": 0}),
            "q_proj.lora_A.weight, which the base",
        ),
        (
            lambda t: t.update({FIRST + "lora_magnitude_vector": 0}),
            "which the base does not have",
        ),
        (lambda t: t.pop(FIRST + "lora_B.weight"), "no lora_B for"),
        (lambda t: t.pop(FIRST + "lora_A.weight"), "no lora_A for"),
        (
            lambda t: t.update(
                {FIRST + "lora_A.weight": t[FIRST + "lora_A.weight"][None]}
            ),
            "no linear layer",
        ),
        (
            lambda t: t.update({FIRST + "weight": np.zeros((3, 3), np.float32)}),
            "has shape (3, 3)",
        ),
        (
            lambda t: t.update({FIRST + "lora_A.weight": np.zeros((4, 16), np.int32)}),
            "stored as int32",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
    ids=["layer", "family", "dora", "B", "A", "conv", "value", "dtype", "empty"],
)
def test_tensors_that_do_not_fit_are_refused(plain, base, tmp_path, change, says):
    def changed(tensors):
        change(tensors)
        for name, array in tensors.items():
            tensors[name] = (
                np.zeros((4, 16), np.float32) if isinstance(array, int) else array
            )

    folder = _rewritten(plain, tmp_path, changed)
    assert says in _refused(folder, base)


def test_an_adapter_that_is_not_finite_is_refused(plain, base, tmp_path):
    def poison(tensors):
        tensors[FIRST + "lora_A.weight"][0, 0] = np.nan

    folder = _rewritten(plain, tmp_path, poison)
    layout = _merged(base, folder)
    with pytest.raises(LyapunovError, match="1 NaN"):
        layout.layer(0)


def test_missing_weights_and_other_folders(plain, base, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in _refused(folder, base)
    # some adapters come with their base's settings, none with its weights
    shutil.copy(base / "config.json", folder)
    assert is_adapter(folder)
    assert not is_adapter(base)
    assert not is_adapter(tmp_path / "nowhere")
    assert not is_adapter("\0")


def test_a_wrong_scaling_would_be_seen(base, make):
    """alpha / r in place of alpha / sqrt(r) fails the comparison with PEFT."""
    folder, wrapped = make(
        r=4, lora_alpha=3, use_rslora=True, target_modules=["in_proj"]
    )
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"use_rslora": False}))
    with pytest.raises(AssertionError, match="in_proj"):
        _hold_to_peft(base, folder, wrapped)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*did not match any targeted module")
@pytest.mark.parametrize("family", ["kimi_linear", "qwen3_next", "bailing_hybrid"])
def test_modules_of_delta_rules_are_found_by_transformers_names(family, tmp_path):
    """Assert every linear module of mixers, attention, and MLPs against PEFT's merge,
    of a folder and of the module in memory; files name some of them otherwise."""
    import lyapunov
    from oracles.checkpoints.configurations import CONFIGURATIONS
    from oracles.checkpoints.transformers import make, save

    settings = next(iter(CONFIGURATIONS[family].values()))
    save(make(family, **settings), tmp_path / "base")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    targets = sorted(
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and ".layers." in name
        # of Qwen's experts PEFT makes LoRA on bare parameters, which is refused
        and not (family == "qwen3_next" and "mlp" in name)
    )
    assert any("attn" in name for name in targets)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
    wrapped = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.normal_(0.0, 0.1)
    pairs = [p for name, p in wrapped.named_parameters() if "lora_" in name]
    # two products an entry, times alpha / r
    moved = 2 * 8 / 2 * max(float(p.detach().abs().max()) for p in pairs) ** 2
    wrapped.save_pretrained(tmp_path / "lora")
    live = lyapunov.from_torch(wrapped)
    base = lyapunov.load(tmp_path / "base")
    folder = adapted(base.layout, open_adapter(tmp_path / "lora"))
    found = [
        [layout.layer(i) for i in range(len(base.sublayers))]
        for layout in (live.layout, folder)
    ]
    save(wrapped.merge_and_unload(), tmp_path / "merged")
    merged = lyapunov.load(tmp_path / "merged").layout
    for i in range(len(base.sublayers)):
        for name, wanted in merged.layer(i).items():
            wanted = np.asarray(wanted, np.float64)
            error = gamma(5, 2.0**-24) * (abs(wanted) + moved)
            for layers in found:
                assert_within(layers[i][name], wanted, error)


@pytest.mark.filterwarnings("ignore:.*did not match any targeted module")
def test_bare_parameters_of_experts_in_memory_are_refused():
    """Assert the reason, where PEFT turns modules' names into parameters of experts,
    before a tensor is missed."""
    import lyapunov
    from oracles.checkpoints.configurations import CONFIGURATIONS
    from oracles.checkpoints.transformers import make

    network = make("qwen3_next", **next(iter(CONFIGURATIONS["qwen3_next"].values())))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["gate_proj", "up_proj"]
    )
    wrapped = peft.get_peft_model(network, config)
    with pytest.raises(LyapunovError, match="LoRA on bare parameters"):
        lyapunov.from_torch(wrapped)
