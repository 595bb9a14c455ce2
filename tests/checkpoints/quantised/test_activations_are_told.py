"""What is said of activations that a configuration has quantised."""

import dataclasses
import json
import shutil

import jax
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import executions_for
from lyapunov.implementations._configured_activations import configured_activations
from lyapunov.questions._activations import activation_lines, quantising
from lyapunov.questions._plan import programs_of
from lyapunov.questions._request import Request
from lyapunov.questions._settings import checked_settings
from oracles.checkpoints.quantised_models import stored_arrays

from ...helpers import not_none
from .as_configured import KEPT, TOKENS, by_number, far_apart, followed
from .conftest import is_quantised


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


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


SHARED = ("q_proj", "kv_a_proj_with_mqa")
"""Of latent attention: both read the stream, and nobody joins them."""


def test_modules_that_nobody_joins_are_not_put_under_one_scale(made):
    """Assert it of two that read one tensor under two scales, of one that is asked for
    something beside one that is not, and of two schemes."""
    from lyapunov.checkpoints.quantised._activations import STATIC, TOKEN
    from lyapunov.implementations._configured_activations import _format_of

    told = not_none(
        lyapunov.load(made("mamba2", "modelopt-fp8", by_number))
        .layout.checkpoint.quantisation
    )  # fmt: skip
    values = iter(told.scales.values())
    scales = {f"{name}.input_scale": next(values) for name in SHARED}
    asked = lambda *ways: dataclasses.replace(
        told, asked=dict(zip(SHARED, ways, strict=False)), scales=scales
    )
    refused = lambda *ways: _format_of(asked(*ways), SHARED, "in_operand")
    assert "under different scales" in str(refused(STATIC, STATIC))
    assert "is not quantised" in str(refused(STATIC))
    assert "quantised one way here" in str(refused(STATIC, TOKEN))
    assert getattr(refused(TOKEN, TOKEN), "format", None) == "fp8_e4m3-token"


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


@pytest.mark.parametrize(
    "recipe",
    ["modelopt-fp8", pytest.param("ct-nvfp4-both", marks=pytest.mark.slow)],
)
def test_a_full_check_has_all_that_it_has_without(made, recipe):
    """Assert that sublayers that differ have a floor beyond what was measured and not
    far, where much is clipped too; chosen signs do more than the roundings of one run.
    """
    scale = far_apart if recipe == "modelopt-fp8" else None
    folder = made("mamba2", recipe, scale, ("layers.0.mixer.out_proj",))
    report = assumed(folder, effort="full", probes=2, readouts=2)
    (found,) = report.precisions
    assert found.count("violations") == 0
    for row in found.layers:
        assert 1 <= not_none(row.floor_t1_ratio) < 100


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


def test_a_head_that_is_asked_is_told(quantised):
    """Assert that what it reads stays as it is, and that this is said."""
    chosen = lambda name: is_quantised(name) or name == "lm_head.weight"
    folder, _ = quantised("modelopt-fp8-channel", chosen=chosen)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["ignore"] = []
    path.write_text(json.dumps(config))
    (execution,), lines = lines_of(folder)
    assert execution.layers
    (line,) = [one for one in lines if one.startswith("not followed")]
    assert "in front of the head, fp8, one scale a token" in line


def test_config_of_a_plain_checkpoint_is_refused(plain):
    with pytest.raises(UsageError, match="has no activations quantised") as caught:
        lines_of(plain(), asked="config")
    assert "fp8_e4m3-token" in not_none(caught.value.hint)
    assert lines_of(plain())[1] == []


def test_a_plan_counts_the_programs_of_sublayers_that_differ(made):
    """Assert that a layer without the format is a program more, one with another scale
    none."""
    named = checked_settings({"precisions": ["bf16"], "effort": "quick"})
    count = lambda folder, **more: programs_of(
        lyapunov.load(folder), Request.of(**named, **more)
    )
    alike = made("mamba2", "modelopt-fp8", by_number)
    differing = made("mamba2", "ct-fp8-channel", None, ("layers.1.",))
    assert count(alike) == count(alike, quantise_activations="none")
    assert count(differing) > count(differing, quantise_activations="none")
