"""Assert that the Markdown report has whole tables and no stray markup."""

from lyapunov.report import to_markdown

from .example import example_report


def test_tables_have_as_many_cells_in_every_row(troubled):
    block: list[str] = []
    for line in [*to_markdown(troubled).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            assert len({row.replace("\\|", "").count("|") for row in block}) == 1
            assert set(block[1]) <= set("|-: ")
            block = []


def test_everything_that_matters_is_there(troubled):
    text = to_markdown(troubled)
    assert text.startswith("# state-spaces/mamba-130m-hf\n")
    assert text.endswith("\n")
    for finding in troubled.findings:
        assert f"**{finding.code}**" in text
    for part in ("## Layers", "## Logits", "## Assumptions", "## Settings"):
        assert part in text


def test_names_cannot_mark_up():
    text = to_markdown(example_report(1, source="a|b*c*<i>\nd"))
    assert text.startswith("# a\\|b\\*c\\*\\<i> d\n")


def test_failures_stand_beside_reports():
    failure = {"checkpoint": {"source": "lost"}, "error": {"message": "no such file"}}
    text = to_markdown([example_report(1), failure])
    assert "# lost\n\n**Could not be checked: no such file**" in text
