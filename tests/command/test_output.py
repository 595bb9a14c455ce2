"""Assert what goes to stdout, to stderr and into files, with which exit code."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lyapunov._errors import CheckpointNotFoundError, MissingExtraError
from lyapunov.report.json import schema

from ..helpers import not_none


LOST = CheckpointNotFoundError("no such path: lost", hint="look for it")


def test_table_on_stdout_nothing_on_stderr(run):
    result = run("model")
    assert result.exit_code == 0
    assert "✓ HELD" in result.stdout
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_findings_end_with_1_and_incomplete_with_2(run, fake, troubled, incomplete):
    fake.answers = {"bad": troubled, "part": incomplete}
    assert run("bad").exit_code == 1
    partial = run("part")
    assert partial.exit_code == 2
    assert partial.stderr == "hint: --allow-partial accepts skipped sublayers\n"
    assert run("good", "bad").exit_code == 1
    result = run("part", "bad", "good")
    assert result.exit_code == 2
    assert result.stdout.count("checkpoint  ") == 3


def test_json_is_one_valid_document_and_nothing_else(run, fake, troubled):
    fake.answers = {"bad": troubled}
    result = run("bad", "--json")
    assert result.exit_code == 1
    jsonschema.validate(json.loads(result.stdout), schema())
    both = json.loads(run("good", "bad", "--json").stdout)
    assert [entry["summary"]["verdict"] for entry in both["reports"]] == [
        "held",
        "findings",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LOST, "checkpoint_not_found"),
        (MissingExtraError("needs x", hint="pip install x"), "missing_extra"),
        (ZeroDivisionError("by nought"), "internal"),
        (MemoryError(), "memory"),
        (KeyError("k"), "internal"),
    ],
)
def test_errors_are_a_line_a_hint_and_with_json_a_document(run, fake, error, code):
    fake.answers = {"model": error}
    plain = run("model")
    assert plain.exit_code == 2
    assert plain.stdout == ""
    assert re.fullmatch(r"error: .+\nhint: .+\n", plain.stderr)
    result = run("model", "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message", "hint"}
    assert document["error"]["code"] == code


def test_usage_errors_are_documents_too(run):
    document = json.loads(run("--json", "--foo").stdout)
    assert document["error"]["code"] == "usage"
    assert "--foo" in document["error"]["message"]
    assert run("--foo", "--", "--json").stdout == ""


def test_tracebacks_only_with_debug(run, fake, monkeypatch):
    fake.answers = {"model": ZeroDivisionError("by nought")}
    assert "Traceback" not in run("model").stderr
    assert "Traceback" in run("model", "--debug").stderr
    monkeypatch.setenv("LYAPUNOV_DEBUG", "1")
    assert "Traceback" in run("model").stderr


def test_one_lost_checkpoint_does_not_stop_the_others(run, fake, tmp_path):
    fake.answers = {"lost": LOST}
    result = run("lost", "good", "-o", tmp_path / "r.json", "-o", tmp_path / "r.md")
    assert result.exit_code == 2
    assert "error: lost: no such path" in result.stderr
    assert "HELD" in result.stdout
    entries = json.loads((tmp_path / "r.json").read_text())["reports"]
    assert entries[0]["error"]["code"] == "checkpoint_not_found"
    jsonschema.validate(entries[1], schema())
    assert "Could not be checked" in (tmp_path / "r.md").read_text()


def test_files_by_suffix(run, tmp_path):
    names = ["r.json", "r.HTML", "r.md"]
    wanted = [part for name in names for part in ("-o", tmp_path / name)]
    result = run("model", *wanted)
    assert result.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), schema())
    assert (tmp_path / "r.HTML").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "r.md").read_text().startswith("# ")
    assert result.stderr.count("wrote ") == 3


@pytest.mark.parametrize("name", ["", "no/r.json", "r.txt", "r", "file/r.json"])
def test_bad_targets_are_refused_before_the_work(run, fake, tmp_path, name):
    (tmp_path / "file").write_text("")
    result = run("model", "-o", tmp_path / name)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr
    assert fake.opened == []
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_read_only_folders_are_refused_before_the_work(
    run, fake, tmp_path, monkeypatch
):
    """The refusal is the system's; root is not refused, so it is played here."""

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    result = run("model", "-o", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr
    assert fake.opened == []


def test_missing_html_libraries_are_named_before_the_work(run, fake, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("model", "-o", "r.html")
    assert result.exit_code == 2
    assert "pip install 'lyapunov-check[report]'" in result.stderr
    assert fake.opened == []


@pytest.mark.parametrize("blow", [KeyboardInterrupt, OSError(28, "No space left")])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    run, tmp_path, monkeypatch, blow
):
    target = tmp_path / "r.json"
    target.write_text("old")

    def fail(*args):
        raise blow

    monkeypatch.setattr("os.fsync", fail)
    result = run("model", "-o", target)
    assert result.exit_code == (130 if blow is KeyboardInterrupt else 2)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_new_file_gets_the_usual_mode_and_a_link_stays_a_link(run, tmp_path):
    real = tmp_path / "real.json"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "link.json").symlink_to(real)
    run("model", "-o", tmp_path / "link.json", "-o", tmp_path / "new.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads(real.read_text())["schema_version"] == 1
    assert real.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_interrupt_is_130_and_one_line(run, fake):
    fake.answers = {"model": KeyboardInterrupt()}
    result = run("model")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted\n"
    document = json.loads(run("model", "--json").stdout)
    assert document["error"]["code"] == "interrupted"


def test_interrupt_keeps_what_was_finished(run, fake, tmp_path):
    fake.answers = {"slow": KeyboardInterrupt()}
    result = run("good", "slow", "never", "-o", tmp_path / "r.json", "--json")
    assert result.exit_code == 130
    assert [source for source, _ in fake.opened] == ["good", "slow"]
    for text in (result.stdout, (tmp_path / "r.json").read_text()):
        done, stopped = json.loads(text)["reports"]
        jsonschema.validate(done, schema())
        assert stopped["error"]["code"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "environment", "colored"),
    [
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ([], {}, False),
    ],
)
def test_color(run, arguments, environment, colored):
    result = run("model", *arguments, env=environment)
    assert ("\x1b[" in result.stdout) is colored


