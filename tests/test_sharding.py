"""Several devices: the numbers of one device, from arrays that lie on all of them."""

import json
import os
import subprocess
import sys

import pytest

from lyapunov import _devices


# In a process of its own: JAX counts its devices once.
RUN = """
import json, sys
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
import lyapunov
from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.implementations import Emulated, Reference

folder, batch = sys.argv[1], int(sys.argv[2])
model = lyapunov.load(folder)
size = model.config.vocab_size
tokens = np.random.default_rng(0).integers(0, size, (batch, 24))
execution = mamba_ssm_prefill("bf16")
reference = next(Reference().trace(model, tokens))
record = next(Emulated(execution).trace(model, tokens))
p = with_operator_norms(model.parameters(0, execution))
flow, start = model.sublayers[0].flow, model.start(p)
t0 = operation_bounds(execution, flow, record, p, start)
t1 = sublayer_bound(execution, flow, record, p, model.parameters(0), start)
arrays = {
    "reference": reference.output,
    "emulated": record.output,
    "T0": t0["out"].bound_square,
    "T1": t1.comparison.bound_square,
}
rows = []
report = lyapunov.check(model, tokens, precisions=["bf16"], floor=False)
for precision in report.precisions:
    for row in precision.layers:
        rows.append([row.local_l2, row.bound_t1_l2, row.accumulated_l2])
        rows.append(list(row.bound_t0.values()))
        assert row.violations == 0
    rows.append([precision.output.measured_rel_l2, precision.output.sigma_t3])
print(json.dumps({
    "devices": {k: len(x.sharding.device_set) for k, x in arrays.items()},
    "first": {k: x.sharding.shard_shape(x.shape)[0] for k, x in arrays.items()},
    "arrays": {k: np.asarray(x).ravel().tolist() for k, x in arrays.items()},
    "rows": rows,
}))
"""


def run(folder, batch: int, devices: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(batch)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A folder with two random Mamba-1 layers."""
    torch = pytest.importorskip("torch")
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4
    )
    folder = tmp_path_factory.mktemp("small")
    MambaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("sequences", "there", "used"),
    [(8, 8, 8), (16, 8, 8), (3, 8, 3), (12, 8, 6), (7, 4, 1), (1, 8, 1), (8, 1, 1)],
)
def test_as_many_devices_as_divide_a_batch(sequences, there, used, monkeypatch):
    """Assert that each has as many sequences as any other."""
    present = [object() for _ in range(there)]
    monkeypatch.setattr(_devices, "devices", lambda: present)
    assert _devices.spread_over(sequences) == present[:used]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "used"), [(8, 8), (6, 6), (3, 3)])
def test_eight_devices_give_the_numbers_of_one(small_model, batch, used):
    """Assert a whole check on 8 devices: sharded by sequence, and the same numbers.

    Each device compiles the same program for its share of the batch; how XLA brackets
    the sums of 16 and 64 terms may depend on the share: 2^-40 is far above that, and
    far below what one wrong token or layer would change.
    """
    one, eight = run(small_model, batch, 1), run(small_model, batch, 8)
    assert set(one["devices"].values()) == {1}
    assert set(eight["devices"].values()) == {used}
    assert set(eight["first"].values()) == {batch // used}
    for name, values in one["arrays"].items():
        assert eight["arrays"][name] == pytest.approx(values, rel=2.0**-40, abs=1e-12)
    for a, b in zip(one["rows"], eight["rows"], strict=True):
        assert b == pytest.approx(a, rel=2.0**-30)
