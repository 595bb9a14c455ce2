"""What vLLM 0.33.0 and SGLang 0.5.23 do with a checkpoint by default, and their flags.

Expected values are those stacks' own rules, written here by hand for each family.
"""

from pathlib import Path
from typing import Any

import pytest

import lyapunov
from lyapunov.checkpoints.families._architectures import FAMILIES
from lyapunov.formats._precision import Precision
from lyapunov.implementations._flags import serving_flags
from lyapunov.implementations._stacks import (
    KINDS,
    Asked,
    as_served,
    asked_of,
    state_flags,
)
from lyapunov.report import to_markdown
from lyapunov.results._check import OutputDivergence, PrecisionReport
from lyapunov.sublayers import KINDS as ALL_KINDS


def asked(architecture="mamba2", kinds=("mamba2",), dtype="bf16", **config):
    return Asked(architecture, config, frozenset(kinds), dtype)


NEMOTRON = "nemotron_h"
QWEN: Any = {"architecture": "qwen3_5", "kinds": ("gated_delta",)}
TEXT: Any = {"text_config": {"mamba_ssm_dtype": "float32"}}


@pytest.mark.parametrize(
    ("given", "vllm", "sglang"),
    [
        (asked(), "bf16", "fp32"),
        (asked(dtype="fp16"), "fp16", "fp32"),
        (asked("falcon_h1"), "bf16", "fp32"),
        (asked("mamba", ("mamba1",)), "bf16", "fp32"),
        # Nemotron-H: its own key, else fp32; the other key is SGLang's
        (asked(NEMOTRON), "fp32", "fp32"),
        (asked(NEMOTRON, mamba_ssm_cache_dtype="bfloat16"), "bf16", "fp32"),
        (asked(NEMOTRON, mamba_ssm_cache_dtype="auto"), "fp32", "fp32"),
        (asked(NEMOTRON, mamba_ssm_dtype="float16"), "fp32", "fp16"),
        (asked("zamba2", mamba_ssm_cache_dtype="float32"), "bf16", "fp32"),
        # Qwen3.5 reads its text's configuration, Qwen3-Next nothing
        (asked(**QWEN), "bf16", "fp32"),
        (asked(**QWEN, mamba_ssm_dtype="float32"), "fp32", "fp32"),
        (asked(**QWEN, **TEXT), "fp32", "fp32"),
        (asked("qwen3_next", ("gated_delta",), **TEXT), "bf16", "fp32"),
        (asked("qwen3_next", ("gated_delta",), mamba_ssm_dtype="bfloat16"),
         "bf16", "bf16"),
        (asked("kimi_linear", ("kimi_delta",)), "fp32", "fp32"),
    ],
)  # fmt: skip
def test_defaults_are_the_stacks_own(given, vllm, sglang):
    """The state's format by family and key of config.json, and the window's."""
    first, second = as_served(given, None, [])
    assert (first.stack, first.state, first.window) == ("vLLM", vllm, given.dtype)
    assert (second.stack, second.state, second.window) == ("SGLang", sglang, "bf16")
    for one in (first, second):
        assert one.why
        how = f"--state-precision {one.state}"
        # SGLang's window in bf16 under another format was not read
        followed = one.stack == "vLLM" or given.dtype == "bf16"
        if given.kinds <= {"mamba1", "mamba2"} or followed:
            how = f"--measure {one.stack.lower()}_emulated"
        assert one.ask == f"--mode decode --precision {given.dtype} {how}"


def test_rules_are_of_families_and_kinds_that_there_are():
    """A family that is called otherwise would be given another's default."""
    assert {NEMOTRON, "qwen3_5", "qwen3_5_moe", "qwen3_next"} <= set(FAMILIES)
    assert set(ALL_KINDS) >= KINDS


@pytest.mark.parametrize("value", ["float8", 7, ["float32"], "x" * 999])
def test_a_format_that_no_stack_knows_is_no_default(value):
    """Both stop at it: no format is made up, and little of it is repeated."""
    given = asked(NEMOTRON, mamba_ssm_cache_dtype=value, mamba_ssm_dtype=value)
    for one in as_served(given, None, []):
        assert one.state is None
        assert one.ask is None
        assert "which is no format" in one.why
        assert len(one.why) < 120


