import importlib.util
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner


def _example():
    """The hand-made report, by path: it lies in another folder of tests."""
    path = Path(__file__).parents[1] / "report" / "example.py"
    spec = importlib.util.spec_from_file_location("example_of_a_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _example()


class FakeCheck:
    """Stands in for the library: records its calls, gives a report or raises."""

    def __init__(self):
        self.calls = []
        self.opened = []
        self.answers = {}
        self.default = example.example_report(2)

    def open(self, source, revision):
        self.opened.append((source, revision))
        answer = self.answers.get(source)
        if isinstance(answer, BaseException):
            raise answer
        return SimpleNamespace(
            source=source,
            config=SimpleNamespace(vocab_size=256),
            layout=SimpleNamespace(n_params=10**9),
            checkpoint=SimpleNamespace(config={}, folder=None),
        )

    def check(self, model, tokens, **options):
        self.calls.append((model, tokens, options))
        options["progress"].start(2, "layers")
        options["progress"].advance()
        return self.answers.get(model.source) or self.default


@pytest.fixture
def fake(monkeypatch):
    """The command over a fake check."""
    made = FakeCheck()
    module = types.ModuleType("lyapunov.questions._check")
    monkeypatch.setattr(module, "check", made.check, raising=False)
    monkeypatch.setitem(sys.modules, "lyapunov.questions._check", module)
    monkeypatch.setattr("lyapunov.command._session._open", made.open)
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    for name in ("NO_COLOR", "FORCE_COLOR", "LYAPUNOV_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def run(fake):
    """Run the command in this process: `run("--json", "x").exit_code`."""
    from lyapunov.command._cli import main

    def invoke(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], **options)

    return invoke


@pytest.fixture
def troubled():
    return example.troubled_report()


@pytest.fixture
def incomplete():
    return example.example_report(2, skipped=1)
