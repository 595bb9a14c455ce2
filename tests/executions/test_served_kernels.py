"""vLLM's kernels in NumPy (`oracles.kernels.served`) are under the bounds of what is
declared of it, the bounds are close to them, and kernels that do otherwise are not.
"""

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations import implementation_named
from oracles.kernels import mamba2 as ssd, served

from . import ssd_models as models, ssd_runs as runs
from .test_ssd_right_kernels import MOST


SEQ = 37
SIZES = models.Sizes()
SHAPES = {
    "two groups": SIZES,
    "one group": models.Sizes(groups=1),
    "no gated norm": models.Sizes(gate_norm=False),
}
RING, DRAFTS = 4, 3
RUNS = {
    "prefill": ("", served.ServedScan, {}),
    "eager": ("--enforce-eager", served.ServedScan, {"eager": True}),
    "fp32 window": (
        "--mamba-cache-dtype float32",
        served.ServedScan,
        {"window": "fp32"},
    ),
    "two devices": ("-tp 2", served.ServedScan, {"ranks": 2}),
    "two devices, in a ring": (
        "-tp 2 --enforce-eager",
        served.ServedScan,
        {"ranks": 2, "ring_sum": True, "eager": True},
    ),
    "steps": ("", served.ServedStep, {}),
    "drafts": (
        f"--speculative-config.num_speculative_tokens {DRAFTS}",
        served.ServedStep,
        {"period": 1 + DRAFTS},
    ),
    "ring": (
        f"--use-replayssm --replayssm-buffer-len {RING}",
        served.Ring,
        {"period": RING},
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A function: sizes -> (model, weights)."""
    made = {}

    def get(sizes):
        if sizes not in made:
            weights = models.hard("plain", sizes, 0)
            folder = tmp_path_factory.mktemp("served") / "model"
            model = lyapunov.load(models.save(folder, weights, sizes))
            made[sizes] = model, weights
        return made[sizes]

    return get


def declared(model, flags, precision, mode, state):
    """The execution of a command line."""
    name = f"vllm_emulated {flags}".strip()
    return (
        implementation_named(name)
        .execution(
            model.config,
            precision,
            architecture="mamba2",
            mode=mode,
            state_precision=state,
        )
        .of("mamba2")
    )


def found(given, sizes, precision, run, *, state="bf16", flags=None, **changed):
    """What bounds say of the kernels: (violations by site, of T1, T1's ratio)."""
    model, weights = given
    line, make, options = RUNS[run]
    mode = "prefill" if make is served.ServedScan else "decode"
    line = line if flags is None else flags
    if options.get("window") == "fp32":
        state = "fp32"
    execution = declared(model, line, precision, mode, state)
    made = type("Made", (make,), changed.pop("methods", {}))
    options = {"cache": state} | options | changed
    tokens = models.tokens_for("plain", sizes, SEQ)
    records = run_stack(weights, tokens, precision, sizes, made, options)
    return runs.verdicts(model, execution, records)


def run_stack(weights, tokens, precision, sizes, make, options):
    """(before, hidden, stored tensors) of each layer, the stream in the precision."""
    rows = weights["backbone.embedding.weight"].astype(np.float32)
    before = ssd.cast(rows, precision)[tokens]
    hidden = np.zeros_like(before)
    records = []
    for i in range(sizes.layers):
        own = served.held(ssd.layer_weights(weights, i), precision)
        stored = make(own, precision, runs.shape_of(sizes), **options).run(
            before, hidden
        )
        records.append((before, hidden, stored))
        before, hidden = stored["residual"], stored["out"]
    return records


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("run", RUNS)
def test_right_kernels_are_never_flagged_and_bounds_are_close(loaded, run, precision):
    """Assert both of every way of running them."""
    for t0, t1, ratio in found(loaded(SIZES), SIZES, precision, run, state=precision):
        assert not any(t0.values()), (run, precision, t0)
        assert t1 == 0, (run, precision)
        assert 1.0 <= ratio <= MOST[precision], (run, precision, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("run", RUNS)
def test_right_kernels_of_other_shapes(loaded, run, sizes):
    """Assert it with one group and without a norm, and of states in other formats."""
    if run.startswith("two devices") and not sizes.gate_norm:
        pytest.skip("silu(z) over several devices is the same as on one")
    for precision, state in (("bf16", "fp32"), ("fp16", "bf16"), ("bf16", "fp16")):
        for t0, t1, ratio in found(loaded(sizes), sizes, precision, run, state=state):
            assert not any(t0.values()), (run, precision, state, t0)
            assert t1 == 0
            # a unit of bf16 is eight of fp16
            coarser = 8 if (precision, state) == ("fp16", "bf16") else 1
            assert 1.0 <= ratio <= coarser * MOST[precision], (run, state, ratio)


def kept(self, state):
    """The state goes into a cache of three bits."""
    mantissa, exponent = np.frexp(state)
    return np.ldexp(np.round(mantissa * 8) / 8, exponent).astype(np.float32)


def lost(self, state):
    """The state is gone."""
    return np.zeros_like(state)


def products_in_fp32(self, x, weight, bias):
    """mamba_ssm's convolution."""
    return ssd.Ssd.conv_sum(self, x, weight, bias)


def of_one_device(self, gated):
    """The first device's part alone."""
    width = self.inner // self.ranks
    part = gated[:, :width] @ self.w["out_proj.weight"][:, :width].T
    return self.out_of(part)


def limited(self, dt):
    """dt between the limits of a config."""
    return np.clip(served.ServedScan.step_size(self, dt), 0.02, 0.05)


WRONG = {
    "products in fp32": (
        "prefill",
        {"methods": {"conv_sum": products_in_fp32}},
        "conv",
    ),
    "products in fp32, by steps": (
        "steps",
        {"methods": {"conv_sum": products_in_fp32}},
        "conv",
    ),
    "products rounded under a window in fp32": (
        "prefill",
        {"flags": "--mamba-cache-dtype float32", "cache": "fp32", "state": "fp32"},
        "conv",
    ),
    "a window in another format": ("steps", {"window": "fp16"}, "conv"),
    "a chunk's state in three bits": (
        "prefill",
        {"methods": {"handed": kept}},
        "scan_output",
    ),
    "a chunk's state is lost": (
        "prefill",
        {"methods": {"handed": lost}},
        "scan_output",
    ),
    "dt is limited": ("prefill", {"methods": {"step_size": limited}}, "scan_output"),
    "the state in three bits": (
        "steps",
        {"methods": {"stored_state": kept}},
        "scan_output",
    ),
    "every draft's state is stored": ("drafts", {"period": 1}, "scan_output"),
    "a ring's state is stored late": ("ring", {"period": 2 * RING}, "scan_output"),
    "a ring's state is lost": (
        "ring",
        {"methods": {"stored_state": lost}},
        "scan_output",
    ),
    "the norm reads the rounded stream": ("eager", {"flags": ""}, "norm"),
    "the norm reads the sum where it is eager": (
        "prefill",
        {"flags": "--enforce-eager"},
        "norm",
    ),
    "one device's part alone": (
        "two devices",
        {"methods": {"out": of_one_device}},
        "out",
    ),
    "parts are not rounded": ("prefill", {"flags": "-tp 2"}, "out"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_kernels_that_do_otherwise_are_flagged(loaded, wrong):
    """Assert it at the first tensor that they spoil, and at none in front of it."""
    run, changed, site = WRONG[wrong]
    t0 = found(loaded(SIZES), SIZES, "bf16", run, **changed)[0][0]
    assert t0[site] > 0, (wrong, t0)
    order = ("residual", "norm", "xz", "conv", "scan_output", "gated", "out")
    assert not any(t0[one] for one in order[: order.index(site)]), (wrong, t0)
