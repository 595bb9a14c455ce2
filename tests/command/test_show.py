"""Assert that an earlier report is shown again, in any form, without a check."""

import json

import pytest


def saved(run, folder):
    path = folder / "r.json"
    run("model", "-q", "-o", path)
    return path


def test_it_is_shown_as_it_was(run, fake, tmp_path):
    path = saved(run, tmp_path)
    first = run("model")
    calls = len(fake.calls)
    again = run("--show", path)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert len(fake.calls) == calls
    assert run("--show", path, "--json").stdout == path.read_text()


def test_it_is_written_in_other_forms(run, tmp_path):
    path = saved(run, tmp_path)
    names = ["p.md", "p.tex", "p.csv"]
    told = run("--show", path, *(x for n in names for x in ("-o", tmp_path / n)))
    assert told.stderr.count("wrote ") == len(names)
    for name in names:
        assert (tmp_path / name).stat().st_size > 500


def test_findings_do_not_fail_what_only_shows(run, fake, troubled, tmp_path):
    fake.answers = {"model": troubled}
    result = run("--show", saved(run, tmp_path))
    assert result.exit_code == 0
    assert "FINDINGS" in result.stdout


def test_another_version_is_told(run, tmp_path):
    path = saved(run, tmp_path)
    document = json.loads(path.read_text())
    document["tool"]["version"] = "0.0.9"
    path.write_text(json.dumps(document))
    assert "was written by version 0.0.9" in run("--show", path).stderr
    assert run("--show", path, "-q").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model"], "checks nothing, and model is to be checked"),
        (["--precision", "bf16"], "--precision is not for --show"),
        (["--fail-on", "warning"], "--fail-on is not for --show"),
        (["--plan"], "--plan is not for --show"),
        (["--seed", "3"], "--seed is not for --show"),
    ],
)
def test_what_nobody_would_look_at_is_refused(run, tmp_path, arguments, says):
    result = run("--show", saved(run, tmp_path), *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_no_report_is_one_line_and_a_hint(run, tmp_path):
    (tmp_path / "r.json").write_text('{"schema_version": 7}')
    result = run("--show", tmp_path / "r.json", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "report"
