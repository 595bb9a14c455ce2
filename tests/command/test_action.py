"""Assert what GitHub's action runs, with stand-ins for the command and the summary."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from lyapunov.command._cli import main


ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
CHECK = next(step for step in STEPS if step.get("id") == "check")

STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$SEEN"
for word in "$@"; do
  case "$word" in *.md) printf '# told' > "$word";; *.json|*.html) : > "$word";; esac
done
exit "$CODE"
"""


@pytest.fixture
def step(tmp_path):
    """Run the step; gives its exit code, what the command was given, and the files."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "lyapunov-check"
    command.write_text(STAND_IN)
    command.chmod(0o755)

    def run(code=0, **inputs):
        names = {name: "" for name in CHECK["env"]} | {"FAIL_ON": "error"}
        files = {
            name: str(tmp_path / name)
            for name in ("SEEN", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")
        }
        for file in files.values():
            Path(file).unlink(missing_ok=True)
        own = {"FOLDER": str(tmp_path), "CODE": str(code)}
        own["PATH"] = f"{command.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", CHECK["run"]],
            env=names | files | own | inputs,
            cwd=tmp_path,
        )
        found = {
            name: Path(file).read_text() if Path(file).exists() else ""
            for name, file in files.items()
        }
        return done.returncode, found.pop("SEEN").splitlines(), found

    return run


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_summary_has_the_report_and_the_job_its_exit_code(step, tmp_path, code):
    ended, _, files = step(code)
    assert ended == code
    assert files["GITHUB_STEP_SUMMARY"] == "# told"
    made = tmp_path / "lyapunov-check"
    assert files["GITHUB_OUTPUT"] == f"report={made}.json\npage={made}.html\n"


def test_what_is_given_reaches_the_command_word_by_word(step, tmp_path):
    hostile = "a b; touch gone $(touch gone)"
    _, words, _ = step(
        CHECKPOINT=hostile, ARGUMENTS="--effort quick --seed 3", BASELINE="old one.json"
    )
    assert words[:4] == ["--effort", "quick", "--seed", "3"]
    assert words[words.index("--baseline") + 1] == "old one.json"
    assert words[-2:] == ["--", hostile]
    assert not (tmp_path / "gone").exists()
    assert "--" not in step()[1]


def test_options_are_the_commands_own(step):
    _, words, _ = step(CHECKPOINT="x", BASELINE="b.json", ARGUMENTS="--effort quick")
    typed = main.make_context("lyapunov-check", list(words)).params
    assert typed["checkpoints"] == ("x",)
    assert (typed["effort"], typed["annotations"]) == ("quick", "github")
    assert {Path(file).suffix for file in typed["output"]} == {".json", ".html", ".md"}


def test_inputs_are_variables_and_every_one_is_read():
    for one in STEPS:
        assert "${{" not in one.get("run", ""), "text of an input would be run"
        if "uses" in one:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", one["uses"])
        else:
            assert one["shell"] == "bash"
    text = (ROOT / "action.yml").read_text()
    for name in ACTION["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in text
    for step in STEPS:
        for name in set(step.get("env", {})) & {"VERSION", *CHECK["env"]}:
            assert f"${name}" in step["run"].replace("{", "")


def test_scripts_are_of_one_shell():
    for one in STEPS:
        if "run" in one:
            subprocess.run(["bash", "-n", "-c", one["run"]], check=True)
    install = next(step for step in STEPS if step.get("name") == "Install")
    words = shlex.split(install["run"].replace("\\\n", ""))
    assert words[-1] == "lyapunov-check[hub,report]$VERSION"


def test_annotations_stand_beside_the_document(run, fake, troubled):
    fake.answers = {"bad": troubled}
    result = run("bad", "--json", "--annotations", "github")
    assert json.loads(result.stdout)["summary"]["verdict"] == "findings"
    assert result.stderr.count("\n::error title=LYA") >= 1
    assert "::" not in run("bad", "--json").stderr
