"""Exponents of a trajectory, as a document of sections."""

import functools
from collections.abc import Sequence
from typing import Any

from lyapunov._errors import UsageError
from lyapunov.report import _words as words
from lyapunov.report._drawing import SERIES, Picture
from lyapunov.report._sections import (
    Column,
    Columns,
    Document,
    Form,
    Line,
    Note,
    Section,
    Table,
    whole,
)


MOST_LINES = 8
"""Exponents that a figure shows."""


def document(result: Any) -> Document:
    """The exponents with their error bars, and how they settle.

    **Raises:** `UsageError` for several trajectories at once.
    """
    told = result.to_dict() if result.exponents.ndim == 1 else None
    if told is None:
        raise UsageError(
            "these are the exponents of several trajectories",
            hint="take one: jax.tree.map(lambda x: x[0], result)",
        )
    rows = [
        (i, result.exponents[i].item(), told["stderr"][i], told["multiplicity"][i])
        for i in range(len(told["exponents"]))
    ]
    columns = [
        Column("exponent", lambda row: row[1]),
        Column("stderr", lambda row: row[2]),
        Column("coordinates", lambda row: row[3], whole),
    ]
    key = Column("no.", lambda row: row[0], whole)
    withheld = dict.fromkeys(filter(None, told["stderr_withheld"]))
    notes = [*told["notes"], *(f"no stderr: {reason}" for reason in withheld)]
    largest = words.number(rows[0][1], 4) if rows else words.NOTHING
    return Document(
        title="Lyapunov exponents",
        verdict=f"largest {largest} nats per token",
        word=f"largest {largest}",
        facts=[
            Line("method", told["method"]),
            Line("trajectory", f"{told['n_tokens']:,} tokens"),
        ],
        sections=[
            Section(
                "Figures",
                pictures=functools.partial(_pictures, told, [r[1] for r in rows]),
                forms=Form.PAGE,
            ),
            Section(
                "Exponents",
                table=Table(rows, [key], [Columns(columns)]),
                notes=[Note("In nats per token."), *map(Note, notes)],
            ),
        ],
    )


def _pictures(
    told: dict[str, Any], exponents: Sequence[float], prefix: str
) -> list[Picture]:
    tokens = [point["token"] for point in told["history"]]
    shown = min(len(exponents), MOST_LINES)

    def draw(axes: Any) -> None:
        for i in range(shown):
            color, _ = SERIES[i % len(SERIES)]
            values = [point["exponents"][i] for point in told["history"]]
            known = [float("nan") if value is None else value for value in values]
            axes.plot(tokens, known, color=color)
            if (stderr := told["stderr"][i]) is not None:
                bar = {"color": color, "capsize": 3, "marker": "o"}
                axes.errorbar(tokens[-1:], [exponents[i]], [stderr], **bar)
        axes.set_xlabel("token")
        axes.set_ylabel("exponent, nats per token")

    part = f"the largest {shown} of {len(exponents)}" if shown < len(exponents) else ""
    return [
        Picture(
            f"{prefix}history",
            "Exponents as the trajectory goes on",
            f"Each up to a token{f', {part}' if part else ''}; the bar is one standard "
            "error, where there is one.",
            f"{shown} exponents against tokens, up to token {tokens[-1]}.",
            draw,
        )
    ]
