"""Activations quantised in front of products: emulated, bounded, predicted, refused."""

from typing import Any

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.implementations import Emulated
from lyapunov.implementations._quantised_activations import (
    OPERANDS,
    with_quantised_activations,
)
from lyapunov.models import Model
from lyapunov.models._rounded_layout import rounded_layout
from lyapunov.sublayers import KINDS
from lyapunov.sublayers.groups import rounded_group
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..helpers import not_none


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS = np.random.default_rng(2).integers(0, 50, (1, 24))
FORMATS = ["fp8_e4m3-token", "int8-token", "fp8_e4m3-static=0.004", "nvfp4=500"]
FAMILIES = [
    *("jamba", "mamba2", "bamba", "granitemoehybrid", "qwen3_next", "kimi_linear"),
    *("nemotron_h", "falcon_h1"),
]


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    found = {}

    def give(family):
        if family not in found:
            named = CONFIGURATIONS[family]
            network = make(family, **next(iter(named.values())))
            found[family] = save(network, tmp_path_factory.mktemp(family) / "model")
        return lyapunov.load(found[family])

    return give


def execution_of(model, name, precision="bf16"):
    (found,) = lyapunov.executions_for(
        model.config, [precision], architecture=model.layout.architecture
    )
    return with_quantised_activations(found, model.config, name)


def traced(model, execution):
    """Of each sublayer: its place, the record, and what bounds are given."""
    records = Emulated(execution).trace(model, TOKENS % model.config.vocab_size)
    record: Any
    for place, record in zip(model.sublayers, records, strict=False):
        own = execution.of(place.kind)
        held = with_operator_norms(model.parameters(place.layer, own))
        original = model.parameters(place.layer)
        yield (
            place,
            record,
            (own, place.flow, record, held, original, model.start(held)),
        )


def t0(arguments, stored=None):
    own, flow, record, held, _, start = arguments
    if stored is not None:
        record = record._replace(stored=record.stored | stored)
    return operation_bounds(own, flow, record, held, start)


def above(comparison):
    return int(np.sum(comparison.violations))


def ratio(comparison):
    measured = np.sum(comparison.measured_square)
    return float(np.sqrt(np.sum(comparison.bound_square) / measured))


QUICK = ("mamba2", "jamba", "nemotron_h")
"""Both Mambas, attention, MLPs and experts between them."""


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(
            family,
            name,
            marks=[pytest.mark.slow] * (name != FORMATS[0] or family not in QUICK),
        )
        for name in FORMATS
        for family in FAMILIES
    ],
)
def test_emulated_runs_hold_their_bounds(saved, family, name):
    """Assert T0 and T1 of every sublayer, that what is read is bounded closely, and
    that every site of the kind is stored."""
    model = saved(family)
    for place, record, arguments in traced(model, execution_of(model, name)):
        sites = {site for site in OPERANDS[place.kind] if site in record.stored}
        sizes = model.config.sublayers[place.layer]
        wanted = set(OPERANDS[place.kind])
        if place.kind == "experts" and sizes.shared is None:
            wanted -= {"up_operand", "down_operand"}
        assert sites == wanted
        found = t0(arguments)
        assert not any(above(one) for one in found.values())
        for site in sites:
            assert ratio(found[site]) < 1.1, site
        bound = sublayer_bound(*arguments).comparison
        assert not above(bound)
        assert np.isfinite(bound.bound_square).all()
        assert ratio(bound) < 400


# ---- the product by torch


def products(record, name, weights):
    """The projection as a W8A8 kernel makes it: integer or e4m3 codes multiplied and
    summed, times both scales in fp32, in bf16. Codes of rows by torch."""
    given = torch.tensor(np.asarray(record.stored["norm"][0]), dtype=torch.float32)
    codes, scale = name(given)
    w = torch.tensor(np.asarray(weights), dtype=torch.float32)
    own = 2 * w.abs().amax(-1, keepdim=True) / 255
    stored = (w / own).round().clamp(-128, 127)
    total = (codes.double() @ stored.double().T).float()
    y = total * scale.float() * own.T
    return y.bfloat16().double().numpy()[None]


def by_token(x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x * (1 / scale)).round().clamp(-127, 127), scale


def by_channel(x):
    codes, scale = by_token(x.T.contiguous())
    # a scale of a channel cannot be taken out of the sum: its mean over channels is
    return codes.T, scale.mean().expand(len(x), 1)


def by_half(x):
    codes, scale = by_token(x)
    return (codes / 2).round() * 2, scale


def unscaled(x):
    codes, scale = by_token(x)
    return codes, torch.ones_like(scale)


@pytest.fixture(scope="module")
def in_int8(saved):
    """A Mamba-2 whose matrices are int8 codes times a scale of each row."""
    with jax.enable_x64(True):
        base = saved("mamba2")
        layout = rounded_layout(base.layout, rounded_group("int8"))
        model = Model(layout, base.source)
        execution = execution_of(model, "int8-token")
        before = base.raw_parameters(0)["in_proj"]
        return model, next(iter(traced(model, execution))), before


def test_a_product_by_torch_holds_its_bound(in_int8):
    """Assert it of `xz` with the operand that torch read, closely."""
    _, (_, record, arguments), weights = in_int8
    codes, scale = by_token(
        torch.tensor(np.asarray(record.stored["norm"][0]), dtype=torch.float32)
    )
    read = (codes.double() * scale.double()).numpy()[None]
    made = products(record, by_token, weights)
    found = t0(arguments, {"in_operand": read, "xz": made})
    assert above(found["in_operand"]) == above(found["xz"]) == 0
    assert ratio(found["in_operand"]) < 1.1
    assert ratio(found["xz"]) < 1.5


