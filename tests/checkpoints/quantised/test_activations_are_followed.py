"""Executions that quantise activations as a checkpoint's configuration has them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.formats import FP64, OperandFormat
from lyapunov.implementations import Emulated
from lyapunov.implementations._compiled import compiled
from lyapunov.implementations._constants import with_measured
from oracles.checkpoints.quantised_models import stored_arrays

from .as_configured import KEPT, TOKENS, by_number, far_apart, followed


torch = pytest.importorskip("torch")

SITES = {
    "mamba2": {"in_operand": ("in_proj",), "out_operand": ("out_proj",)},
    "attention": {
        "in_operand": ("q_proj", "k_proj", "v_proj"),
        "read_operand": ("o_proj",),
    },
    "mlp": {"up_operand": ("up_proj",), "down_operand": ("down_proj",)},
}
"""By kind what reads what in Nemotron-H: written here once more, from its modules."""


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def traced(model, run, judged=None):
    """Of each sublayer its place, the record of a run, and what bounds are given."""
    judged = run if judged is None else judged
    records = Emulated(run).trace(model, TOKENS)
    record: Any
    for place, record in zip(model.sublayers, records, strict=False):
        yield place, record, arguments(model, place, record, judged.at(place))


def arguments(model, place, record, own):
    held = with_operator_norms(model.parameters(place.layer, own))
    original = model.parameters(place.layer)
    return own, place.flow, record, held, original, model.start(held)


def t0(given, stored=None):
    own, flow, record, held, _, start = given
    if stored is not None:
        record = record._replace(stored=record.stored | stored)
    return operation_bounds(own, flow, record, held, start)


def above(comparison):
    return int(np.sum(comparison.violations))


def ratio(comparison):
    measured = np.sum(comparison.measured_square)
    return float(np.sqrt(np.sum(comparison.bound_square) / measured))


# ---- which sublayer has which format


def wanted_names(model, folder, form, last=".input_scale"):
    """Of each sublayer by site the name of its format, from the file's own tensors."""
    tensors = stored_arrays(folder)
    for place, module in zip(model.sublayers, model.layout.modules, strict=True):
        names = {}
        for site, matrices in SITES[place.kind].items():
            here = [f"{module}.{matrix}" for matrix in matrices]
            if f"{here[0]}.weight_scale" not in tensors:
                continue
            scales = [tensors[f"{m}{last}"] for m in here if f"{m}{last}" in tensors]
            largest = max((float(x.reshape(-1)[0]) for x in scales), default=None)
            names[site] = form if largest is None else f"{form}={largest!r}"
        yield place, names


FORMS = {
    "modelopt-fp8": "fp8_e4m3-static",
    "ct-fp8-static": "fp8_e4m3-static",
    "ct-fp8-channel": "fp8_e4m3-token",
    "ct-int8": "int8-token",
}


@pytest.mark.parametrize("kept", [(), KEPT])
@pytest.mark.parametrize("recipe", FORMS)
def test_each_sublayer_has_the_formats_of_its_own_modules(made, recipe, kept):
    """Assert sites and parameters, for layers that are kept wholly, in part, or not."""
    folder = made("nemotron_h", recipe, by_number, kept)
    model = lyapunov.load(folder)
    execution = followed(model)
    partly = 0
    for place, names in wanted_names(model, folder, FORMS[recipe]):
        own = execution.at(place)
        of_operands = {
            s: f for s, f in own.sites.items() if isinstance(f, OperandFormat)
        }
        assert {site: fmt.name for site, fmt in of_operands.items()} == names
        partly += 0 < len(names) < len(SITES[place.kind])
        if place.kind == "mamba2":
            held = FP64 if "out_operand" in names else own.parameters["default"]
            assert own.parameter_format("in_proj") == FP64
            assert own.parameter_format("out_proj") == held
    assert partly == (2 if kept else 0)


def test_sublayers_alike_run_one_program(made):
    """Assert that scales that are fixed are numbers, of one shape, and that sublayers
    that are asked for the same have one execution."""
    model = lyapunov.load(made("mamba2", "modelopt-fp8", by_number))
    execution = followed(model)
    one, other = (execution.at(place) for place in model.sublayers)
    assert one.sites["in_operand"] != other.sites["in_operand"]
    assert len(execution.every("mamba2")) == 1
    told = lambda own: jax.tree.map(jax.typeof, own.site_numbers())
    assert jax.tree.structure(told(one)) == jax.tree.structure(told(other))
    assert jax.tree.leaves(told(one)) == jax.tree.leaves(told(other))
    model = lyapunov.load(made("mamba2", "ct-int8"))
    execution = followed(model)
    one, other = (execution.at(place) for place in model.sublayers)
    assert one is other


