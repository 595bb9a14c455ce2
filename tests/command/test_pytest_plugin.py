"""Assert that pytest's plugin holds a checkpoint, and costs other tests nothing."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from lyapunov.questions import check


ROOT = Path(__file__).parents[2]
PLUGIN = "pytest_lyapunov_check"

TESTS = """
import os, sys
import pytest
import {plugin}
assert "lyapunov" not in sys.modules and "jax" not in sys.modules
FLAGS = os.environ.get("XLA_FLAGS")

def test_of_others():
    assert os.environ.get("XLA_FLAGS") == FLAGS
    assert "lyapunov" not in sys.modules

@pytest.fixture
def answer(monkeypatch):
    sys.path.insert(0, {folder!r})
    from conftest import example
    import lyapunov
    given = []
    def put(report):
        def check(*arguments, **options):
            given.append((arguments, options))
            return report
        monkeypatch.setattr(lyapunov, "check", check)
        return given
    put.example = example
    return put

def test_held(answer, lyapunov_check):
    report = answer.example.example_report(1)
    given = answer(report)
    assert lyapunov_check("./model", effort="quick") is report
    assert given == [(("./model", None), {{"effort": "quick"}})]

def test_not_held(answer, lyapunov_check):
    answer(answer.example.troubled_report())
    lyapunov_check()

def test_warnings(answer, lyapunov_check):
    answer(answer.example.example_report(1))
    lyapunov_check(fail_on="warning")
"""


def test_a_test_fails_in_a_few_lines_where_something_does_not_hold(tmp_path):
    folder = str(Path(__file__).parent)
    path = tmp_path / "test_model.py"
    path.write_text(TESTS.format(plugin=PLUGIN, folder=folder))
    options = ["-p", PLUGIN, "-p", "no:cacheprovider", "-q", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "findings (fail_on='error')" in done.stdout
    assert "findings (fail_on='warning')" in done.stdout
    assert "error LYA003" in done.stdout
    assert "_shown.py" not in done.stdout


def test_what_is_declared_is_there():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert declared["project"]["entry-points"]["pytest11"] == {"lyapunov-check": PLUGIN}
    wheel = declared["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert f"{PLUGIN}.py" in wheel["only-include"]


def test_the_fixture_takes_what_check_takes():
    import inspect

    names = list(inspect.signature(check).parameters)
    assert names[:2] == ["model", "tokens"]
    assert "fail_on" in names
