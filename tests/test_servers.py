"""A server's command line as what is measured: what it is read as, what is refused, and
that reports of it say what was run.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import LyapunovError, UsageError
from lyapunov.implementations import implementation_named
from lyapunov.implementations._launch import SGLANG, VLLM, Launch, launched
from lyapunov.sublayers import NetworkConfig
from lyapunov.sublayers.mamba1 import Mamba1Sizes
from lyapunov.sublayers.mamba2 import Mamba2Sizes

from .helpers import not_none


MAMBA2 = Path(__file__).parents[1] / "experiments" / "models" / "mamba2"
SECOND = Mamba2Sizes(16, 32, 8, 4, 1, 4, 8, 1e-5, 1e-5)
FIRST = Mamba1Sizes(16, 32, 8, 4, 4, 1e-5)


def network(*sublayers, **options):
    return NetworkConfig(32, 32, 16, tuple(sublayers), **options)


def declared(name, sizes: Any = SECOND, precision="bf16", mode="decode", **options):
    """The execution inside the sublayer."""
    architecture = options.pop("architecture", "mamba2")
    state = options.pop("state", None)
    return (
        implementation_named(name)
        .execution(
            network(sizes, **options),
            precision,
            architecture=architecture,
            mode=mode,
            state_precision=state,
        )
        .of(sizes.kind)
    )


@pytest.mark.parametrize(
    ("line", "known", "expected"),
    [
        ("", VLLM, Launch()),
        ("--enforce-eager -tp 2", VLLM, Launch(eager=True, ranks=2)),
        ("--tensor-parallel-size=4", VLLM, Launch(ranks=4)),
        ("--dtype auto --mamba-cache-dtype float32", VLLM, Launch(window="fp32")),
        ("--use-replayssm", VLLM, Launch(ring=16)),
        ("--use-replayssm --replayssm-buffer-len 8", VLLM, Launch(ring=8)),
        (
            """--speculative-config '{"num_speculative_tokens": 3}'""",
            VLLM,
            Launch(drafts=3),
        ),
        (
            "--mamba-ssm-cache-dtype float16 --mamba-backend flashinfer "
            "--enable-mamba-cache-stochastic-rounding",
            VLLM,
            Launch(state="fp16", flashinfer=True, stochastic=True),
        ),
        (
            "SGLANG_MAMBA_CONV_DTYPE=float16 --mamba-ssm-dtype bfloat16",
            SGLANG,
            Launch(window="fp16", state="bf16"),
        ),
        ("--speculative-num-draft-tokens 4", SGLANG, Launch(drafts=3)),
    ],
)
def test_flags_are_read_as_they_are_typed(line, known, expected):
    found = launched(line, known, "stack")
    assert found == Launch(**{**vars(expected), "flags": " ".join(line.split())})


@pytest.mark.parametrize(
    ("line", "known", "told"),
    [
        ("--port 8000", VLLM, "--port"),
        ("--use-replayssm", SGLANG, "--use-replayssm"),
        ("-tp", VLLM, "needs a value"),
        ("-tp two", VLLM, "two"),
        ("-tp 0", VLLM, "0"),
        ("-tp 2 --tensor-parallel-size 2", VLLM, "twice"),
        ("--enforce-eager=1", VLLM, "no value"),
        ("--mamba-ssm-cache-dtype fp8", VLLM, "fp8"),
        ("--mamba-backend cpu", VLLM, "cpu"),
        ("--replayssm-buffer-len 8", VLLM, "rings"),
        ("--speculative-config {}", VLLM, "{}"),
        ("--speculative-config [3", VLLM, "3"),
        ("--enable-mamba-cache-stochastic-rounding", VLLM, "float16"),
        (
            "--use-replayssm --speculative-config.num_speculative_tokens 3",
            VLLM,
            "FlashInfer",
        ),
        (
            "--use-replayssm --replayssm-buffer-len 32 --mamba-backend flashinfer",
            VLLM,
            "16",
        ),
        ("'--dtype", VLLM, "quot"),
    ],
)
def test_what_is_not_read_is_refused_with_a_hint(line, known, told):
    with pytest.raises(UsageError) as caught:
        launched(line, known, "vLLM")
    assert told in caught.value.message
    assert caught.value.hint


def test_states_and_windows_are_what_the_stacks_choose():
    """Assert the facts of both stacks' sources, by hand."""
    state = lambda name, **given: declared(name, **given).sites["state"].name
    assert state("vllm_emulated") == "bf16"
    assert state("vllm_emulated", precision="fp16") == "fp16"
    assert state("vllm_emulated", architecture="nemotron_h") == "fp32"
    said = (("mamba_ssm_cache_dtype", "float16"),)
    assert state("vllm_emulated", architecture="nemotron_h", asks=said) == "fp16"
    assert state("vllm_emulated", asks=said) == "bf16"  # looked at for Nemotron-H alone
    assert state("sglang_emulated") == "fp32"
    said = (("mamba_ssm_dtype", "bfloat16"),)
    assert state("sglang_emulated", asks=said) == "bf16"
    assert state("vllm_emulated --mamba-cache-dtype float32") == "fp32"
    assert state("vllm_emulated --mamba-ssm-cache-dtype float16") == "fp16"
    stochastic = (
        "vllm_emulated --mamba-ssm-cache-dtype float16 --mamba-backend flashinfer "
        "--enable-mamba-cache-stochastic-rounding"
    )
    assert state(stochastic) == "fp16-stochastic"
    assert (
        state(f"{stochastic} --speculative-config.num_speculative_tokens 2") == "fp16"
    )
    before = declared(stochastic, mode="prefill")
    assert before.sites["chunk_cached"].name == "fp16"
    assert (
        "chunk_cached"
        not in declared(
            "vllm_emulated --mamba-cache-dtype float32", mode="prefill"
        ).sites
    )
    # SGLang's Mamba-1 convolves in bf16, weights and all
    third = declared("sglang_emulated", FIRST, "fp16", "prefill")
    assert {third.sites[s].name for s in ("conv_input", "conv_product")} == {"bf16"}
    assert third.parameters["conv_weight"].name == "bf16"
    assert third.parameter_format("D").name == "fp16"
    assert third.parameters["A_log"].name == "fp32"