@pytest.mark.parametrize("kind", ["rwkv4", "mlstm", "rg_lru", "lightning", "mamba3"])
def test_recurrences_that_were_not_read_there_have_no_default_and_no_flag(kind):
    """One of them beside one that was read is enough."""
    for kinds in ((kind,), (kind, "mamba2")):
        given = asked(kinds=kinds)
        assert as_served(given, "bf16", []) == []
        assert not list(state_flags(Precision("fp32"), "why", given, "bf16"))
    transformer = asked("llama", ())
    assert as_served(transformer, "bf16", []) == []
    stacks = {f["stack"] for f in serving_flags([], "fp32", None, transformer)}
    assert not stacks & {"vLLM", "SGLang"}


def test_a_file_in_fp32_is_served_as_advised_or_as_measured():
    """What a stack makes of it by itself is not known: then nothing is said, and no
    flag is called needless."""
    given = asked(dtype="fp32")
    assert as_served(given, None, []) == []
    assert [one.precision for one in as_served(given, "fp16", [])] == ["fp16"] * 2
    run = PrecisionReport("bf16", "fp32", "flow", "decode", "x", [], OutputDivergence())
    assert [one.precision for one in as_served(given, None, [run])] == ["bf16"] * 2
    assert flags("fp32", given, None) == {
        "vLLM": "--mamba-ssm-cache-dtype float32",
        "SGLang": "none needed",
    }
    kimi = asked("kimi_linear", ("kimi_delta",), "fp32")
    assert flags("fp32", kimi, None)["vLLM"] == "none needed"


def test_a_layer_that_reads_no_flag_is_given_none():
    """Kimi Linear's in vLLM keeps its state in fp32, whatever the flag says."""
    kimi = asked("kimi_linear", ("kimi_delta",))
    assert "vLLM" not in flags("bf16", kimi)
    assert flags("bf16", kimi)["SGLang"] == "--mamba-ssm-dtype bfloat16"


def flags(state, given, weights: str | None = "bf16"):
    found = state_flags(Precision.named(state), "why", given, weights)
    return {flag.stack: flag.flag for flag in found}


def test_no_flag_where_the_default_is_what_is_advised():
    """And the flag that changes it everywhere else."""
    assert flags("fp32", asked()) == {
        "vLLM": "--mamba-ssm-cache-dtype float32",
        "SGLang": "none needed",
    }
    assert flags("fp32", asked(NEMOTRON)) == dict.fromkeys(
        ("vLLM", "SGLang"), "none needed"
    )
    assert flags("bf16", asked()) == {
        "vLLM": "none needed",
        "SGLang": "--mamba-ssm-dtype bfloat16",
    }


