"""vLLM's own operators in Triton's interpreter: whole, in calls, packed, by steps.

Two environment variables say where they are: LYAPUNOV_TRITON_PYTHON names the Python of
an environment with torch, Triton 3.6, NumPy below 2.3 and what the library needs, and
LYAPUNOV_VLLM_FILES a folder with `vllm/model_executor/layers/mamba/ops` of vLLM
0.33.0's wheel. The oracle is NumPy in fp64 (`oracles.networks.mamba_ssm`).
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from analysis._vllm_faults import FAULTS
from analysis._vllm_shares import APART
from oracles.checkpoints.mamba_ssm import drawn, full_config, mamba_ssm_shapes, save
from oracles.networks.mamba_ssm import mamba_ssm_logits
from oracles.tolerances import condition, gamma
from tests.executions import ssd_models as ssd

from .vllm_runs import Run


ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("LYAPUNOV_TRITON_PYTHON")
FILES = os.environ.get("LYAPUNOV_VLLM_FILES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PYTHON and FILES),
        reason="LYAPUNOV_TRITON_PYTHON and LYAPUNOV_VLLM_FILES are not set",
    ),
]

SEQ, CHUNK, SIZES = 40, 8, ssd.Sizes(chunk=8, d_state=16)
SCHEDULED = {
    "resumed:9": "chunks:9,rest",
    "resumed:1": "chunks:1,rest",
    "resumed:8,13": "initial_state:13",
    "preempted:13": "initial_state:13",
    "preempted:13,8": "initial_state:13",
    "mixed:13": "initial_state:13",
}
"""What a server does with several texts: which calls have the same arithmetic."""
CUTS = (1, CHUNK - 1, CHUNK, CHUNK + 1)
UNITS = {"fp32": 2.0**-24, "fp16": 2.0**-11}

EAGER, REPLAY = "--enforce-eager", "--use-replayssm"
DRAFTS = "--speculative-config.num_speculative_tokens=3"
HANDED = "initial_state:13"
STORES = 8
"""Roundings to the model's format for one weight: behind in_proj norm and xz; behind
the convolution its product, itself and what products of a chunk read; behind out_proj
scan, gate, output and stream. No weight has more than eight behind it."""


def runs() -> list[Run]:
    """All runs of Mamba-2."""
    found = []
    for precision in UNITS:
        ways = ["whole", "steps", "initial_state:13", f"chunks:{SEQ - 1},rest"]
        ways += [f"chunks:{cut},rest" for cut in CUTS]
        ways += [f"initial_state:{SEQ - 1}", "batched:1", "packed:13", "padded_left:2"]
        ways += ["drafts:4,3", "drafts:4", "drafts:3,1", *SCHEDULED]
        found += [Run(precision, "fp32", way) for way in ways]
        found.append(Run(precision, "fp32", "chunks:9,rest", lost=True))
        found.append(Run(precision, "fp32", "whole", EAGER))
        found.append(Run(precision, "fp32", "steps", REPLAY))
        found += [Run(precision, "fp32", w, DRAFTS) for w in ("steps", HANDED)]
    ways = ["whole", "steps", "chunks:8,rest", "drafts:4"]
    found += [Run("fp16", "fp16", way) for way in ways]
    return found


def interpreted(*given) -> None:
    """Run Python in a process whose Triton interprets."""
    subprocess.run(
        [str(PYTHON), *map(str, given)],
        check=True,
        cwd=ROOT,
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
        },
    )


def computed(folder: Path, wanted: list[Run]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of each run by name."""
    out = folder / "runs.npz"
    names = [one.name for one in wanted]
    interpreted("-m", "tests.runners.vllm_runs", folder, out, *names)
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(out) as arrays:
        for name in arrays.files:
            run, _, what = name.partition("::")
            found.setdefault(run, {})[what] = arrays[name]
    return found


