"""What ships says one version and one set of requirements, and its jobs exist."""

import re
import tomllib
from pathlib import Path

import pytest

import lyapunov
from lyapunov.implementations.mamba_ssm.implementation import MambaSsmImplementation


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOWEST = {
    name: version
    for one in PROJECT["dependencies"]
    for name, version in re.findall(r"^([\w-]+).*?>=([\d.]+)", one)
}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_one_version_everywhere():
    """Assert it of the library, the citation, the recipe and the newest section."""
    cited = re.findall(r"^version: (\S+)$", read("CITATION.cff"), re.M)
    packed = re.findall(r'set version = "(.*?)"', read("conda/meta.yaml"))
    version, date = re.findall(r"^## (\d\S+) - (\S+)$", read("CHANGELOG.md"), re.M)[0]
    assert cited == packed == [version] == [lyapunov.__version__]
    dated = re.findall(r'^date-released: "(\S+)"$', read("CITATION.cff"), re.M)
    assert dated == [date]


def test_the_recipe_asks_for_what_the_project_asks_for():
    """Assert name and lowest version of each requirement at run time."""
    run = read("conda/meta.yaml").partition("  run:\n")[2].partition("\n\n")[0]
    asked: dict[str, str] = dict(re.findall(r"- ([\w-]+) >=([\d.]+)", run))
    assert asked.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    assert asked == LOWEST


def test_the_oldest_versions_are_the_lowest_that_are_allowed():
    """Assert it of all that the core needs, by major and minor."""
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", read("constraints-oldest.txt"), re.M)
    pinned: dict[str, str] = dict(pins)
    for name, version in LOWEST.items():
        lowest = [*version.split("."), "0"][:2]
        assert pinned[name].split(".")[:2] == lowest, name
    assert pinned["jaxlib"] == pinned["jax"]


def test_jobs_call_what_there_is():
    """Assert that each target of the workflow is one of the Makefile's."""
    workflow = read(".github/workflows/ci.yml")
    called = set(re.findall(r"(?:make|target:) (test-[\w-]+)", workflow))
    assert called == {"test-oldest", "test-newest", "test-slow"}
    assert called <= TARGETS
    assert (ROOT / ".ci/run").exists()
    pythons = set(re.findall(r'python: "([\d.]+)"', workflow))
    named = {
        c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c
    }
    assert pythons == named


@pytest.mark.parametrize("part", ["--no-build-isolation", "mamba-ssm", "causal-conv1d"])
def test_what_is_built_from_source_has_its_line(part):
    """Assert that the page says what the refusal says."""
    assert part in MambaSsmImplementation.install_hint()
    assert MambaSsmImplementation.install_hint() in read(
        "docs/pages/getting-started.md"
    )
