"""Constants measured on a GPU: smaller bounds of the same run, said in the report."""

import pytest

import lyapunov
from lyapunov._errors import UsageError

from ..helpers import not_none


def bounded(constants: str):
    report = lyapunov.check(
        None,
        list(range(60, 92)),
        precisions=["fp32"],
        layers=[0, 1],
        constants=constants,
        floor=False,
        probes=0,
        ball=False,
    )
    return report, report.precisions[0]


@pytest.mark.slow
def test_measured_constants_give_smaller_bounds_that_hold():
    plain, documented = bounded("documented")
    report, measured = bounded("measured")
    assert report.settings["constants"] == "measured"
    assert not any("measured over all fp32" in x for x in plain.assumptions)
    assert any("measured over all fp32" in x for x in report.assumptions)
    for one, other in zip(documented.layers, measured.layers, strict=True):
        assert one.violations == other.violations == 0
        # nothing but the constants differs; sums keep their part of the bound
        assert (
            0.3 * not_none(one.bound_t1_l2)
            < not_none(other.bound_t1_l2)
            < not_none(one.bound_t1_l2)
        )
    assert plain.settings["constants"] == "documented"


def test_other_constants_are_refused():
    with pytest.raises(UsageError, match="constants is 'guessed'"):
        lyapunov.check(None, [1, 2, 3], constants="guessed")
