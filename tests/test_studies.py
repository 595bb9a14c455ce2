"""Studies and experiments as commands: `--help`, what they need, where they write."""

import ast
import importlib
import json
from pathlib import Path

import pytest

from studies import study as command
from studies.problems import Problem
from studies.study import SCRATCH, Study, promote, refuse_failed


ROOT = Path(__file__).parents[1]


def _is_command(path: Path) -> bool:
    """Whether `python -m` runs it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        for node in tree.body
    )


COMMANDS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("analysis", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if _is_command(path)
)


def test_all_commands_are_found():
    assert len(COMMANDS) >= 29
    assert {"analysis.peers", "analysis.cells", "experiments.compare"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_runs_nothing(name, capsys, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(
        Study, "begin", lambda *_: pytest.fail("the study began instead of helping")
    )
    with pytest.raises(SystemExit) as left:
        module.main(["--help"])
    # lines break where they are full
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert shown.startswith(f"usage: python -m {name} ")
    assert "needs " in shown
    assert "takes " in shown
    assert module.STUDY.name == name
    assert ("--commit" in shown) == (module.STUDY.committed is not None)


@pytest.mark.parametrize("name", COMMANDS)
def test_committed_files_are_written_where_asked_for_alone(name):
    found = importlib.import_module(name).STUDY
    parser = found.parser("A study.")
    if found.committed is None:
        assert "out" not in parser.parse_args([])
        return
    assert found.committed.parent.exists()
    assert found.committed.is_relative_to(ROOT)
    assert parser.parse_args([]).out == SCRATCH / found.committed.name
    assert parser.parse_args(["--commit"]).out == found.committed
    with pytest.raises(SystemExit):
        parser.parse_args(["--commit", "--out", "elsewhere.json"])


def test_scratch_is_ignored_by_git():
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert f"{SCRATCH.parts[0]}/" in lines


def test_what_is_missing_is_said_before_anything_is_made(tmp_path, capsys):
    out = tmp_path / "folder" / "result.json"
    needy = Study("analysis.needy", "a minute", out, ("no_such_module",))
    with pytest.raises(Problem, match="not installed: no_such_module"):
        needy.begin(out)
    assert not out.parent.exists()
    assert "analysis.needy: needs no_such_module; takes a minute" in (
        capsys.readouterr().err
    )


def test_a_failed_study_replaces_nothing(tmp_path):
    path = tmp_path / "result.json"
    refuse_failed(path, ["a part: did not run"])  # nothing to lose yet
    path.write_text("good")
    refuse_failed(path, [])
    with pytest.raises(Problem, match=r"1 of its parts failed \(a part: did not run\)"):
        refuse_failed(path, ["a part: did not run"])
    assert path.read_text() == "good"


def test_results_written_on_the_way_come_into_place_whole(tmp_path):
    working, out = tmp_path / "scratch" / "speed.json", tmp_path / "speed.json"
    working.parent.mkdir()
    for suffix in (".json", ".md"):
        working.with_suffix(suffix).write_text(f"new{suffix}")
    out.write_text("old")
    with pytest.raises(Problem, match="stays as it was"):
        promote(working, out, ["a part: no time left"])
    assert out.read_text() == "old"
    promote(working, out, [])
    assert out.read_text() == "new.json"
    assert out.with_suffix(".md").read_text() == "new.md"


def test_peers_that_are_missing_are_no_result(tmp_path, monkeypatch):
    from analysis import peers

    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "study", lambda *_: pytest.fail("began without peers"))
    out = tmp_path / "peers.json"
    with pytest.raises(Problem, match="not installed: lyapax, chaotax"):
        peers.main(["--out", str(out)])
    with pytest.raises(SystemExit):
        peers.main(["--commit", "--without", "lyapax"])
    assert not out.exists()


def test_a_peer_that_fails_leaves_the_table_alone(tmp_path, monkeypatch):
    from analysis import peers

    row = {"library": "ours", "seconds": [2.0, 1.0], "error": 0.0, "failed": None}
    lost = {"library": "lyapax", "seconds": [], "error": None, "failed": "TypeError"}
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    monkeypatch.setattr(peers.cases, "cases", lambda: {"henon": {}})
    monkeypatch.setattr(
        peers,
        "study",
        lambda *_: [peers.finished(dict(r), "henon") for r in (row, lost)],
    )
    out = tmp_path / "peers.json"
    out.write_text("committed")
    with pytest.raises(Problem, match="henon, lyapax: TypeError"):
        peers.main(["--out", str(out)])
    assert out.read_text() == "committed"
    out.unlink()
    peers.main(["--out", str(out)])
    assert json.loads(out.read_text())["systems"]["henon"][1]["failed"] == "TypeError"


def test_libraries_are_left_out_in_all_their_variants():
    from analysis import peers

    makers = {"ours": 1, "lyapax": 2, "lyapax, every 10": 3, "chaotax": 4}
    assert peers.without(makers, ["lyapax"]) == {"ours": 1, "chaotax": 4}


def test_a_study_for_gpus_says_so_first(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = command.Study("analysis.needy", "a minute", tmp_path / "x.json", gpu=True)
    with pytest.raises(Problem, match="needs an NVIDIA GPU"):
        found.begin(tmp_path / "x.json")
