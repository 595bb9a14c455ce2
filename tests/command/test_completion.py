"""Assert that shells complete paths, codes and values, and where that is installed."""

import os
import subprocess

import click
import pytest
from click.shell_completion import ShellComplete

from lyapunov.command._cli import main
from lyapunov.command._completion import NAME, VARIABLE
from lyapunov.findings import CATALOGUE


def completed(*words):
    """Kind and value of what is offered for the last word."""
    *before, last = words
    found = ShellComplete(main, {}, NAME, VARIABLE).get_completions(before, last)
    return [(one.type, one.value) for one in found]


@pytest.mark.parametrize(
    "before",
    [[], ["model"], ["--tokens"], ["--against"], ["--baseline"], ["-o"], ["--show"]],
)
def test_paths_are_the_shells(before):
    assert completed(*before, "./m") == [("file", "./m")]


@pytest.mark.parametrize("option", ["--select", "--ignore", "--explain"])
def test_codes_are_offered(option):
    assert completed(option, "") == [("plain", code) for code in CATALOGUE]
    assert completed(option, "lya00") == [
        ("plain", code) for code in CATALOGUE if code.startswith("LYA00")
    ]


def test_values_and_options_are_offered():
    assert completed("--mode", "p") == [("plain", "prefill")]
    assert ("plain", "--install-completion") in completed("--inst")


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("shell", "place", "says"),
    [
        ("bash", ".local/share/bash-completion/completions/lyapunov-check", "bashrc"),
        ("zsh", ".local/share/zsh/site-functions/_lyapunov-check", "fpath=("),
        ("fish", ".config/fish/completions/lyapunov-check.fish", "a new shell"),
    ],
)
def test_it_is_installed_where_the_shell_looks(run, home, shell, place, says):
    result = run("--install-completion", shell)
    assert result.exit_code == 0
    assert f"wrote {home / place}" in result.stdout
    assert says in result.stdout
    text = (home / place).read_text()
    assert f"{VARIABLE}={shell}_complete" in text
    assert [p for p in home.rglob("*") if p.is_file()] == [home / place]


def test_another_place_is_obeyed_and_a_file_in_the_way_is_said(run, home, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "else"))
    assert run("--install-completion", "bash").exit_code == 0
    assert (home / "else/bash-completion/completions/lyapunov-check").exists()
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "file"))
    result = run("--install-completion", "bash")
    assert result.exit_code == 2
    assert "hint: or put into your shell's file: eval" in result.stderr


def test_bash_takes_what_is_written(run, home):
    run("--install-completion", "bash")
    script = home / ".local/share/bash-completion/completions/lyapunov-check"
    line = f"source {script}; complete -p lyapunov-check"
    done = subprocess.run(
        ["bash", "--norc", "-c", line], capture_output=True, text=True, env=os.environ
    )
    assert "_lyapunov_check_completion" in done.stdout


def test_every_choice_is_completed():
    """Assert of all options with choices that they are offered."""
    context = click.Context(main)
    for param in main.params:
        if isinstance(param.type, click.Choice):
            offered = param.shell_complete(context, "")
            assert [one.value for one in offered] == list(param.type.choices)
