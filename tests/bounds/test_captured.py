"""Arrays captured on real kernels stay under their bounds; a moved value does not.

`python -m analysis.capture` wrote them on an NVIDIA GPU; nothing here needs one.
"""

import re

import jax.numpy as jnp
import pytest

import lyapunov
from analysis._cross_cases import TRAINED
from analysis.capture import FOLDER, LAYER, WANTED, Captured, Held, held, record, write
from lyapunov.bounds.local import operation_bounds
from lyapunov.implementations import Emulated, executions_for

from ..helpers import not_none


FILES = sorted(FOLDER.glob("*.npz"))
# T1 over the measured error in L2; Mamba-3's angles are bounded at their worst
MOST = {"mamba1": 20, "mamba2": 10, "mamba3": 1000, "gpt_neox": 20}
COARSER = {"bf16": 1, "fp16": 10, "fp32": 2e5}


def checked(run: Held, most: float | None = None) -> None:
    """No violation in any tensor, and a bound that says something."""
    assert run.t0
    for site, comparison in run.t0.items():
        assert int(comparison.violations.sum()) == 0, site
    assert run.violations == 0
    if most is None:
        most = MOST[run.about["model"]] * COARSER[run.about["precision"]]
    assert 1 <= run.t1_ratio <= not_none(most)


def moved(run: Held, site: str) -> int:
    """Violations at a site where one value is moved by a part in eight."""
    flow_of, flow, parameters, _, start = run.arguments
    array = run.record.stored[site]
    place = jnp.unravel_index(jnp.argmax(jnp.abs(array)), array.shape)
    other = run.record.stored | {site: array.at[place].multiply(1.125)}
    again = run.record._replace(stored=other)
    found = operation_bounds(flow_of, flow, again, parameters, start)
    return int(found[site].violations.sum())


@pytest.mark.skipif(not FILES, reason="nothing has been captured on a GPU yet")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if rest else ())
        for path in FILES
        for rest in [not re.fullmatch(r"mamba[123]-prefill-bf16", path.stem)]
    ],
)
def test_real_kernels_stay_within_their_bounds(path):
    """Assert it of every stored tensor, and that moved values are caught."""
    run = held(path)
    checked(run)
    for site in ("norm", "out"):
        assert moved(run, site) >= 1, site


@pytest.mark.skipif(not FILES, reason="nothing has been captured on a GPU yet")
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("mamba3-prefill-bf16", 10),
        pytest.param("mamba1-prefill-bf16", 20, marks=pytest.mark.slow),
        pytest.param("mamba2-prefill-bf16", 10, marks=pytest.mark.slow),
        pytest.param("mamba1-prefill-fp32", 4e6, marks=pytest.mark.slow),
    ],
)
def test_real_kernels_stay_within_what_was_measured_of_them(name, most):
    """Constants measured on the card that was captured hold there, and are tighter."""
    path = FOLDER / f"{name}.npz"
    measured = held(path, "measured")
    checked(measured, most)
    assert "measured over all fp32" in " ".join(measured.arguments[0].assumptions)


@pytest.mark.slow
def test_what_is_captured_is_read_again(tmp_path):
    """Write what the emulator did as if it were a GPU, and hold it to the bounds."""
    wanted = Captured("mamba1", "prefill", "bf16", "mamba_ssm")
    model = lyapunov.load(str(TRAINED["mamba1"]))
    execution = executions_for(model.config, ["bf16"], measure="mamba_ssm")[0]
    arrays = record(wanted, Emulated(execution))
    about = wanted._asdict() | {"layer": LAYER}
    path = write(tmp_path, wanted, arrays, about)
    checked(held(path))


def test_names_are_those_of_the_runs():
    """Assert that no file is left of a run that is not made any more."""
    assert {path.stem for path in FILES} <= {one.name for one in WANTED}
