"""Servers' delta rules in NumPy (`oracles.kernels.served_delta`) are under the bounds
of what is declared of them, the bounds are near, and kernels that do otherwise are not.
"""

import dataclasses

import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.implementations import implementation_named
from lyapunov.implementations._execution import Execution
from oracles.kernels import served_delta as kernels
from oracles.kernels.mamba1 import F, cast

from . import delta_runs as runs


VLLM = "vllm_emulated --gdn-prefill-backend triton"
DRAFTS = 3
WINDOWS = f"{VLLM} --speculative-config.num_speculative_tokens {DRAFTS}"
SGLANG = "sglang_emulated"
FP16_WINDOW = f"{SGLANG} SGLANG_MAMBA_CONV_DTYPE=float16"

# T1 over the measured error in L2, in 16 bits. Each token writes as many rounded
# entries as a key has, errors of which are independent and spread evenly: a bound that
# adds them up is at the square root of 3 times their number above them. Twice that for
# the stores of a chunk and around it, and in fp16 as much again, where values lie eight
# times as often beside a tie, which T1 goes through the middle of.
MOST = {"bf16": 2 * (3 * runs.SEQ * 16) ** 0.5, "fp16": 4 * (3 * runs.SEQ * 16) ** 0.5}

STEPS, EAGER = {"steps": True}, {"eager": True}
RUNS = {
    "vLLM's steps": ("gated_delta", VLLM, kernels.Delta, STEPS),
    "vLLM's prefill": ("gated_delta", VLLM, kernels.Delta, {}),
    "vLLM's drafts": (
        "gated_delta",
        WINDOWS,
        kernels.Delta,
        STEPS | {"period": 1 + DRAFTS},
    ),
    "SGLang's steps": ("gated_delta", SGLANG, kernels.Sglang, STEPS),
    "SGLang's prefill": ("gated_delta", SGLANG, kernels.Sglang, {}),
    "Kimi's steps": ("kimi_delta", VLLM, kernels.Kimi, STEPS | EAGER),
    "Kimi's prefill": ("kimi_delta", VLLM, kernels.Kimi, EAGER),
    "SGLang's Kimi": ("kimi_delta", SGLANG, kernels.Kimi, {}),
}
FAST = ("vLLM's steps", "vLLM's prefill")


def declared(run: str, precision: str, state: str, flags: str | None = None):
    """The kind, and what is declared of it."""
    kind, name, _, options = RUNS[run]
    if name == SGLANG and precision == "fp16":
        name = FP16_WINDOW
    mode = "decode" if "steps" in options else "prefill"
    return kind, runs.declared(kind, flags or name, precision, mode, state)


def found(run: str, precision: str, state: str, *, flags=None, **changed):
    """What bounds say of the kernels: (violations by site, of T1, T1's ratio)."""
    kind, execution = declared(run, precision, state, flags)
    _, _, make, options = RUNS[run]
    made = type("Made", (make,), changed.pop("methods", {}))
    options = {"cache": state} | options | changed
    return runs.found(kind, execution, made, precision, **options)


@pytest.mark.parametrize(
    "run",
    [run if run in FAST else pytest.param(run, marks=pytest.mark.slow) for run in RUNS],
)
def test_right_kernels_are_never_flagged_and_bounds_are_near(run):
    """Assert both, in both formats, with a cache in the model's and in fp32."""
    for precision in ("bf16", "fp16"):
        for state in (precision, "fp32"):
            t0, t1, ratio = found(run, precision, state)
            print(f"{run} {precision}, state {state}: {ratio:.3g}")
            assert not any(t0.values()), (run, precision, state, t0)
            assert t1 == 0
            assert 1.0 <= ratio <= MOST[precision], (run, precision, state, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["Kimi's steps", "Kimi's prefill"])
def test_right_kernels_of_an_fp32_model_are_never_flagged(run):
    """Kimi's alone are served in fp32, where chunks multiply in TF32."""
    t0, t1, _ = found(run, "fp32", "fp32")
    assert not any(t0.values()), t0
    assert t1 == 0


