"""Assert that what the README says to type works as it stands there.

Every Python block and every command is read from the README and run in a folder that
holds small checkpoints and files under the names that it uses. What a user would add
to make a run short (`--length 8`) is added where the line does not say its tokens.
"""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import lyapunov
from docs.run import SIZES, prepare
from lyapunov.command._cli import main
from oracles.checkpoints.transformers import make

from ..command.conftest import FakeCheck
from ..live.test_trainer import Watch, trainer


README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if language == ""
    for line in text.splitlines()
    if line.startswith("lyapunov-check ")
]
INLINE = re.findall(r"`(lyapunov(?:\.\w+)+\([^`]*)`", README)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README names."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("readme")
    prepare(folder)
    (folder / "mamba-130m-hf").symlink_to(folder / "model")
    ids, model = np.load(folder / "ids.npy"), lyapunov.load(folder / "model")
    (execution,) = lyapunov.implementations.executions_for(
        model.config, ["bf16"], measure="emulated"
    )
    runner = lyapunov.implementations.Emulated(execution)
    lyapunov.write_dump(
        folder / "dump.npz",
        lyapunov.trace(model, ids, runner=runner),
        ids,
        implementation="mamba_ssm",
        precision="bf16",
    )
    return folder


def names_of(command: str, place: Path) -> list[str]:
    """The words of a line, each path with its file there."""
    words = shlex.split(command)[1:]
    paths = [w for w in words if w.startswith("./") or w.endswith((".npy", ".npz"))]
    assert paths
    for path in paths:
        assert (place / path).exists(), path
    return words


def test_there_is_something_to_run():
    assert len(PYTHON) >= 1
    assert len(COMMANDS) >= 5
    assert len(INLINE) >= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_every_line_are_there(command, place, monkeypatch):
    """Assert that files are read and options taken, all but the long work."""
    monkeypatch.chdir(place)
    words = names_of(command, place)
    monkeypatch.setattr("lyapunov.questions._check.check", FakeCheck().check)
    monkeypatch.setattr("lyapunov.questions._audit.audit", lambda *_, **__: reported())
    monkeypatch.setattr("lyapunov.command._session._show", lambda *_, **__: None)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).stat().st_size > 1000


def reported():
    fake = FakeCheck()
    return fake.default


def marks(command: str) -> list:
    on_a_gpu = "--measure mamba_ssm" in command
    return [pytest.mark.cuda if on_a_gpu else pytest.mark.slow]


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=marks(line)) for line in COMMANDS]
)
def test_every_line_runs(command, place):
    words = names_of(command, place)
    if not {"--tokens", "--audit", "--list"} & set(words):
        words += ["--length", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "lyapunov", *words, "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        env=with_this_tree(),
    )
    # a network of random weights may be found fault with; it is checked all the same
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    if report.get("kind") == "ranking":
        assert report["matrices"]
    elif "--list" in words:
        assert all(one["blocks"] for one in report["files"])
    else:
        assert report["summary"]["checked"] > 0 or report["variants"]
    if "-o" in words:
        assert "<svg" in (place / words[words.index("-o") + 1]).read_text("utf-8")


def with_this_tree() -> dict[str, str]:
    import os

    root = str(Path(lyapunov.__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


class NoTrainer:
    def __init__(self):
        self.callbacks = []

    def add_callback(self, callback):
        self.callbacks.append(callback)


@pytest.mark.parametrize("block", PYTHON)
def test_the_calls_of_every_block_are_there(block, place, monkeypatch):
    """Assert names and arguments, all but the long work."""
    monkeypatch.chdir(place)
    asked = create_autospec(lyapunov.check)
    monkeypatch.setattr(lyapunov, "check", asked)
    given = {"tokens": np.arange(8) % 40, "trainer": NoTrainer()}
    exec(compile(block, "README.md", "exec"), given)
    assert lyapunov.check.call_count == block.count("lyapunov.check(")
    assert len(given["trainer"].callbacks) == block.count("add_callback(")


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore::DeprecationWarning")
def test_every_block_runs(block, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    watch = Watch()
    run = trainer(make("mamba", **SIZES), tmp_path, [watch], steps=1)
    given = {"tokens": np.arange(8) % 40, "trainer": run}
    with jax.enable_x64(False):
        exec(compile(block, "README.md", "exec"), given)
        run.train()
    assert given["report"].summary.checked == 2
    assert given["model"].logits(given["tokens"]).dtype == np.float64
    assert any("lyapunov/max_exponent" in log for log in watch.logs)


@pytest.mark.parametrize("call", INLINE)
def test_calls_within_the_text_run(call):
    """Assert it of what has arguments, with a driven system of three coordinates."""
    ast.parse(call)
    if "..." in call:
        pytest.skip("not all of it is said")
    given = {
        "lyapunov": lyapunov,
        "step": lambda x, u: jnp.tanh(0.5 * x + u),
        "state": jnp.zeros(3),
        "inputs": jnp.sin(jnp.arange(3000.0)).reshape(-1, 3),
    }
    with jax.enable_x64(False):
        found = eval(call, given)
    assert found.shape == (3, 2)
    assert np.isfinite(found).all()
