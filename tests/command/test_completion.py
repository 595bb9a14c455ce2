"""Assert that shells complete paths, codes and values, and where that is installed."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def in_bash(script, words, _):
    """COMPREPLY of bash, for the last of the words."""
    quoted = " ".join(map(shlex.quote, words))
    line = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        f"_lyapunov_check_completion {NAME}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return shown(["bash", "--norc", "-c", line])


def in_fish(script, words, _):
    """What fish offers behind the words, descriptions and all."""
    line = f"source {script}; complete -C {shlex.quote(' '.join(words))}"
    return shown(["fish", "--no-config", "-c", line])


def in_zsh(script, words, last):
    """What a zsh at a terminal shows after a tab behind the words, up to the last."""
    begin = (
        f"fpath=({script.parent} $fpath); autoload -Uz compinit; compinit -u -D; "
        "PS1='ready''> '\n"
    )
    terminal, inside = pty.openpty()
    ends: Any = {"stdin": inside, "stdout": inside, "stderr": inside}
    with subprocess.Popen(["zsh", "-f", "-i"], env=there(), **ends) as shell:
        try:
            os.write(terminal, begin.encode())
            until(terminal, "ready> ")
            os.write(terminal, f"{' '.join(words)}\t".encode())
            return until(terminal, last)
        finally:
            shell.kill()
            os.close(terminal)
            os.close(inside)


def until(terminal, last):
    """What a terminal shows until this is there, without how it is drawn."""
    text = ""
    while select.select([terminal], [], [], 30.0)[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        if last in text:
            return text
    raise AssertionError(text)


def there():
    """The environment with the command of this Python's."""
    mine = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": mine, "TERM": "xterm"}


def shown(command):
    done = subprocess.run(command, capture_output=True, text=True, env=there())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    not (Path(sys.executable).parent / NAME).exists(), reason="not installed"
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_completes(run, home, shell, monkeypatch):
    """Assert codes, a choice, an option and a path, each by a tab in the shell."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    run("--install-completion", shell)
    (script,) = (path for path in home.rglob("*") if path.is_file())
    offers = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    known = [code for code in CATALOGUE if code.startswith("LYA00")]
    codes = offers(script, [NAME, "--explain", "LYA00"], known[-1])
    assert all(code in codes for code in known)
    assert "LYA010" not in codes
    for word, whole in (("--mode p", "prefill"), ("--round", "--round-weights")):
        assert whole in offers(script, [NAME, *word.split()], whole)
    if shell != "bash":  # which completes paths itself, behind the function
        (home / "weights").mkdir()
        monkeypatch.chdir(home)
        assert "weights/" in offers(script, [NAME, "./wei"], "weights/")


def test_every_choice_is_completed():
    """Assert of all options with choices that they are offered."""
    # a bare context would have main keep a help option of another name
    context = main.make_context(NAME, [], resilient_parsing=True)
    for param in main.params:
        if isinstance(param.type, click.Choice):
            offered = param.shell_complete(context, "")
            assert [one.value for one in offered] == list(param.type.choices)
