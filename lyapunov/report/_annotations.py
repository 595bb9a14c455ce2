"""Verdict and findings as GitHub's runner takes them up from a step's output.

Of a step GitHub shows ten of each severity, so that findings of one code are told
together. What the baseline has as well is a notice.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lyapunov.report._sections import documents_of


def annotations(results: Any) -> str:
    """Write a workflow command a line, of one result or of several."""
    several = isinstance(results, list | tuple)
    return "".join(
        line for one in (results if several else [results]) for line in _lines(one)
    )


def _lines(result: Any) -> Iterator[str]:
    if isinstance(result, Mapping):
        source, error = result["checkpoint"]["source"], result["error"]
        yield _line("error", error["code"], f"{source}: {error['message']}")
        return
    (document,) = documents_of(result)
    for group in document.findings or ():
        known = all(finding.known for finding in group.findings)
        place = f"{group.precision}, {group.where}" if group.precision else group.where
        yield _line(
            "notice" if known else group.severity,
            f"{group.code} {group.title}",
            f"{document.title}, {place}: {group.message}",
        )
    told = [document.sentence, *document.advice]
    yield _line("notice", "lyapunov-check", f"{document.title}: {' '.join(told)}")


def _line(command: str, title: str, message: str) -> str:
    # text from outside ends neither the line nor the command
    data = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    named = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    named = named.replace(":", "%3A").replace(",", "%2C")
    return f"::{command} title={named}::{data}\n"