@pytest.mark.parametrize("state", ["bf16", "fp16", "fp32", "fp16-stochastic"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp32"])
def test_only_what_a_stack_runs_is_advised(kind, state, weights):
    """vLLM's Mamba-1 prefill takes fp32 or the model's format, its Kimi fp32 or bf16;
    delta rules are never rounded stochastically, which goes by FlashInfer on Hopper."""
    found = flags(state, asked(kinds=(kind,)), weights)
    form = state.split("-")[0]
    stochastic = "stochastic" in state
    runs = not (stochastic and kind.endswith("delta"))
    assert ("SGLang" in found) == runs
    if kind == "mamba1":
        runs = form in ("fp32", weights)
    if kind == "kimi_delta":
        runs = runs and form in ("fp32", "bf16")
    assert ("vLLM" in found) == runs
    for flag in found.values():
        rounds = "--enable-mamba-cache-stochastic-rounding" in flag
        assert rounds == stochastic
        assert ("--mamba-backend flashinfer" in flag) == stochastic
        if stochastic:
            assert "float16" in flag


def test_what_a_default_cost_is_of_the_run_in_these_formats():
    """By steps alone, and in both formats."""
    output = OutputDivergence(argmax_flips=7, argmax_total=512, kl_mean=2e-4)
    run = lambda mode, precision, state, by="vllm_emulated": PrecisionReport(
        precision, state, "flow", mode, by, [], output
    )
    others = [
        run("prefill", "bf16", "bf16"),
        run("decode", "fp16", "bf16"),
        run("decode", "bf16", "fp16"),
        run("decode", "bf16", "bf16", "emulated"),
        run("decode", "bf16", "bf16", "vllm_emulated -tp 2"),
        run("decode", "bf16", "fp32"),
    ]
    first, _ = as_served(asked(), None, others)
    assert first.kl_mean is None
    assert first.ask
    first, second = as_served(asked(), None, [*others, run("decode", "bf16", "bf16")])
    assert (first.kl_mean, first.argmax_flips, first.argmax_total) == (2e-4, 7, 512)
    assert first.ask is None
    assert second.ask
    _, second = as_served(
        asked(), None, [run("decode", "bf16", "fp32", "sglang_emulated")]
    )
    assert second.kl_mean == 2e-4
    delta = asked("qwen3_next", ("gated_delta",))
    first, _ = as_served(delta, None, [run("decode", "bf16", "bf16", "fla")])
    assert first.kl_mean is None
    first, _ = as_served(delta, None, [run("decode", "bf16", "bf16")])
    assert first.kl_mean == 2e-4
    # of families that are not followed, any run in both formats
    ling = asked("bailing_hybrid", ("kimi_delta",))
    first, _ = as_served(ling, None, [run("decode", "bf16", "fp32", "fla")])
    assert first.kl_mean == 2e-4


def test_notes_are_of_the_formats_and_kinds_they_are_about():
    note = lambda given, words, stack=0: any(
        words in one for one in as_served(given, None, [])[stack].notes
    )
    kimi = asked("kimi_linear", ("kimi_delta",))
    for given in (asked(), asked("mamba", ("mamba1",)), asked(**QWEN)):
        assert note(given, "--mamba-cache-dtype float32")
    assert not note(kimi, "--mamba-cache-dtype")
    assert note(asked(**QWEN), "--gdn-prefill-backend triton")
    olmo = asked("olmo_hybrid", ("gated_delta",))
    for given in (asked(), kimi, olmo):
        assert not note(given, "--gdn-prefill-backend")
    assert note(asked("mamba", ("mamba1",)), "first prefill")
    assert not note(asked(), "first prefill")
    assert note(asked(dtype="fp16"), "65504")
    assert not note(asked(), "65504")
    assert note(asked("mamba", ("mamba1",), "fp16"), "runs in bf16", 1)
    assert not note(asked("mamba", ("mamba1",)), "runs in bf16", 1)


def test_a_check_says_how_its_checkpoint_is_served():
    """The bundled Mamba-1, by steps with a state in bf16, as vLLM keeps it."""
    report = lyapunov.check(
        tokens=[[72, 101, 108, 108, 111]],
        precisions=["bf16"],
        mode="decode",
        measure="vllm_emulated",
        effort="quick",
    )
    given = asked_of(lyapunov.load(None).layout)
    assert given.kinds == {"mamba1"}
    for one in report.summary.served:
        assert one.precision == "bf16"
        if one.stack == "vLLM":
            assert one.state == "bf16"
            assert one.kl_mean == report.precisions[0].output.kl_mean
    text = to_markdown(report)
    assert ("Served by default" in text) == bool(report.summary.served)


@pytest.mark.parametrize(
    ("model", "absent"),
    [(None, "fla"), ("gated_delta", "mamba_ssm"), ("gpt_neox", "fla")],
)
def test_libraries_that_do_not_run_a_network_are_given_no_flag(model, absent):
    """Nor are stacks where nothing is kept."""
    folder = model and Path(__file__).parents[1] / "experiments" / "models" / model
    given = asked_of(lyapunov.load(folder).layout)
    found = {flag["stack"] for flag in serving_flags([], "fp32", "bf16", given)}
    assert {"transformers", "vLLM", "SGLang"} <= found
    assert absent not in found
    kept = {flag["stack"] for flag in serving_flags([], "fp32", None, given)}
    assert ("vLLM" in kept) == bool(given.kinds)