def test_a_bias_is_fused_into_its_product():
    biased = Mamba1Sizes(16, 32, 8, 4, 4, 1e-5, proj_bias=True)
    of_library = declared("emulated", biased, mode="prefill", architecture="mamba1")
    assert "xz_product" in of_library.sites
    for name in ("vllm_emulated", "sglang_emulated"):
        assert "xz_product" not in declared(name, biased, mode="prefill").sites


def test_a_gate_alone_is_cast_where_nothing_compiles_it():
    """Assert SGLang's `Mixer2RMSNormGated.forward_cuda`, and vLLM's eager form."""
    alone = Mamba2Sizes(16, 32, 8, 4, 1, 4, 8, 1e-5, 1e-5, gate_norm=False)
    for mode in ("prefill", "decode"):
        for name, cast in (
            ("sglang_emulated", True),
            ("vllm_emulated --enforce-eager", True),
            ("vllm_emulated", False),
        ):
            assert ("silu_z" in declared(name, alone, mode=mode).sites) == cast
        assert "silu_z" not in declared("sglang_emulated", mode=mode).sites


def test_forms_are_what_the_flags_say():
    """Assert periods, rings, ranks, and where chunks end."""
    form = lambda name, **given: declared(name, **given).form
    drafted = "vllm_emulated --speculative-config.num_speculative_tokens 3"
    assert form(drafted).period == declared(drafted).stored_every == 4
    # SGLang counts the token in front of a draft as well
    assert form("sglang_emulated --speculative-num-draft-tokens 4").period == 4
    ring = form("vllm_emulated --use-replayssm")
    assert (ring.chunked, ring.chunk) == (True, 16)
    assert declared("vllm_emulated --use-replayssm").stored_every == 16
    assert declared("vllm_emulated").stored_every == 1
    assert form("vllm_emulated -tp 2").ranks == 2
    assert form("vllm_emulated", mode="prefill").grid == 0
    assert form("sglang_emulated", mode="prefill").grid is None
    whole = declared("vllm_emulated", mode="prefill")
    assert whole.begun(5).form.grid == 5
    assert whole.begun(0) is whole


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("vllm_emulated", {"precision": "bf16-amp"}, "autocast"),
        ("vllm_emulated --dtype float16", {}, "fp16"),
        ("vllm_emulated -tp 3", {}, "3 devices"),
        ("vllm_emulated --mamba-ssm-cache-dtype float16", {"state": "bf16"}, "fp16"),
        ("vllm_emulated", {"sizes": FIRST, "state": "fp16"}, "compiled prefill"),
        ("vllm_emulated --mamba-cache-dtype float16", {}, "window in fp16"),
        ("vllm_emulated --use-replayssm", {"sizes": FIRST}, "token by token"),
        (
            "vllm_emulated --speculative-config.num_speculative_tokens 3",
            {"sizes": FIRST},
            "token by token",
        ),
        (
            "sglang_emulated --speculative-num-draft-tokens 4",
            {"sizes": FIRST},
            "token by token",
        ),
        ("sglang_emulated", {"precision": "fp16"}, "window in bf16"),
        (
            "sglang_emulated",
            {"asks": (("mamba_ssm_dtype", "fp4"),)},
            "'fp4'",
        ),
    ],
)
def test_what_a_stack_does_not_run_is_refused(name, given, told):
    with pytest.raises(UsageError) as caught:
        declared(name, **given)
    assert told in caught.value.message
    assert caught.value.hint


def test_others_take_no_flags():
    for name in ("emulated -tp 2", "mamba_ssm --enforce-eager"):
        with pytest.raises(LyapunovError, match="no server"):
            implementation_named(name)


@pytest.mark.parametrize(
    "name",
    [
        "vllm_emulated --speculative-config.num_speculative_tokens 3",
        "sglang_emulated --speculative-num-draft-tokens 2",
    ],
)
def test_a_report_says_what_was_run(name):
    """Assert the name with its flags, that bounds hold, that nothing is said of the
    updates of a token where they are not stored apart."""
    tokens = np.arange(24) * 7 % 256
    report = lyapunov.check(
        MAMBA2, tokens, mode="decode", measure=name, precisions=["bf16"]
    )
    (found,) = report.precisions
    assert found.measured_by == name
    assert name.partition(" ")[2] in found.execution
    for layer in found.layers:
        assert layer.violations == 0
        assert layer.stagnation is None
        assert not_none(layer.bound_t1_ratio) >= 1.0


def test_a_servers_flag_without_quotes_is_told_where_it_stands():
    from click.testing import CliRunner

    from lyapunov.command._cli import main

    found = CliRunner().invoke(main, ["--measure", "vllm_emulated", "--use-replayssm"])
    assert found.exit_code == 2
    assert "--measure 'vllm_emulated --use-replayssm'" in found.stderr
    other = CliRunner().invoke(main, ["--use-replay"])
    assert "lists the options" in other.stderr
