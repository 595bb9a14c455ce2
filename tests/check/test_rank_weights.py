"""Which matrices should stay in 16 bits: ranked, measured and kept as transformers
measures them."""

import json
import re
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import lyapunov
from lyapunov._errors import LyapunovError, UsageError
from lyapunov.formats import dequantised, stored_bytes
from lyapunov.formats._weight_table import WEIGHT_FORMATS
from lyapunov.models._weight_units import weight_units
from lyapunov.questions._kept_weights import chosen_to_keep
from lyapunov.report import read_report
from lyapunov.sublayers.groups import rounded_group
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.quantised_models import RECIPES, quantise_folder
from oracles.checkpoints.transformers import make, save

from ..families.quick import QUICK
from ..helpers import not_none


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS = np.random.default_rng(1).integers(0, 50, (1, 40))
SMALL: dict[str, Any] = {"n_probes": 8, "measured": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A family's network and where it was saved, made once."""
    found = {}

    def give(family, name=None):
        name = name or next(iter(CONFIGURATIONS[family]))
        if (family, name) not in found:
            network = make(family, **CONFIGURATIONS[family][name])
            folder = save(network, tmp_path_factory.mktemp(family) / "model")
            found[family, name] = network, folder
        return found[family, name]

    return give


@pytest.fixture(scope="module")
def ranked(saved):
    """A ranking of a Mamba-2 whose first out_proj has outliers, and its network.

    A column of 8 where the others are near 1/8: under one scale a row, of whose codes
    there are 255, the others' errors are of a quarter of their size, and not a 300th.
    """
    network, folder = saved("mamba2", "one group")
    with torch.no_grad():
        weights = network.get_submodule("backbone.layers.0.mixer.out_proj").weight
        weights[:, 5] = 8.0
    save(network, folder.parent / "planted")
    model = lyapunov.load(folder.parent / "planted")
    return lyapunov.rank_weights(model, TOKENS, format="int8-row", **SMALL), network


def test_a_planted_outlier_ranks_first_and_is_kept(ranked):
    found, _ = ranked
    assert found.matrices[0].module == "backbone.layers.0.mixer.out_proj"
    assert found.matrices[0].kept
    assert found.sublayers[0].layer == 0
    assert [row.rank for row in found.matrices] == list(
        range(1, len(found.matrices) + 1)
    )
    assert not_none(found.kept.given_back) > 0.9
    assert found.kept.share > found.kept.limit  # the first is larger than a tenth


def kl(before, after):
    p, q = log_softmax(before, -1), log_softmax(after, -1)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def logits(network):
    with torch.no_grad():
        return network(torch.tensor(TOKENS)).logits[0].double().numpy()


def test_measured_is_what_transformers_measures(ranked):
    """Assert it of each matrix that was run alone, of all, and of all but the kept.

    transformers runs in fp32: errors of 1e-5 of logits of size 1 move a divergence k
    by some sqrt(2 k) 1e-5.
    """
    found, network = ranked
    before = logits(network)
    weights = dict(network.named_parameters())
    original = {name: weight.clone() for name, weight in weights.items()}

    def with_quantised(modules):
        with torch.no_grad():
            for module in modules:
                name = f"{module}.weight"
                held = dequantised(original[name].numpy(), "int8-row")
                weights[name].copy_(torch.tensor(held))
            after = logits(network)
            for name, weight in original.items():
                weights[name].copy_(weight)
        return kl(before, after)

    quantised = [row.module for row in found.matrices if row.quantised]
    kept = set(found.kept.modules)
    cases = [([row.module], row.measured) for row in found.matrices if row.measured] + [
        (quantised, found.kept.measured_all),
        ([name for name in quantised if name not in kept], found.kept.measured),
    ]
    assert len(cases) == 4
    for modules, measured in cases:
        theirs = with_quantised(modules)
        assert abs(measured.kl_mean - theirs) <= 1e-4 * (theirs + theirs**0.5), modules


def test_what_a_format_holds_as_it_is_moves_nothing(saved, tmp_path):
    """Assert zeros for bf16 of weights that are bf16, and that nothing is kept."""
    network, _ = saved("mamba2", "one group")
    folder = save(network.to(torch.bfloat16).float(), tmp_path / "in_bf16")
    found = lyapunov.rank_weights(folder, TOKENS, format="bf16", **SMALL)
    assert all(row.kl == row.predicted_stderr == 0 for row in found.matrices)
    assert all(row.measured is None for row in found.matrices)
    assert found.unmoved == len(found.matrices)
    assert found.kept.modules == []
    assert not_none(found.kept.measured_all).kl_mean == 0
    assert found.kept.given_back is None
    assert "moves nothing" in str(found)


def test_a_text_of_two_tokens_is_enough(saved):
    _, folder = saved("mamba2", "one group")
    found = lyapunov.rank_weights(folder, [1, 2], format="int4", **SMALL)
    assert found.tokens.length == 2
    assert np.isfinite([row.kl for row in found.matrices]).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"format": "int3"}, "cannot be rounded to 'int3'"),
        ({"format": "int8:attention"}, "no weights of the group 'attention'"),
        ({"format": "int8:A_log"}, "has none"),
        ({"format": None}, "cannot be rounded"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": True}, "keep is True"),
        ({"measured": -1}, "measured is -1"),
        ({"n_probes": 0}, "n_probes is 0"),
        ({"tokens": [1]}, "token"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_a_hint(saved, given, said):
    _, folder = saved("mamba2", "one group")
    with pytest.raises(LyapunovError, match=re.escape(said)) as caught:
        lyapunov.rank_weights(folder, **{"tokens": [1, 2], **given})
    assert caught.value.hint


def test_a_live_module_is_ranked_as_its_checkpoint(saved):
    network, folder = saved("bamba")
    given: Any = {"format": "int8", "n_probes": 4, "measured": 1}
    live, read = (
        lyapunov.rank_weights(one, TOKENS, **given) for one in (network, folder)
    )
    assert live.matrices == read.matrices
    assert live.kept == read.kept


def test_a_model_without_a_head_is_refused(saved):
    network, _ = saved("mamba2", "one group")
    with pytest.raises(UsageError) as caught:
        lyapunov.rank_weights(network.backbone, TOKENS, format="int8")
    assert caught.value.hint


# ---- units, and the lists of them


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_every_matrix_of_every_family_is_a_unit_with_its_module(saved, family, name):
    """Assert that units are the file's matrices but for convolutions and what a
    recurrence holds, each in one, under the file's names and sizes."""
    from safetensors.numpy import load_file

    _, folder = saved(family, name)
    layout = lyapunov.load(folder).layout
    units = weight_units(layout, rounded_group("int8"))
    stored = load_file(folder / "model.safetensors")
    weights = {n.removesuffix(".weight"): w for n, w in stored.items()}
    listed = [module for unit in units for module in unit.modules]
    assert len(listed) == len(set(listed))
    for unit in units:
        assert unit.size == sum(weights[name].size for name in unit.modules)
        assert unit.stored_bytes == 4 * unit.size
    matrices = {n for n, w in weights.items() if w.ndim > 1}
    others = {n for n in matrices - set(listed) if "conv" not in n.rpartition(".")[2]}
    assert {n.rpartition(".")[2] for n in others} <= NO_MATRICES, others
    assert any(unit.quantised for unit in units)
    around = {layout.names.embedding, layout.names.head}
    for unit in units:
        assert unit.quantised != bool(
            {f"{name}.weight" for name in unit.modules} & around
            or {name for _, name in unit.places} & {"router", "shared_router"}
        )


NO_MATRICES = {
    *("A_log", "D", "dt_proj_bias", "input_gate_bias", "recurrent_gate_bias"),
    *("time_mix_key", "time_mix_value", "time_mix_receptance"),
    *("diagonal_decay", "key_decay", "query_decay", "slope_rate"),
}
"""What is stored with several axes and multiplies nothing."""


def test_experts_and_shared_blocks_are_one_unit(saved):
    _, folder = saved("nemotron_h", next(iter(CONFIGURATIONS["nemotron_h"])))
    layout = lyapunov.load(folder).layout
    units = weight_units(layout, rounded_group("int8"))
    (experts,) = [u for u in units if ".experts." in u.name and "up_proj" in u.name][:1]
    assert len({layer for layer, _ in experts.places}) == 1
    _, folder = saved("zamba2")
    layout = lyapunov.load(folder).layout
    units = weight_units(layout, rounded_group("int8"))
    assert any(len({layer for layer, _ in u.places}) > 1 for u in units)
    total = sum(unit.size for unit in units)
    assert total <= layout.n_params


def test_lists_name_what_stays(saved):
    """Assert the head and routers in each, and a pattern for what has many names."""
    _, folder = saved("nemotron_h")
    found = lyapunov.rank_weights(folder, TOKENS, format="int4", keep=0.5, **SMALL)
    lists = found.kept.ignore
    assert set(lists) == {"ignore", "exclude_modules", "modules_to_not_convert"}
    alone = lists["modules_to_not_convert"]
    left = [row for row in found.matrices if row.kept or not row.quantised]
    wanted = {name for row in left for name in row.modules}
    wanted = {name for name in wanted if "embed" not in name}
    assert set(alone) == wanted
    assert "lm_head" in alone
    for name in alone:
        assert any(
            re.match(entry[3:], name) if entry.startswith("re:") else entry == name
            for entry in lists["ignore"]
        )
    others = {n for row in found.matrices for n in row.modules} - set(alone)
    for entry in lists["ignore"]:
        if entry.startswith("re:"):
            assert not any(re.match(entry[3:], name) for name in others)


def test_what_servers_hold_together_is_kept_together(saved):
    """Assert it of queries, keys and values of which one alone would be kept."""
    _, folder = saved("llama")
    units = weight_units(lyapunov.load(folder).layout, rounded_group("int8"))
    first = next(i for i, unit in enumerate(units) if unit.name.endswith("k_proj"))
    moves = lambda together: 1.0 if first in together else 1e-9
    kept = [units[i].name for i in chosen_to_keep(units, moves, 0.3)]
    front = units[first].name.removesuffix("k_proj")
    assert {f"{front}{name}_proj" for name in "qkv"} <= set(kept)
    assert chosen_to_keep(units, moves, 0.0) == []


BYTES = {
    "bf16": (16, (0, 0), 0), "fp16": (16, (0, 0), 0),
    "fp8_e4m3-unscaled": (8, (0, 0), 0), "fp8_e5m2-unscaled": (8, (0, 0), 0),
    "fp8_e4m3-tensor": (8, (0, 0), 4), "fp8_e5m2-tensor": (8, (0, 0), 4),
    "fp8_e4m3-row": (8, (1, 0), 4), "fp8_e5m2-row": (8, (1, 0), 4),
    "fp8_e4m3-block128": (8, (128, 128), 4), "fp8_e5m2-block128": (8, (128, 128), 4),
    "int8-row": (8, (1, 0), 4), "int8-group128": (8, (1, 128), 4),
    "int8-group32": (8, (1, 32), 4), "int4-row": (4, (1, 0), 4),
    "int4-group128": (4, (1, 128), 4), "int4-group32": (4, (1, 32), 4),
    "int8-block128": (8, (128, 128), 4), "int8_asym-row": (8, (1, 0), 5),
    "int8_asym-group128": (8, (1, 128), 5), "int8_asym-group32": (8, (1, 32), 5),
    "int4_asym-row": (4, (1, 0), 4.5), "int4_asym-group128": (4, (1, 128), 4.5),
    "int4_asym-group32": (4, (1, 32), 4.5), "fp4": (4, (1, 64), 4),
    "mxfp8": (8, (1, 32), 1), "nf4": (4, (1, 64), 4), "nvfp4": (4, (1, 16), 1),
    "mxfp4": (4, (1, 32), 1),
}  # fmt: skip
"""Bits of a code, rows and columns that share a scale, bytes of a scale, with its zero
point."""


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_of_codes_and_scales(name):
    """Assert them of a stack of matrices, by counting blocks one by one."""
    shape = (3, 130, 300)
    bits, (rows, columns), scale = BYTES[name]
    matrix = shape[1] * shape[2]
    rows, columns = rows or shape[1], columns or shape[2]
    if name in ("nf4", "fp4"):
        scales = -(-matrix // 64)
    else:
        scales = len(range(0, shape[1], rows)) * len(range(0, shape[2], columns))
    each = matrix * bits // 8 + scales * scale
    assert stored_bytes(shape, name) == 3 * each, "3 matrices of whole bytes"


@pytest.mark.parametrize("recipe", ["ct-fp8-channel", "ct-int8"])
def test_quantised_checkpoints_are_ranked_as_others(recipe, tmp_path):
    """Assert it of a format that they are not in, and that their own moves little."""
    settings = CONFIGURATIONS["mamba2"]["one group"]
    plain = save(make("mamba2", **settings), tmp_path / "plain", "bfloat16")
    wanted = lambda name: name.endswith(("in_proj.weight", "out_proj.weight"))
    folder = tmp_path / "quantised"
    quantise_folder(plain, folder, RECIPES[recipe], wanted)
    found = lyapunov.rank_weights(folder, TOKENS, format="nvfp4", **SMALL)
    assert all(row.kl > 0 for row in found.matrices)
    assert {row.module for row in found.matrices if row.quantised} == {
        f"backbone.layers.{i}.mixer.{name}_proj"
        for i in (0, 1)
        for name in ("in", "out")
    }


# ---- as it is shown


def test_a_ranking_is_shown_in_every_form_and_read_back(ranked, tmp_path):
    found, _ = ranked
    for suffix in (".json", ".md", ".html", ".tex", ".csv", ".svg"):
        (written,) = found.save(tmp_path / f"ranking{suffix}")
        assert written.stat().st_size > 0
    again = read_report(tmp_path / "ranking.json")
    assert again == found
    document = json.loads((tmp_path / "ranking.json").read_text())
    assert document["kind"] == "ranking"
    page = (tmp_path / "ranking.html").read_text()
    text = str(found)
    for shown in (page, (tmp_path / "ranking.md").read_text(), text):
        assert "layers.0.mixer.out_proj" in shown
        assert "lm_head" in shown
    rows = (tmp_path / "ranking.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.matrices)
    assert len(found.figures()) == 1


def test_every_name_of_a_format_is_one_of_a_ranking():
    assert {str(rounded_group(name)).partition(":")[0] for name in WEIGHT_FORMATS} == (
        set(BYTES)
    )
