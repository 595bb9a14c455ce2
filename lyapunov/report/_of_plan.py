"""What a check would cost, as a document of sections."""

from lyapunov.questions._plan import Plan
from lyapunov.report import _words as words
from lyapunov.report._columns import of
from lyapunov.report._sections import (
    Column,
    Columns,
    Document,
    Line,
    Note,
    Section,
    Table,
    as_it_is,
    undigited,
    whole,
)
from lyapunov.report._words import duration, size


TIMES = (
    Column("cold", of("seconds"), undigited(duration)),
    Column("warm", of("warm_seconds"), undigited(duration)),
)
TOLD = "cold: with compiling; warm: with what an earlier run has kept of it"


def document(plan: Plan) -> Document:
    """Time and memory in all, and a row a stage."""
    free = plan.available_bytes
    network = (
        f"{plan.architecture}, {words.layers(plan.n_layers, plan.n_blocks)}, "
        f"{words.parameters(plan.n_params)} parameters"
    )
    columns = [
        Column("runs", of("forwards")),
        *TIMES,
        Column("memory", of("bytes"), undigited(size)),
    ]
    stage = Column("stage", of("name"), as_it_is, word=True)
    effort = Column("effort", of("effort"), as_it_is, word=True)
    programs = Column("programs", of("programs"), whole)
    costs = [programs, *TIMES, Column("memory", of("peak_bytes"), undigited(size))]
    one = f"runs: forwards in fp64, each {duration(plan.forward_seconds)}"
    return Document(
        title=plan.checkpoint,
        verdict=f"about {duration(plan.seconds)}, "
        f"{duration(plan.warm_seconds)} where programs were kept, at most about "
        f"{size(plan.peak_bytes)} of memory"
        f"{'' if free is None else f', {size(free)} free'}",
        word="plan",
        style="" if plan.fits else "incomplete",
        advice=[]
        if plan.fits
        else [
            "more memory than is free: lower --length or --batch, or give one "
            "--precision at a time"
        ],
        facts=[
            Line("network", network),
            Line("tokens", f"{plan.batch} × {plan.length}"),
            Line("runs", "; ".join(plan.executions) or "the reference alone"),
            Line("weights", f"{size(plan.weight_bytes)}, read a sublayer ahead"),
            Line("device", plan.device),
            *_spread(plan),
        ],
        findings=words.groups(plan.findings) if plan.findings else None,
        sections=[
            Section(
                "Stages",
                table=Table(plan.stages, [stage], [Columns(columns)]),
                notes=[Note(f"{one}; {TOLD}")],
            ),
            *(
                [
                    Section(
                        "Efforts", table=Table(plan.efforts, [effort], [Columns(costs)])
                    )
                ]
                if plan.efforts
                else []
            ),
        ],
    )


def _spread(plan: Plan) -> list[Line]:
    """Of several devices how much each has to do and to hold."""
    if plan.devices == 1:
        return []
    each = plan.batch // plan.devices
    told = f"{plan.devices}, {each} of the sequences each, and memory as planned"
    return [Line("devices", told)]
