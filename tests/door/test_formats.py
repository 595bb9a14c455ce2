"""Assert that help, errors and what runs name the same formats."""

import re

import pytest
from click.testing import CliRunner

from lyapunov import load
from lyapunov._errors import UsageError
from lyapunov.command._cli import main
from lyapunov.formats import STATE_FORMATS, state_format_named
from lyapunov.formats._table import PRECISIONS, STATE_PRECISIONS
from lyapunov.implementations import executions_for
from lyapunov.implementations._execution import parse_precision
from lyapunov.questions._settings import checked_settings


def section(option: str) -> str:
    """What the help says of an option, on one line."""
    text = CliRunner().invoke(main, ["--help"], env={"COLUMNS": "80"}).stdout
    part = text.split(f"  {option} ", 1)[1].split("\n  --", 1)[0]
    return " ".join(part.split())


def test_precisions_are_one_list():
    told = section("--precision")
    with pytest.raises(UsageError) as caught:
        parse_precision("int8", "mamba_ssm")
    by_command = CliRunner().invoke(main, ["--precision", "int8"]).stderr
    with pytest.raises(UsageError) as by_python:
        checked_settings({"precisions": "int8", "measure": "none"})
    for text in (told, caught.value.hint, by_command, by_python.value.hint):
        found = text.replace("'", "").replace(":", ",").split("ne of ")[1]
        names = re.findall(r"[\w-]+", found)[: len(PRECISIONS)]
        assert names == list(PRECISIONS)
    for name in PRECISIONS:
        assert parse_precision(name, "")[0].name == name.partition("-")[0]


def test_every_precision_that_is_named_runs():
    found = executions_for(load().config, PRECISIONS)
    assert [one.precision for one in found] == list(PRECISIONS)


def test_formats_of_a_state_are_one_list():
    told = section("--state-precision")
    with pytest.raises(UsageError) as caught:
        state_format_named("int3")
    assert tuple(STATE_FORMATS) == STATE_PRECISIONS
    for name in STATE_PRECISIONS:
        base, *variants = name.split("-")
        for text in (told, caught.value.hint):
            assert base in text
            assert all(f"-{variant}" in text for variant in variants)
