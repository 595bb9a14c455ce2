"""Arrays captured on real kernels stay under their bounds; a moved value does not.

`python -m analysis.capture` wrote them on an NVIDIA GPU; nothing here needs one.
"""

import json
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from analysis._cross_cases import TRAINED
from analysis.capture import FOLDER, LAYER, WANTED, Captured, record, write
from lyapunov._trace import SublayerRecord
from lyapunov.bounds.local import (
    SublayerBound,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from lyapunov.executions import executions_for
from lyapunov.runners import Emulated


FILES = sorted(FOLDER.glob("*.npz"))
# T1 over the measured error in L2; Mamba-3's angles are bounded at their worst
MOST = {"mamba1": 20, "mamba2": 10, "mamba3": 1000, "gpt_neox": 20}
COARSER = {"bf16": 1, "fp16": 10, "fp32": 2e5}


class Run(NamedTuple):
    """What is held to bounds, and its bounds."""

    about: dict
    record: SublayerRecord
    t0: dict
    t1: SublayerBound
    arguments: tuple


def read(path) -> tuple[dict, dict]:
    """(about, arrays); nothing in the file is code."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    return json.loads(str(arrays.pop("about"))), arrays


def held(path) -> Run:
    about, arrays = read(path)
    model = lyapunov.load(str(TRAINED[about["model"]]))
    execution = executions_for(
        model.config,
        [about["precision"]],
        architecture=model.layout.architecture,
        mode=about["mode"],
        measure=about["measure"],
    )[0]
    sublayer = model.sublayers[about["layer"]]
    of = execution.of(sublayer.kind)
    wide = lambda name: jnp.asarray(arrays[name], jnp.float64)
    one = SublayerRecord(
        sublayer.layer,
        sublayer.kind,
        wide("incoming/residual"),
        wide("incoming/hidden"),
        wide("output"),
        {
            name.removeprefix("stored/"): wide(name)
            for name in arrays
            if name.startswith("stored/")
        },
        {},
    )
    parameters = with_operator_norms(model.parameters(sublayer.layer, of))
    original = with_operator_norms(model.parameters(sublayer.layer))
    start = model.start(parameters)
    t0 = operation_bounds(of, sublayer.flow, one, parameters, start)
    arguments = of, sublayer.flow, parameters, original, start
    t1 = sublayer_bound(of, sublayer.flow, one, *arguments[2:])
    return Run(about, one, t0, t1, arguments)


def checked(run: Run) -> None:
    """No violation in any tensor, and a bound that says something."""
    assert run.t0
    for site, comparison in run.t0.items():
        assert int(comparison.violations.sum()) == 0, site
    found = run.t1.comparison
    assert int(found.violations.sum()) == 0
    ratio = float(jnp.sqrt(found.bound_square.sum() / found.measured_square.sum()))
    most = MOST[run.about["model"]] * COARSER[run.about["precision"]]
    assert 1 <= ratio <= most


def moved(run: Run, site: str) -> int:
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
