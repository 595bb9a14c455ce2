"""Executions that quantise activations as a checkpoint's configuration has them."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.formats import FP64, OperandFormat
from lyapunov.implementations import Emulated, executions_for
from lyapunov.implementations._compiled import compiled
from lyapunov.implementations._configured_activations import configured_activations
from lyapunov.implementations._constants import with_measured
from lyapunov.questions._activations import activation_lines, quantising
from lyapunov.questions._request import Request
from lyapunov.questions._settings import checked_settings
from oracles.checkpoints.quantised_models import (
    RECIPES,
    quantise_folder,
    stored_arrays,
    write_safetensors,
)

from ...helpers import not_none
from .conftest import is_quantised


torch = pytest.importorskip("torch")

TOKENS = np.arange(24)[None] % 64
SITES = {
    "mamba2": {"in_operand": ("in_proj",), "out_operand": ("out_proj",)},
    "attention": {
        "in_operand": ("q_proj", "k_proj", "v_proj"),
        "read_operand": ("o_proj",),
    },
    "mlp": {"up_operand": ("up_proj",), "down_operand": ("down_proj",)},
}
"""By kind what reads what in Nemotron-H: written here once more, from its modules."""
KEPT = ("layers.0.mixer.out_proj", "layers.1.mixer.o_proj", "layers.2.")
"""Of Nemotron-H: one matrix of two of a Mamba-2, one of attention, all of an MLP."""


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    """A function that gives a model as a recipe stores it, scales as a function of a
    module's name and number, and some modules left alone; each once."""
    found = {}

    def give(family, recipe, scale=None, kept=()):
        key = family, recipe, scale, kept
        if key not in found:
            folder = tmp_path_factory.mktemp("followed") / "model"
            wanted = lambda n: is_quantised(n) and not any(part in n for part in kept)
            quantise_folder(plain(family), folder, RECIPES[recipe], chosen=wanted)
            tensors = stored_arrays(folder)
            ends = (".input_scale", ".input_global_scale")
            for i, name in enumerate(n for n in tensors if n.endswith(ends)):
                if scale is not None:
                    tensors[name] = np.full_like(tensors[name], scale(name, i))
            write_safetensors(folder / "model.safetensors", tensors)
            keep(folder, [f"*{part.rstrip('.')}*" for part in kept])
            found[key] = folder
        return found[key]

    return give


def keep(folder, patterns):
    """Put modules on the list of what was to be left alone, whatever it is called."""
    for name in ("hf_quant_config.json", "config.json"):
        path = folder / name
        told = json.loads(path.read_text()) if path.exists() else {}
        for place in (told.get("quantization"), told.get("quantization_config")):
            for key in ("exclude_modules", "ignore", "modules_to_not_convert"):
                if place is not None and key in place:
                    place[key] = [*place[key], *patterns]
        if told:
            path.write_text(json.dumps(told))


def by_number(name, i):
    """Another one for each, of which values of a few units are clipped."""
    return 0.006 + 0.001 * i


def far_apart(name, i):
    """Of the second sublayer a fifth of that of the first."""
    return 0.002 if ".1." in name else 0.01


def followed(model, asked=None, precision="bf16"):
    bare = executions_for(
        model.config, [precision], architecture=model.layout.architecture
    )
    (found,) = quantising(bare, model.layout, "emulated", asked)
    return found


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


# ---- scales of modules that servers join


def test_of_joined_modules_the_largest_scale_is_taken(made):
    """Assert it of q, k and v and of experts, and that it is said."""
    folder = made("qwen3_next", "ct-fp8-static", by_number)
    model, tensors = lyapunov.load(folder), stored_arrays(folder)
    found = configured_activations(model.layout)
    assert not found.left
    for place, module in zip(model.sublayers, model.layout.modules, strict=True):
        reads = found.reads[place.layer]
        ends = {
            "attention": ("in_operand", ("q_proj", "k_proj", "v_proj")),
            "experts": ("expert_up_operand", ("gate_proj", "up_proj")),
        }.get(place.kind)
        if ends is None:
            continue
        site, names = ends
        own = [
            float(array.reshape(-1)[0])
            for name, array in tensors.items()
            if name.startswith(f"{module}.")
            and "shared" not in name
            and name.endswith(tuple(f"{one}.input_scale" for one in names))
        ]
        assert len(set(own)) > 1
        assert reads[site].format == f"fp8_e4m3-static={max(own)!r}"
    assert any("q_proj, k_proj, v_proj" in line for line in found.joined)
    assert all("largest is taken for all" in line for line in found.joined)
    assert set(found.joined) <= set(followed(model).assumptions)


