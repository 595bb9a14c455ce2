"""SGLang's own operators in Triton's interpreter, run as `test_vllm_interpreted` does.

LYAPUNOV_TRITON_PYTHON and LYAPUNOV_SGLANG_FILES say where they are: a folder with
`sglang/kernels/ops/mamba` and `sglang/kernels/ops/attention/fla` of SGLang 0.5.23's
wheel. The oracle is NumPy in fp64 (`oracles.networks.mamba_ssm`).
"""

import json
import os

import numpy as np
import pytest

from analysis._sglang_cases import FAULTS, WINDOWS
from tests.executions import ssd_models as ssd

from .test_vllm_interpreted import (
    CHUNK,
    PYTHON,
    SEQ,
    SIZES,
    UNITS,
    computed,
    exact as exact,
    interpreted,
    same,
    tokens as tokens,
    weights as weights,
)
from .vllm_runs import Run


FILES = os.environ.get("LYAPUNOV_SGLANG_FILES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PYTHON and FILES),
        reason="LYAPUNOV_TRITON_PYTHON and LYAPUNOV_SGLANG_FILES are not set",
    ),
]

WAYS = (
    *("whole", "steps", "initial_state:13", f"chunks:{CHUNK + 1},rest", "resumed:9"),
    *("resumed:8,13", "preempted:13", "preempted:13,8", "batched:1", "packed:13"),
    f"packed:{2 * CHUNK}",
)
ALIKE = {
    "resumed:9": f"chunks:{CHUNK + 1},rest",
    "preempted:13": "initial_state:13",
    "preempted:13,8": "resumed:8,13",
    # a whole number of chunks stands in front
    f"packed:{2 * CHUNK}": "whole",
    "batched:1": "whole",
}


def of(way, precision="fp32", state="fp32", *, lost=False) -> Run:
    return Run(precision, state, way, WINDOWS[precision], lost, "sglang")


RIGHT = [of(way, precision) for precision in UNITS for way in WAYS]
RIGHT += [of(way, "fp16", "fp16") for way in ("whole", "steps", "chunks:8,rest")]
LOST = [of("chunks:9,rest", precision, lost=True) for precision in UNITS]


@pytest.fixture(scope="module")
def found(tmp_path_factory, weights, tokens):
    """Everything that was run, by name."""
    assert SEQ % CHUNK == 0
    folder = ssd.save(tmp_path_factory.mktemp("mamba2"), weights, SIZES)
    np.save(folder / "tokens.npy", tokens[None])
    return computed(folder, [*RIGHT, *LOST])


@pytest.mark.parametrize("run", RIGHT, ids=lambda run: run.name)
def test_logits_are_those_of_fp64_but_for_roundings(found, exact, run):
    logits, apart = exact[run.precision]
    distance = np.abs(found[run.name]["logits"][0] - logits).max()
    assert distance < apart
    if run.precision == "fp16":
        assert distance > apart / 1000


@pytest.mark.parametrize("run", LOST, ids=lambda run: run.name)
def test_a_lost_state_is_beyond_roundings(found, exact, run):
    logits, apart = exact[run.precision]
    lost = found[run.name]["logits"][0]
    factor = {"fp32": 1000, "fp16": 2}[run.precision]
    assert np.abs(lost - logits)[9:].max() > factor * apart


@pytest.mark.parametrize("precision", UNITS)
@pytest.mark.parametrize("way", ALIKE)
def test_other_texts_change_no_bit(found, precision, way):
    """Assert it where chunks are cut alike."""
    alone, among = (found[of(w, precision).name] for w in (ALIKE[way], way))
    assert same(alone, among)


@pytest.mark.parametrize("precision", UNITS)
def test_a_text_that_shares_a_chunk_is_not_alone(found, precision):
    """Assert that behind 13 tokens some bits are others, and none in front of the
    scan."""
    alone, behind = (found[of(w, precision).name] for w in ("whole", "packed:13"))
    assert not same(alone, behind)
    for site in ("residual", "norm", "xz", "conv"):
        np.testing.assert_array_equal(alone[f"0.{site}"], behind[f"0.{site}"], site)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Rows of the study on a tiny network."""
    out = tmp_path_factory.mktemp("smoke") / "sglang_kernels.json"
    interpreted("-m", "analysis.sglang_kernels", "--smoke", "--jobs", "2", "--out", out)
    found = json.loads(out.read_text())
    assert not found["failed"]
    return found["rows"]


def test_whatever_runs_right_is_within_its_bounds(smoke):
    """Assert it against what is declared of SGLang, behind other texts, too."""
    right = [one for one in smoke if not one["fault"]]
    assert len(right) == 7
    for one in right:
        assert one["violations"] == one["unbounded"] == 0, one["case"]
        assert one["elements"] > 10_000
        assert one["t1_ratio"][0] < 100, one["case"]


def test_whatever_is_broken_is_beyond_them(smoke):
    broken = {one["fault"]: one["violations"] for one in smoke if one["fault"]}
    assert set(broken) == set(FAULTS)
    assert min(broken.values()) > 100