@pytest.mark.parametrize("wrong", [by_channel, by_half, unscaled])
def test_mutants_of_the_product_are_found(in_int8, wrong):
    """Assert it of scales over the wrong axis, of codes of 7 bits, and of a scale that
    is left out, with the operand as it should have been."""
    _, (_, record, arguments), weights = in_int8
    made = products(record, wrong, weights)
    found = t0(arguments, {"xz": made})["xz"]
    assert above(found) > found.violations.size


def test_matrices_behind_are_held_as_they_are_stored(in_int8):
    """Assert that int8 codes times scales are not rounded to bf16 a second time."""
    model, (place, _, arguments), _ = in_int8
    own = arguments[0]
    p = model.parameters(place.layer, own)
    exact = model.parameters(place.layer)
    assert np.array_equal(p.in_proj.matrix, exact.in_proj.matrix)
    plain = lyapunov.executions_for(model.config, ["bf16"], architecture="mamba2")[0]
    rounded = model.parameters(place.layer, plain)
    assert not np.array_equal(rounded.in_proj.matrix, exact.in_proj.matrix)


# ---- a whole network by transformers


def read_in_fp8(module, given):
    """A product's input as codes of e4m3 under the token's scale, read back."""
    (x,) = given
    scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=1 / (448 * 512))
    codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (codes.to(x.dtype) * scale,)


PROJECTIONS = {
    *("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
}


@pytest.mark.parametrize("family", ["mamba2", "bamba"])
def test_a_network_of_transformers_reads_the_same(tmp_path, family):
    """Assert that the emulation follows a network whose projections read codes.

    Both run in fp32 and fall apart where a quotient is next to a tie, and from there on
    more and more: until then, over the first tokens, they are as near as fp32 is.
    """
    network = make(family, **next(iter(CONFIGURATIONS[family].values())))
    model = lyapunov.load(save(network, tmp_path / "model"))
    with torch.no_grad():
        before = network(torch.tensor(TOKENS)).logits[0].double().numpy()
        for name, module in network.named_modules():
            if name.rpartition(".")[2] in PROJECTIONS:
                module.register_forward_pre_hook(read_in_fp8)
        theirs = network(torch.tensor(TOKENS)).logits[0].double().numpy()
    execution = execution_of(model, "fp8_e4m3-token", "fp32")
    head: Any
    *_, head = Emulated(execution).trace(model, TOKENS)
    ours = np.asarray(head.logits(0, model.config.vocab_size))[0]
    moved = np.linalg.norm(theirs - before, axis=-1)
    assert np.all(moved > 1e-2 * np.linalg.norm(before, axis=-1))
    ratio = np.linalg.norm(ours - theirs, axis=-1) / moved
    assert np.all(ratio[:4] < 0.01)
    assert np.all(ratio < 1)


# ---- a check


def test_a_check_predicts_what_it_measures(saved):
    """Assert no violation, and T3 beside the measured divergence."""
    report = lyapunov.check(
        saved("mamba2"),
        np.random.default_rng(4).integers(0, 50, (2, 96)),
        precisions="bf16",
        quantise_activations="int8-token",
        bounds=False,
    )
    (found,) = report.precisions
    assert "int8-token" in found.execution
    output = found.output
    assert output.sigma_t3 is not None
    assert not_none(output.measured_rel_l2) < 3 * output.sigma_t3
    assert not_none(output.measured_rel_l2) > output.sigma_t3 / 3
    assert any("int8 with one fp32 scale a token" in x for x in report.assumptions)
    assert report.settings["quantise_activations"] == "int8-token"


def test_a_scale_that_clips_is_told(saved):
    """Assert LYA025 of a scale that is too small, and not of one that is not."""
    for name, told in (("fp8_e4m3-static=0.0005", True), ("fp8_e4m3-static=1", False)):
        report = lyapunov.check(
            saved("mamba2"),
            TOKENS,
            precisions="bf16",
            effort="quick",
            quantise_activations=name,
        )
        found = [f for f in report.findings if f.code == "LYA025"]
        assert bool(found) == told
        rows = report.precisions[0].layers
        assert all(set(row.clipped or {}) == set(OPERANDS["mamba2"]) for row in rows)
        if told:
            assert any(not one.hint for one in found)
            assert all("clipped" in one.message for one in found)


# ---- what is not declared


def test_every_kind_is_declared_or_refused():
    """Assert that sites are those of the kind, in parameters that it has."""
    for kind, read in OPERANDS.items():
        for site, names in read.items():
            assert site in KINDS[kind].sites
            assert set(names) <= set(KINDS[kind].weight_groups)
    stored = {
        site
        for kind in OPERANDS
        for site in KINDS[kind].sites
        if site in {s for of in OPERANDS.values() for s in of}
    }
    assert stored == {site for read in OPERANDS.values() for site in read}


@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("rwkv", {}, "nothing is declared"),
        ("mamba2", {"measure": "none", "precisions": []}, "are emulated"),
        ("mamba2", {"precisions": "bf16-amp"}, "under autocast"),
        ("mamba2", {"quantise_activations": "int4"}, "cannot be quantised"),
    ],
)
def test_what_is_not_declared_is_refused(saved, family, given, said):
    asked = {"precisions": "bf16", "quantise_activations": "int8-token"} | given
    with pytest.raises(UsageError, match=said) as caught:
        lyapunov.check(saved(family), TOKENS, **asked)
    assert caught.value.hint