def test_of_experts_nvfp4_has_the_smallest(made):
    """Assert it of compressed-tensors, whose numbers are inverses: vLLM takes them
    first and the largest then; of modules that it joins before, the largest."""
    folder = made("qwen3_next", "ct-nvfp4-both", lambda name, i: 300.0 + i)
    model, tensors = lyapunov.load(folder), stored_arrays(folder)
    found = configured_activations(model.layout)
    for place, module in zip(model.sublayers, model.layout.modules, strict=True):
        read = found.reads[place.layer]
        own = lambda *ends, module=module: [
            float(array.reshape(-1)[0])
            for name, array in tensors.items()
            if name.startswith(f"{module}.") and "shared" not in name
            and name.endswith(tuple(f"{one}.input_global_scale" for one in ends))
        ]  # fmt: skip
        if place.kind == "experts":
            smallest = min(own("gate_proj", "up_proj"))
            assert read["expert_up_operand"].format == f"nvfp4={smallest!r}"
        elif place.kind == "attention":
            largest = max(own("q_proj", "k_proj", "v_proj"))
            assert read["in_operand"].format == f"nvfp4={largest!r}"


# ---- what is said


def assumed(folder, **named):
    named = {"precisions": ["bf16"], "effort": "quick", **named}
    return lyapunov.check(folder, TOKENS, **named)


def test_a_check_follows_unasked_and_says_so(made):
    """Assert the execution's name, a line for each format, clipping, and the report's
    own field; and of `none` a line that says it is not followed."""
    folder = made("nemotron_h", "modelopt-fp8", by_number, KEPT)
    report = assumed(folder)
    (found,) = report.precisions
    assert found.execution.endswith("activations as configured")
    assert not_none(report.checkpoint.quantisation).followed == "as configured"
    assert any("executions follow it module by module" in x for x in report.assumptions)
    assert any(
        "in front of in_proj of mamba2 (sublayer 0); q_proj, k_proj, v_proj of" in line
        for line in report.assumptions
    )
    assert "here as configured" in str(report)
    assert [set(row.clipped or ()) for row in found.layers] == [
        {"in_operand"}, {"in_operand"}, set(),
    ]  # fmt: skip
    report = assumed(folder, quantise_activations="none")
    (plain,) = report.precisions
    assert "activations" not in plain.execution
    assert not_none(report.checkpoint.quantisation).followed is None
    assert any(
        "not followed" in line and "--quantise-activations none" in line
        for line in report.assumptions
    )
    assert "not followed here" in str(report)
    moved = lambda one: one.layers[0].local_l2
    assert moved(found) > 2 * moved(plain)


def lines_of(folder, measure="emulated", asked=None, precisions=("bf16",)):
    model = lyapunov.load(folder)
    bare = executions_for(
        model.config, list(precisions), architecture=model.layout.architecture
    )
    made = quantising(bare, model.layout, measure, asked)
    return made, activation_lines(model.layout, made, measure, asked)


def test_a_format_that_is_given_stands_over_the_configuration(made):
    """Assert it of all sublayers, those that are left alone in the file as well."""
    folder = made("nemotron_h", "modelopt-fp8", by_number, KEPT)
    (execution,), lines = lines_of(folder, asked="int8-token")
    assert not execution.layers
    assert execution.of("mlp").sites["up_operand"].name == "int8-token"
    assert len(lines) == 1
    assert lines[0].endswith("executions quantise them to int8-token")