@pytest.fixture(scope="module")
def weights():
    """Of a network that remembers: what it forgets in a token is 2 % to half."""
    weights, rng = ssd.drawn(SIZES), np.random.default_rng(4)
    for name, array in weights.items():
        if name.endswith("dt_bias"):
            array[:] = rng.uniform(0, 1, array.shape)
        elif name.endswith("A_log"):
            array[:] = np.log(rng.uniform(0.02, 0.5, array.shape))
    return weights


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, SIZES.vocab, SEQ)


@pytest.fixture(scope="module")
def found(tmp_path_factory, weights, tokens):
    """Everything that was run, by name."""
    folder = ssd.save(tmp_path_factory.mktemp("mamba2"), weights, SIZES)
    np.save(folder / "tokens.npy", tokens[None])
    return computed(folder, runs())


def same(one, other) -> bool:
    """Whether two runs stored the same bits everywhere."""
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def tolerance(forward, weights, tokens, precision: str) -> float:
    """What roundings may move logits by: each intermediate's is a relative error of the
    weights that it is made of; sums are fp32 in any order."""
    longest = max(array.shape[-1] for array in weights.values() if array.ndim > 1)
    sums = gamma(16 + longest + 2 * len(tokens), UNITS["fp32"])
    stores = 0.0 if precision == "fp32" else gamma(STORES, UNITS[precision])
    return condition(forward, weights, tokens) * (sums + stores)


def held(weights, precision):
    """Weights as the model has them, A_log in fp32."""
    if precision == "fp32":
        return weights
    return {
        name: array if "A_log" in name else array.astype(np.float16).astype(np.float32)
        for name, array in weights.items()
    }


@pytest.fixture(scope="module")
def exact(weights, tokens):
    """The logits of fp64 by precision, and how far a right run may be from them."""
    config = full_config(
        {
            "d_model": SIZES.d_model,
            "n_layer": SIZES.layers,
            "vocab_size": SIZES.vocab,
            "ssm_cfg": {
                "layer": "Mamba2",
                "d_state": SIZES.d_state,
                "headdim": SIZES.head_dim,
                "ngroups": SIZES.groups,
            },
        }
    )
    forward = lambda w, tokens: mamba_ssm_logits(w, config, tokens)
    found = {}
    for precision in UNITS:
        own = {k: np.float64(v) for k, v in held(weights, precision).items()}
        found[precision] = (
            forward(own, tokens),
            tolerance(forward, own, tokens, precision),
        )
    return found


RIGHT = [one for one in runs() if not one.lost and not one.way.startswith("padded")]


@pytest.mark.parametrize("run", RIGHT, ids=lambda run: run.name)
def test_logits_are_those_of_fp64_but_for_roundings(found, exact, run):
    logits, apart = exact[run.precision]
    distance = np.abs(found[run.name]["logits"][0] - logits).max()
    assert distance < apart
    if run.precision == "fp16":
        # and are no better than fp16 allows: nothing ran in fp32 instead
        assert distance > apart / 1000


@pytest.mark.parametrize("precision", UNITS)
def test_a_lost_state_is_beyond_roundings(found, exact, precision):
    logits, apart = exact[precision]
    lost = found[Run(precision, "fp32", "chunks:9,rest", lost=True).name]["logits"][0]
    assert np.abs(lost - logits)[:9].max() < apart
    factor = {"fp32": 1000, "fp16": 2}[precision]
    assert np.abs(lost - logits)[9:].max() > factor * apart


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("way", ["batched:1", "packed:13", f"chunks:{CHUNK},rest"])
def test_company_and_a_cut_at_a_chunk_change_no_bit(found, precision, way):
    """Packed texts have chunks of their own, and an fp32 cache holds what registers
    held."""
    whole, other = (found[Run(precision, "fp32", w).name] for w in ("whole", way))
    assert same(whole, other)


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("way", SCHEDULED)
def test_other_texts_change_no_bit(found, precision, way):
    """Assert it of a prefix that another text computed, of blocks that are copied, of a
    text that was thrown out, and of steps and prefills in one forward pass."""
    alone, among = (
        found[Run(precision, "fp32", w).name] for w in (SCHEDULED[way], way)
    )
    assert same(alone, among)


