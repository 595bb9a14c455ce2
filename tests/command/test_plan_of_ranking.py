"""What a ranking of matrices would cost, said before it is run."""

import numpy as np
import pytest
from click.testing import CliRunner

import lyapunov
from lyapunov.command._cli import main
from lyapunov.models import Tokens
from lyapunov.questions import _rank_weights
from lyapunov.questions._plan_ranking import ALONE, BACK, planned_ranking


@pytest.fixture(scope="module")
def model():
    return lyapunov.load()


def plan(model, length, **named):
    tokens = Tokens(np.zeros((1, length), np.int64), "zeros")
    return planned_ranking(model, tokens, **{"format": "int4", **named})


def test_a_plan_of_a_ranking_has_its_stages_and_does_not_run_them(model, monkeypatch):
    def run(*arguments, **named):
        raise AssertionError("the work began")

    monkeypatch.setattr(_rank_weights, "derivatives_of", run)
    found = plan(model, 64)
    assert [stage.name for stage in found.stages] == ["reference", BACK, ALONE]
    assert all(stage.seconds > 0 and stage.bytes > 0 for stage in found.stages)
    assert found.seconds >= found.warm_seconds
    assert "int4-group128" in found.executions[0]
    assert "way back" in str(found)
    # memory of the way back grows with the text; forwards do not
    longer = plan(model, 1024)
    assert longer.peak_bytes > found.peak_bytes
    forwards = [[stage.forwards for stage in p.stages] for p in (found, longer)]
    assert forwards[0] == forwards[1]


def test_what_a_ranking_refuses_its_plan_refuses(model):
    for given in ({"format": "int3"}, {"format": "int8:attention"}):
        with pytest.raises(lyapunov.LyapunovError) as caught:
            plan(model, 8, **given)
        assert caught.value.hint


def test_the_command_plans_a_ranking():
    line = ["--rank-weights", "int4", "--plan", "--length", "16"]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert "single matrices" in result.stdout