def three_bits(x):
    """Rounded to a significand of three bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 8) / 8, exponent).astype(F)


def in_three_bits(self, x):
    return three_bits(x)


def in_bf16(self, x):
    return cast(x, "bf16")


def lost(self, state):
    """The state is gone."""
    return np.zeros_like(state)


def gates_of_the_token_before(self, gate):
    moved = np.concatenate([gate[:1], gate[:-1]])
    return type(self).__mro__[1].elapsed(self, moved)


def three_newton_rounds(self, system):
    """The inverse by Newton and Schulz in bf16, three rounds of it (vllm PR 53864)."""
    eye, held = np.eye(system.shape[-1], dtype=F), lambda x: cast(x, "bf16")
    made = eye - system
    for _ in range(3):
        made = held(made) @ (2 * eye - held(eye + system) @ held(made))
    return made


def products_in_fp32(self, x, tap):
    return x * tap


def rounded_products(self, x, tap):
    return self.out_of(x * tap)


def rate_of_another_head(self, logit):
    return type(self).__mro__[1].rate(self, np.roll(logit, 1, axis=1))


WRONG = {
    "products in fp32": ("vLLM's steps", {"conv_product": products_in_fp32}, "conv"),
    "the state in three bits": (
        "vLLM's steps",
        {"handed_over": in_three_bits},
        "scan_output",
    ),
    "units in bf16, by steps": (
        "vLLM's steps",
        {"unit_stored": in_bf16},
        "scan_output",
    ),
    "rates of another head": (
        "vLLM's steps",
        {"rate": rate_of_another_head},
        "scan_output",
    ),
    "units in three bits": ("vLLM's prefill", {"unit_stored": in_three_bits}, "q_unit"),
    "an inverse by Newton": (
        "vLLM's prefill",
        {"inverse": three_newton_rounds},
        "inverse",
    ),
    "gates of the token before": (
        "vLLM's prefill",
        {"elapsed": gates_of_the_token_before},
        "inverse",
    ),
    "a chunk's state in three bits": (
        "vLLM's prefill",
        {"as_read": in_three_bits},
        "scan_output",
    ),
    "a chunk's state is lost": ("vLLM's prefill", {"as_read": lost}, "scan_output"),
    "Kimi's products in bf16": (
        "Kimi's prefill",
        {"conv_product": rounded_products},
        "conv",
    ),
    "Kimi's units in three bits": (
        "Kimi's prefill",
        {"unit_stored": in_three_bits},
        "q_unit",
    ),
    "Kimi's chunk's state is lost": (
        "Kimi's prefill",
        {"as_read": lost},
        "scan_output",
    ),
    "Kimi's queries in three bits": (
        "Kimi's prefill",
        {"scaled": in_three_bits},
        "scan_output",
    ),
    "Kimi's state in three bits": (
        "Kimi's steps",
        {"handed_over": in_three_bits},
        "scan_output",
    ),
}
ORDER = (
    "residual", "norm", "q", "k", "v", "z", "gate_logit", "rate_logit", "forget",
    "conv", "q_unit", "k_unit", "inverse", "u", "w", "v_new", "scan_output", "gated",
    "out",
)  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        one if WRONG[one][0] in FAST else pytest.param(one, marks=pytest.mark.slow)
        for one in WRONG
    ],
)
def test_kernels_that_do_otherwise_are_flagged(wrong):
    """Assert it at the first tensor that they spoil, and at none in front of it."""
    run, methods, site = WRONG[wrong]
    flagged(wrong, site, found(run, "bf16", "bf16", methods=methods)[0])


def flagged(wrong: str, site: str, t0: dict[str, int]) -> None:
    assert t0[site] > 0, (wrong, t0)
    front = [one for one in ORDER[: ORDER.index(site)] if one in t0]
    assert not any(t0[one] for one in front), (wrong, t0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "run", "flags", "changed", "site"),
    [
        # a cache in a format that is not the declared one
        ("a state in bf16", "vLLM's steps", None, {"cache": "bf16"}, "scan_output"),
        ("a norm that reads the stream", "vLLM's steps", None, EAGER, "norm"),
        ("every draft's state", "vLLM's drafts", None, {"period": 1}, "scan_output"),
        # one stack's kernels held to what is declared of the other
        ("rates in bf16", "SGLang's prefill", VLLM, {}, "inverse"),
    ],
)
def test_what_is_declared_of_another_is_flagged(wrong, run, flags, changed, site):
    state = "fp32" if wrong == "a state in bf16" else "bf16"
    t0 = found(run, "bf16", state, flags=flags, **changed)[0]
    flagged(wrong, site, t0)


def test_an_execution_is_of_its_kind():
    """Assert that what was read is what is declared, site by site."""
    formats = lambda run: {
        site: fmt.name for site, fmt in declared(run, "bf16", "fp32")[1].sites.items()
    }
    vllm, sglang, kimi = map(
        formats, ("vLLM's prefill", "SGLang's prefill", "Kimi's prefill")
    )
    assert vllm["k_rated"] == sglang["tile_operand"] == kimi["tile_operand"] == "tf32"
    assert "tile_operand" not in vllm
    assert "k_rated" not in sglang
    assert sglang["rate"] == "bf16"
    assert not {"rate", "k_beta", "gate_norm_hat", "silu_z"} & {*vllm, *kimi}
    assert kimi["query_scaled"] == kimi["q_decayed"] == "bf16"
    assert vllm["conv_product"] == "bf16"
    assert "conv_product" not in kimi
    steps = formats("vLLM's steps")
    assert not {"q_unit", "k_unit", "inverse", "chunk_state"} & set(steps)
    assert steps["state"] == "fp32"
    held: Execution = declared("Kimi's prefill", "bf16", "fp32")[1]
    assert held.parameter_format("conv_weight").name == "fp32"


REFUSED = {
    "another family": (
        "gated_delta", VLLM, "bf16", {"architecture": "lara_mini"}, "not of lara_mini",
    ),
    "OLMo by SGLang": (
        "gated_delta", SGLANG, "bf16", {"architecture": "olmo_hybrid"}, "olmo_hybrid",
    ),
    "FlashInfer's prefill": (
        "gated_delta", "vllm_emulated", "bf16", {"mode": "prefill"}, "FlashInfer",
    ),
    "fp32": ("gated_delta", VLLM, "fp32", {}, "asserts 16 bits"),
    "a window in bf16": ("gated_delta", SGLANG, "fp16", {}, "was not read"),
    "ReplaySSM": (
        "gated_delta", f"{VLLM} --use-replayssm", "bf16", {}, "--use-replayssm",
    ),
    "FlashInfer's steps": (
        "kimi_delta", f"{VLLM} --mamba-backend flashinfer", "bf16", {}, "Mamba-2",
    ),
    "a flag that Kimi's layer does not read": (
        "kimi_delta", f"{VLLM} --mamba-ssm-cache-dtype bfloat16", "bf16", {}, "fp32",
    ),
    "Kimi's drafts by SGLang": (
        "kimi_delta", f"{SGLANG} --speculative-num-draft-tokens 4", "bf16", {}, "fused",
    ),
    "several devices": ("gated_delta", f"{VLLM} -tp 2", "bf16", {}, "devices"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_followed_is_refused_with_the_reason(case):
    kind, name, precision, changed, words = REFUSED[case]
    given = {"architecture": runs.FAMILY[kind], "mode": "decode"} | changed
    with pytest.raises(UsageError) as refused:
        implementation_named(name).execution(runs.network(kind), precision, **given)
    assert words in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("vllm_emulated", "--gdn-prefill-backend triton"),
        ("sglang_emulated", "--linear-attn-prefill-backend triton"),
    ],
)
def test_heads_of_128_are_prefilled_by_triton_where_a_flag_says_so(name, flag):
    wide = dataclasses.replace(runs.GATED, key_dim=128, value_dim=128)
    config = dataclasses.replace(runs.network("gated_delta"), sublayers=(wide,))
    ask = {"architecture": "qwen3_5", "state_precision": "fp32"}
    with pytest.raises(UsageError, match="FlashInfer"):
        implementation_named(name).execution(config, "bf16", **ask)
    found = implementation_named(f"{name} {flag}").execution(config, "bf16", **ask)
    assert found.of("gated_delta").form.chunked


def test_drafts_of_heads_of_128_are_verified_by_triton_where_a_variable_says_so():
    wide = dataclasses.replace(runs.GATED, key_dim=128, value_dim=128)
    config = dataclasses.replace(runs.network("gated_delta"), sublayers=(wide,))
    ask = {"architecture": "qwen3_5", "mode": "decode"}
    with pytest.raises(UsageError, match="fused CUDA kernel"):
        implementation_named(WINDOWS).execution(config, "bf16", **ask)
    name = f"{WINDOWS} VLLM_GDN_DECODE_KERNEL=triton"
    found = implementation_named(name).execution(config, "bf16", **ask)
    assert found.of("gated_delta").form.period == 1 + DRAFTS


def test_the_window_of_kimi_says_nothing_of_its_state():
    """vLLM's `--mamba-cache-dtype` covers both of other models."""
    name = f"{VLLM} --mamba-cache-dtype bfloat16"
    formats = {
        kind: implementation_named(name)
        .execution(
            runs.network(kind), "bf16", architecture=runs.FAMILY[kind], mode="decode"
        )
        .state_precision
        for kind in runs.SIZES
    }
    assert formats == {"gated_delta": "bf16", "kimi_delta": "fp32"}