@pytest.mark.parametrize("precision", UNITS)
def test_a_cut_inside_a_chunk_changes_bits(found, precision):
    whole, other = (
        found[Run(precision, "fp32", way).name]
        for way in ("whole", f"chunks:{CHUNK + 1},rest")
    )
    before = [(whole[n][:, : CHUNK + 1], other[n][:, : CHUNK + 1]) for n in whole]
    assert all(np.array_equal(*pair) for pair in before)
    assert not same(whole, other)


@pytest.mark.parametrize("precision", UNITS)
def test_a_rest_of_one_token_is_a_step(found, precision):
    rest, step = (
        found[Run(precision, "fp32", way).name]
        for way in (f"chunks:{SEQ - 1},rest", f"initial_state:{SEQ - 1}")
    )
    assert same(rest, step)


def test_a_cache_in_fp16_rounds_at_each_step(found):
    fine, coarse = (found[Run("fp16", s, "steps").name] for s in ("fp32", "fp16"))
    np.testing.assert_array_equal(fine["0.xz"], coarse["0.xz"])
    apart = np.abs(fine["0.scan_output"] - coarse["0.scan_output"])
    assert not apart[:, 0].any()  # the first token is read before the state is stored
    assert apart[:, 1:].any()


def test_a_cut_at_a_chunk_is_not_exact_in_fp16(found):
    """Its state is the fp32 carry rounded, which the next chunk reads so, as within one
    call, but the chunk after next gets what was made of the rounded one."""
    whole, cut = (
        found[Run("fp16", "fp16", w).name] for w in ("whole", "chunks:8,rest")
    )
    own, other = whole["0.scan_output"], cut["0.scan_output"]
    np.testing.assert_array_equal(own[:, : 2 * CHUNK], other[:, : 2 * CHUNK])
    assert not np.array_equal(own, other)


def test_what_is_stored_is_in_the_models_format(found):
    arrays = found[Run("fp16", "fp32", "whole").name]
    sites = {"residual", "norm", "xz", "conv", "scan_output", "gated", "out"}
    assert {n.partition(".")[2] for n in arrays if n != "logits"} == sites
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, array.astype(np.float16), name)


def test_eager_rounds_the_norm_twice(found):
    """The first norm reads the embedding in both, and differs by its inner rounding."""
    compiled, eager = (
        found[Run("fp16", "fp32", "whole", flags).name] for flags in ("", EAGER)
    )
    np.testing.assert_array_equal(compiled["0.residual"], eager["0.residual"])
    one, other = compiled["0.norm"], eager["0.norm"]
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, rtol=2 * UNITS["fp16"], atol=2.0**-24)


@pytest.mark.parametrize("precision", UNITS)
def test_a_ring_stores_the_state_once_it_is_full(found, precision):
    """Assert that tokens are read otherwise, and not far off: sums in another order,
    over tokens and states, and in fp16 what products of it and stores round."""
    plain, ring = (
        found[Run(precision, "fp32", "steps", flags).name] for flags in ("", REPLAY)
    )
    one, other = plain["0.scan_output"], ring["0.scan_output"]
    assert not np.array_equal(one, other)
    few = gamma(2 * (SEQ + SIZES.d_state), UNITS["fp32"])
    few += gamma(3, UNITS["fp16"]) if precision == "fp16" else 0.0
    np.testing.assert_allclose(one, other, rtol=0, atol=few * np.abs(one).max())


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize(
    ("way", "flags"),
    [("drafts:4,3", ""), ("drafts:4", ""), ("drafts:3,1", ""), ("steps", DRAFTS)],
)
def test_drafts_are_the_same_steps(found, precision, way, flags):
    """Assert bits, of kept tokens: an fp32 state holds what registers held."""
    steps = found[Run(precision, "fp32", "steps").name]
    window = found[Run(precision, "fp32", way, flags).name]
    assert set(steps) == set(window)
    for name in set(steps) - {"logits"}:
        np.testing.assert_array_equal(steps[name], window[name], name)