def test_quiet_and_verbose(run, tmp_path):
    quiet = run("model", "-q", "-o", tmp_path / "r.md")
    assert "KL mean" not in quiet.stdout
    assert "HELD" in quiet.stdout
    assert quiet.stderr == ""
    assert "layers: 1 of 2" in run("model", "-v").stderr
    assert "layers" not in run("model", "-v", "--no-progress").stderr


def test_explain_and_architectures_and_version(run):
    assert "measured above the bound" in run("--explain", "lya003").stdout
    assert run("--explain", "all").stdout.count("LYA") >= 8
    assert "mamba1" in run("--list-architectures").stdout
    assert re.match(r"lyapunov-check \d", run("--version").stdout)


def test_help_is_as_agreed(run):
    """Spaces apart, which click's versions set differently."""
    golden = (Path(__file__).parent / "help.txt").read_text()
    result = run("--help", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert result.stdout.split() == golden.split()


# --- In a process of its own -----------------------------------------------------

ALONE = """
import sys, types
sys.path.insert(0, {tests!r})
import conftest
fake = conftest.FakeCheck()
module = types.ModuleType("lyapunov.questions._check")
module.check = fake.check
sys.modules["lyapunov.questions._check"] = module
from lyapunov.command import _session
_session._open = fake.open
_session._prepare_jax = lambda: None
{more}
from lyapunov.command._cli import main
main()
"""


def _alone(more="", *arguments, **options) -> Any:
    script = ALONE.format(tests=str(Path(__file__).parent), more=textwrap.dedent(more))
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path):
    # 100 kB, of which a pipe holds 64
    more = "fake.default = conftest.example.example_report(1200)"
    process = _alone(more, "model", "-o", tmp_path / "r.json")
    not_none(process.stdout).read(10)
    not_none(process.stdout).close()
    errors = not_none(process.stderr).read().decode()
    not_none(process.stderr).close()
    assert process.wait(60) == 0, errors
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert (tmp_path / "r.json").is_file()


def test_ctrl_c_while_writing_leaves_nothing_half(tmp_path):
    target = tmp_path / "r.json"
    target.write_text("old")
    more = """
    import os, signal, time
    # a shell in the background may have it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def slow(handle):
        print("writing", file=sys.stderr, flush=True)
        time.sleep(30)
    os.fsync = slow
    """
    process = _alone(more, "model", "-q", "-o", target)
    assert not_none(process.stderr).readline() == b"writing\n"
    assert len(list(tmp_path.iterdir())) == 2
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert errors == b"interrupted\n"
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_ascii_terminals_get_ascii():
    process = _alone("", "model", env={"PYTHONIOENCODING": "ascii"})
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.decode("ascii").count("HELD") == 1


def test_few_bounds_are_exit_code_2_with_a_hint(run, fake):
    summary = dataclasses.replace(
        fake.default.summary, verdict="unbounded", exit_code=2, bounded_share=0.3
    )
    fake.default = dataclasses.replace(fake.default, summary=summary)
    told = run("model")
    assert told.exit_code == 2
    assert "UNBOUNDED: 30 % of the elements" in " ".join(told.stdout.split())
    assert "--allow-partial accepts few" in told.stderr
