"""Benchmark 5, for a machine with an NVIDIA GPU and mamba_ssm: `pytest` this file.

`python -m analysis.speed` is what measures; this holds its goals. It has no name that
is collected with the others, as CI has no GPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """The study's results."""
    folder = tmp_path_factory.mktemp("speed")
    command = [sys.executable, "-m", "analysis.speed"]
    command += ["--out", str(folder / "speed.json")]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, timeout=600)
    return json.loads((folder / "speed.json").read_text())


def test_kernel_agrees_with_the_loop(found):
    """Assert values to 2^-40 of their terms, errors to 2^-40 of themselves."""
    assert found["agreement"]
    assert max(found["agreement"].values()) < 2.0**-40


def test_tensor_cores_sum_from_above(found):
    """Assert sums of magnitudes at least exact, and at most 0.4 percent above."""
    assert found["sums of magnitudes"]
    for least, most in found["sums of magnitudes"].values():
        assert 1 <= least <= most < 1.004


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_t0_and_t1_within_five_forwards(found, precision):
    """Assert no violation, and T0 and T1 within 5 of mamba_ssm's fp32 forwards."""
    row = found["bounds"][precision]
    assert row["violations"] == 0
    assert row["T0 and T1 s"] <= 5 * found["mamba_ssm"]["whole, s"]