def test_a_window_stores_its_last_state_alone(found):
    """Assert that in fp16 numbers differ, and not in the first window: its states are
    read from registers."""
    steps, window = (found[Run("fp16", "fp16", w).name] for w in ("steps", "drafts:4"))
    one, other = steps["0.scan_output"], window["0.scan_output"]
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    assert (one[:, 1:4] != other[:, 1:4]).any()
    fine = found[Run("fp16", "fp32", "steps").name]["0.scan_output"]
    np.testing.assert_array_equal(fine[:, :4], other[:, :4])
    assert (fine[:, 4:] != other[:, 4:]).any()


def test_ways_that_vllm_has_not_are_refused(found):
    (said,) = found[Run("fp16", "fp32", "padded_left:2").name].values()
    assert str(said) == "usage: vLLM runs no text as padded_left:2"


@pytest.fixture(scope="module")
def mamba1(tmp_path_factory):
    """A Mamba-1, its config, tokens, and its runs."""
    config = full_config({"ssm_cfg": {"d_state": 6, "dt_rank": 2}})
    weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(3))
    folder = save(tmp_path_factory.mktemp("mamba1"), weights, config)
    tokens = np.random.default_rng(2).integers(0, 37, 24)
    np.save(folder / "tokens.npy", tokens[None])
    wanted = [Run(p, "fp32", way) for p in UNITS for way in ("steps", "whole")]
    return weights, config, tokens, computed(folder, wanted)


@pytest.mark.parametrize("precision", UNITS)
def test_mamba1_by_steps_is_that_of_fp64(mamba1, precision):
    weights, config, tokens, found = mamba1
    forward = lambda w, tokens: mamba_ssm_logits(w, config, tokens)
    own = {k: np.float64(v) for k, v in held(weights, precision).items()}
    arrays = found[Run(precision, "fp32", "steps").name]
    apart = tolerance(forward, own, tokens, precision)
    distance = np.abs(arrays["logits"][0] - forward(own, tokens)).max()
    assert distance < apart
    sites = {"residual", "norm", "xz", "conv", "x_proj", "dt", "gated", "out"}
    assert {n.partition(".")[2] for n in arrays if n != "logits"} == sites


def test_a_prefill_of_mamba1_is_refused_without_vllms_compiled_part(mamba1):
    *_, found = mamba1
    (said,) = found[Run("fp16", "fp32", "whole").name].values()
    assert str(said).startswith("refused: vLLM's prefill of Mamba-1 is compiled")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Rows of the study on a tiny network."""
    out = tmp_path_factory.mktemp("smoke") / "vllm_kernels.json"
    interpreted("-m", "analysis.vllm_kernels", "--smoke", "--jobs", "2", "--out", out)
    found = json.loads(out.read_text())
    assert not found["failed"]
    return found["rows"]


def test_whatever_runs_right_is_within_its_bounds(smoke):
    """Assert it of prefills, steps, hand-overs and company, against what is declared of
    vLLM."""
    right = [one for one in smoke if one["violations"] is not None and not one["fault"]]
    assert len(right) == 13
    for one in right:
        assert one["violations"] == one["unbounded"] == 0, one["case"]
        assert one["elements"] > 10_000
        # no bound is so wide that it says nothing: of an output's largest error
        assert one["t1_ratio"][0] < 100, one["case"]


def test_whatever_is_broken_is_beyond_them(smoke):
    broken = {one["fault"]: one["violations"] for one in smoke if one["fault"]}
    assert set(broken) == set(FAULTS)
    assert min(broken.values()) > 100


def test_an_emulation_stores_nearly_the_same(smoke):
    """Assert that what differs is what fp32 sums in another order, just beside a tie:
    of equal inputs no convolution, and of all sites one in a hundred."""
    for one in smoke:
        for site, counted in (one.get("differ") or {}).items():
            share = counted["differ"] / counted["elements"]
            most = 1e-3 if site == APART else 0.0 if site == "residual" else 2e-2
            assert share <= most, (one["case"], site)
