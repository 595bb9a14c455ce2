"""Assert that the documentation's pages run, name what exists, and are all found.

The strict build (`make docs`) looks for links that lead nowhere.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from docs import catalogue, found, notebook, run, studies
from docs.tables import ROOT, plain, table
from lyapunov.command._cli import main
from lyapunov.findings import CATALOGUE
from lyapunov.implementations import IMPLEMENTATIONS


WRITTEN = sorted(run.PAGES.glob("*.md"))
TEXTS = {page.stem: page.read_text("utf-8") for page in WRITTEN}
OF_PAGES = pytest.mark.parametrize("page", TEXTS)


def commands() -> list[str]:
    found = []
    for text in TEXTS.values():
        for language, body in run.fences(text):
            lines = [line.removeprefix("$ ") for line in body.splitlines()]
            if language in ("console", "sh"):
                found += [x for x in lines if x.startswith("lyapunov-check")]
        found += re.findall(r"`(lyapunov-check [^`]*)`", text)
    return sorted({line.split("  #")[0].strip() for line in found})


@OF_PAGES
def test_every_fence_is_of_a_language_that_is_run_or_known_not_to_be(page):
    assert {language for language, _ in run.fences(TEXTS[page])} <= set(run.LANGUAGES)


@OF_PAGES
def test_code_is_followed_by_what_it_prints(page):
    for language, body in run.fences(TEXTS[page]):
        if language == "console":
            last = body.rstrip("\n").splitlines()[-1]
            assert not last.startswith("$ "), last


@pytest.mark.parametrize("line", commands())
def test_options_of_every_command_are_there(line):
    """Assert names and choices; paths are made up."""
    words = [w for w in shlex.split(line)[1:] if w != "..."]
    context = main.make_context("lyapunov-check", [], resilient_parsing=True)
    _, rest, _ = main.make_parser(context).parse_args(words)
    assert not [word for word in rest if word.startswith("-")]


@OF_PAGES
def test_figures_that_a_page_asks_for_are_in_the_results(page):
    for name in re.findall(found.ASKED, TEXTS[page]):
        assert found.figure(name), name


def test_the_page_of_results_has_no_figure_by_hand():
    """Assert it of fractions and large numbers; what was asked may stand there."""
    said = re.sub(found.ASKED, "", TEXTS["found"])
    by_hand = set(re.findall(r"\d+\.\d+|\d+,\d+|\d+e-?\d+", said))
    assert by_hand == {"0.1", "1e5", "2.2"}  # drifts, steps, parameters
    assert len(re.findall(found.ASKED, TEXTS["found"])) > 40


def test_figures_are_those_of_the_results():
    """Assert some of them by other ways than the page's."""
    check = json.loads((ROOT / "analysis/results/cross_check.json").read_text())
    kernels = [row for row in check["rows"] if row["measured_by"] != "emulated"]
    assert found.figure("executions") == str(len(kernels))
    assert f"{sum(row['elements'] for row in kernels) / 1e9:.0f} billion" in (
        found.figure("kernels_above")
    )
    text = (ROOT / "experiments/results/compare.md").read_text()
    shown = found.figure("ours: hybrids.recall_above_mamba2")
    value, low, high = (float(x) for x in re.findall(r"-?\d+", shown))
    assert f"{value:g}." in text
    assert low < value < high
    for word in ("agrees", "disagrees", "needs the Hub"):
        assert int(found.figure(f"verdicts: {word}")) == text.count(f"| {word} |")
    with pytest.raises(KeyError):
        found.figure("nobody")


def test_every_code_family_and_implementation_has_a_page():
    assert {f"findings/{code}.md" for code in CATALOGUE} < set(catalogue.findings())
    made = catalogue.implementations()
    assert {f"implementations/{name}.md" for name in IMPLEMENTATIONS} < set(made)
    for kind in CATALOGUE.values():
        assert (
            plain(kind.explanation) in catalogue.findings()[f"findings/{kind.code}.md"]
        )


def test_every_result_has_a_page_and_its_pictures():
    for package, made in (
        ("analysis", studies.results()),
        ("experiments", studies.experiments()),
    ):
        pages, pictures = made
        folder = ROOT / package / "results"
        known = {Path(page).stem for page in pages} - {"index"}
        assert known == {one.stem for one in folder.glob("*.json")}
        drawn = {one.name for one in folder.iterdir() if one.suffix in (".png", ".svg")}
        assert {Path(name).name for name in pictures} == drawn


def test_every_public_name_is_on_a_page():
    pages = catalogue.api()
    for module, groups in catalogue.room_names().items():
        page = pages[f"api/{module.partition('.')[2] or 'index'}.md"]
        for names in groups.values():
            assert all(f"{module}.{n}" in page or f"`{n}`" in page for n in names)


def test_what_markdown_would_take_for_marks_is_escaped():
    assert plain("a_b*c <d> `x_y` | $e$") == r"a\_b\*c &lt;d> `x_y` \| \$e\$"
    assert table(("a",), [("1",)]) == "| a |\n|---|\n| 1 |"


def test_numbers_may_differ_and_words_may_not():
    assert run.without_numbers("T1 2.0x  in 8.5 s") == run.without_numbers(
        "T1 3x in 9 s"
    )
    assert run.without_numbers("in 1.2 min)") == run.without_numbers("in 9 s)")
    assert run.without_numbers("HELD in 1 s") != run.without_numbers("LOST in 1 s")


OF_NOTEBOOKS = pytest.mark.parametrize("name", notebook.names())


@OF_NOTEBOOKS
def test_a_notebook_is_what_its_source_gave(name):
    """Assert that nothing was changed since it was run, and that it draws something."""
    path = notebook.FOLDER / f"{name}.py"
    made = notebook.committed(name)
    fresh = notebook.cells_of(path.read_text("utf-8"))
    sources = [[cell["source"] for cell in cells] for cells in (made["cells"], fresh)]
    assert sources[0] == sources[1]
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    drawn = [x for c in code for x in c["outputs"] if "image/png" in x.get("data", {})]
    assert drawn
    assert path.with_suffix(".ipynb").stat().st_size < 200_000


def test_there_are_five_notebooks():
    assert len(notebook.names()) == 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("docs")
    run.prepare(folder)
    return folder


@pytest.mark.slow
@OF_PAGES
def test_pages_print_what_they_say(page, place):
    """Assert the words; figures are of one machine and one version."""
    again = run.done(TEXTS[page], place)
    assert run.without_numbers(again) == run.without_numbers(TEXTS[page])


@pytest.mark.slow
@OF_NOTEBOOKS
def test_notebooks_print_what_they_say(name, place):
    pytest.importorskip("matplotlib").use("Agg")
    again = run.without_numbers(notebook.printed(notebook.executed(name, place)))
    assert again == run.without_numbers(notebook.printed(notebook.committed(name)))