def test_runners_of_kernels_say_that_they_do_not(made):
    folder = made("nemotron_h", "modelopt-fp8", by_number, KEPT)
    for measure in ("transformers", "mamba_ssm"):
        (execution,), (line,) = lines_of(folder, measure)
        assert not execution.layers
        assert line.startswith("not followed")
        assert "--measure emulated follows them" in line
    with pytest.raises(UsageError, match="emulated, not run by transformers"):
        lines_of(folder, "transformers", "config")


def test_autocast_is_not_followed_and_said(made):
    folder = made("mamba2", "ct-fp8-channel", None, ("layers.1.",))
    (plain, amp), lines = lines_of(folder, precisions=("bf16", "bf16-amp"))
    assert plain.layers
    assert not amp.layers
    assert any("under autocast (bf16-amp)" in line for line in lines)
    with pytest.raises(UsageError, match="under autocast"):
        lines_of(folder, asked="config", precisions=("bf16-amp",))


def reconfigured(folder, target, change):
    """The same checkpoint with another scheme in its configuration."""
    import shutil

    shutil.copytree(folder, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    return target


def test_what_is_not_declared_is_a_line_or_an_error(made, tmp_path):
    """Assert it of all modules and of some; never is another format taken."""
    folder = made("mamba2", "ct-fp8-channel", None)

    def asymmetric(told, *targets):
        odd = {"num_bits": 4, "type": "int", "strategy": "token", "symmetric": False}
        (first,) = told["config_groups"].values()
        groups = {"odd": first | {"input_activations": odd | {"dynamic": True}}}
        if targets:
            groups = {"odd": groups["odd"] | {"targets": list(targets)}, "plain": first}
        told["config_groups"] = groups

    every = reconfigured(folder, tmp_path / "every", asymmetric)
    (execution,), lines = lines_of(every)
    assert not execution.layers
    assert "activations as configured" not in execution.name
    assert len(lines) == 3
    assert all(line.startswith("not followed") for line in lines)
    assert "int4, one scale a token with zero points" in lines[1]
    assert "no such format is declared" in lines[1]
    some = lambda told: asymmetric(told, "re:.*layers\\.1\\.mixer\\.out_proj")
    partly = reconfigured(folder, tmp_path / "partly", some)
    (execution,), lines = lines_of(partly)
    assert "out_operand" in execution.layers[0].sites
    assert "out_operand" not in execution.layers[1].sites
    assert "in_operand" in execution.layers[1].sites
    (line,) = [one for one in lines if one.startswith("not followed")]
    assert "out_proj of mamba2 (sublayer 1)" in line
    report = assumed(partly)
    assert not_none(report.checkpoint.quantisation).followed == "as configured, in part"
    for one in (every, partly):
        with pytest.raises(UsageError, match="no such format is declared") as caught:
            lines_of(one, asked="config")
        assert caught.value.hint


def test_what_reads_no_site_is_told(made):
    """Assert it of Mamba-1's `x_proj`, which no execution here quantises."""
    model = lyapunov.load(made("mamba", "ct-fp8-channel"))
    found = configured_activations(model.layout)
    assert all(set(one) == {"in_operand", "out_operand"} for one in found.reads)
    (line,) = found.left
    assert "in front of x_proj of mamba1 (sublayers 0-1)" in line


def test_config_of_a_plain_checkpoint_is_refused(plain):
    with pytest.raises(UsageError, match="has no activations quantised") as caught:
        lines_of(plain(), asked="config")
    assert "fp8_e4m3-token" in not_none(caught.value.hint)
    assert lines_of(plain())[1] == []


def test_a_plan_counts_the_programs_of_sublayers_that_differ(made):
    """Assert that a layer without the format is a program more, one with another scale
    none."""
    from lyapunov.questions._plan import programs_of

    named = checked_settings({"precisions": ["bf16"], "effort": "quick"})
    count = lambda folder, **more: programs_of(
        lyapunov.load(folder), Request.of(**named, **more)
    )
    alike = made("mamba2", "modelopt-fp8", by_number)
    differing = made("mamba2", "ct-fp8-channel", None, ("layers.1.",))
    assert count(alike) == count(alike, quantise_activations="none")
    assert count(differing) > count(differing, quantise_activations="none")