def test_layers_change_with_the_execution_they_are_of(made):
    """Assert it of all that makes another execution of one, and that a kind whose
    sublayers differ is no answer."""
    model = lyapunov.load(made("mamba2", "modelopt-fp8", by_number))
    execution = followed(model)
    with pytest.raises(UsageError, match="not all executed alike") as caught:
        execution.of("mamba2")
    assert caught.value.hint
    assert execution.in_windows(8).layers[1].form.period == 8
    assert all(one.compiled for one in compiled(execution).layers.values())
    measured = with_measured(execution).layers[0]
    assert len(measured.assumptions) == len(execution.layers[0].assumptions) + 1
    counted = dataclasses.replace(
        execution.layers[1], form=dataclasses.replace(execution.form, grid=0)
    )
    begun = dataclasses.replace(execution, layers={1: counted}).begun(5)
    assert begun.layers[1].form.grid == 5
    packed = dataclasses.replace(
        execution.layers[1], form=dataclasses.replace(execution.form, in_stream=True)
    )
    behind = dataclasses.replace(execution, layers={1: packed}).behind(5)
    assert behind.layers[1].form.grid == 5


# ---- bounds


@pytest.mark.parametrize(
    ("family", "recipe", "scale", "kept"),
    [
        ("nemotron_h", "modelopt-fp8", by_number, KEPT),
        ("mamba2", "ct-fp8-channel", None, ("layers.1.",)),
        *(
            pytest.param(family, recipe, scale, kept, marks=pytest.mark.slow)
            for family in ("mamba", "nemotron_h", "qwen3_next")
            for recipe, scale in (
                ("ct-fp8-static", by_number),
                ("ct-nvfp4-both", None),
                ("modelopt-nvfp4", None),
                ("fp8-blocks", None),
                ("ct-int8", None),
            )
            for kept in ((), ("layers.0.",))
        ),
    ],
)
def test_emulated_runs_hold_their_bounds(made, family, recipe, scale, kept):
    """Assert T0 and T1 of every sublayer, that what is read is bounded closely, and
    that T1 says something."""
    model = lyapunov.load(made(family, recipe, scale, kept))
    quantised = 0
    for place, record, given in traced(model, followed(model)):
        found = t0(given)
        assert not any(above(one) for one in found.values())
        sites = {s for s, f in given[0].sites.items() if isinstance(f, OperandFormat)}
        assert sites <= set(record.stored)
        for site in sites:
            assert ratio(found[site]) < 1.2, (place.layer, site)
        bound = sublayer_bound(*given).comparison
        assert not above(bound)
        assert np.isfinite(bound.bound_square).all()
        assert ratio(bound) < 400
        quantised += bool(sites)
    assert quantised


def test_another_layers_format_is_found(made):
    """Assert it of a run with the two layers' scales exchanged."""
    model = lyapunov.load(made("mamba2", "modelopt-fp8", far_apart))
    right = followed(model)
    wrong = dataclasses.replace(right, layers={0: right.layers[1], 1: right.layers[0]})
    found = [t0(given)["in_operand"] for _, _, given in traced(model, wrong, right)]
    assert above(found[0]) > found[0].violations.size
    found = [t0(given)["in_operand"] for _, _, given in traced(model, right)]
    assert not any(map(above, found))


# ---- static scales by torch


@pytest.fixture(scope="module")
def clipped(made):
    """Both sublayers of a Mamba-2 with scales beyond which much is clipped."""
    with jax.enable_x64(True):
        folder = made("mamba2", "modelopt-fp8", far_apart)
        model = lyapunov.load(folder)
        return model, stored_arrays(folder), list(traced(model, followed(model)))


def scale_of(model, tensors, place):
    name = f"{model.layout.modules[place.layer]}.in_proj.input_scale"
    return torch.tensor(float(tensors[name]), dtype=torch.float32)


def by_torch(x, scale, inverse):
    """`static_scaled_fp8_quant` of vLLM by torch: fp32, clipped, e4m3, read back."""
    x = torch.tensor(np.asarray(x), dtype=torch.float32)
    quotient = x * (1 / scale) if inverse else x / scale
    codes = quotient.clamp(-448, 448).to(torch.float8_e4m3fn)
    return (codes.double() * scale.double()).numpy()


def test_static_scales_read_what_torch_reads(clipped):
    """Assert every number of the run, clipped ones included, and that the bound holds
    for a kernel that multiplies by the inverse."""
    model, tensors, runs = clipped
    shares = []
    for place, record, given in runs:
        scale = scale_of(model, tensors, place)
        made = by_torch(record.stored["norm"], scale, inverse=False)
        np.testing.assert_array_equal(made, record.stored["in_operand"])
        beyond = np.abs(np.asarray(record.stored["norm"])) > 448 * float(scale)
        shares.append(np.mean(beyond))
        other = by_torch(record.stored["norm"], scale, inverse=True)
        found = t0(given, {"in_operand": other})["in_operand"]
        assert above(found) == 0
        assert ratio(found) < 1.1
    assert shares[1] > 0.1


def unclipped(own):
    """The same execution whose codes never end: its bounds have nothing of clipping."""
    fmt = own.sites["in_operand"]
    wide = dataclasses.replace(fmt, largest=1e9, overflow=1e9)
    return dataclasses.replace(own, sites=own.sites | {"in_operand": wide})


def test_bounds_without_clipping_do_not_hold(clipped):
    """Assert that T0 and T1 of such a format are broken where much is clipped."""
    model, _, runs = clipped
    place, record, given = runs[1]
    assert not above(t0(given)["in_operand"])
    assert not above(sublayer_bound(*given).comparison)
    mutant = arguments(model, place, record, unclipped(given[0]))
    assert above(t0(mutant)["in_operand"]) > 0
    assert above(sublayer_bound(*mutant).comparison) > 0
