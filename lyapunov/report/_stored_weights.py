"""How a quantised checkpoint stores its weights, as a section of a document."""

from lyapunov.report._columns import of
from lyapunov.report._sections import (
    Column,
    Columns,
    Form,
    Line,
    Note,
    Section,
    Table,
    as_it_is,
    whole,
)
from lyapunov.report._sentences import percent
from lyapunov.results._check import CheckpointFacts


_COLUMNS = (
    Column("format", of("format"), as_it_is, word=True),
    Column("scales", of("scales"), as_it_is, word=True, wrap=True),
    Column("sublayers", of("sublayers"), whole),
    Column("parameters", of("parameters"), whole),
    Column("share", of("share"), lambda value, digits: percent(value)),
)
_KEYS = (
    Column("kind", of("kind"), as_it_is, word=True),
    Column("matrix", of("matrix"), as_it_is, word=True, wrap=True),
)
_MORE = Form.VERBOSE | Form.WRITTEN
_NOTE = (
    "Matrices of one name and kind that are stored alike, with their share of all "
    "parameters; vectors are norms, biases and whatever else has one axis. Codes are "
    "read as code times scale, exactly; llama.cpp's blocks in the fp32 of its package."
)


def stored_weights(checkpoint: CheckpointFacts) -> list[Section]:
    """What was quantised how and what was kept, a row a kind and matrix; nothing of a
    checkpoint that is not quantised."""
    told = checkpoint.quantisation
    if told is None:
        return []
    lines = [
        Line(
            told.method,
            f"{percent(told.quantised_share)} of the parameters are stored as codes",
        )
    ]
    if told.activations:
        here = f"here {told.followed}" if told.followed else "not followed here"
        lines.append(
            Line("activations", f"quantised by servers ({told.activations}); {here}")
        )
    if told.cache:
        lines.append(Line("cache", "quantised by servers; not followed here"))
    if told.kept:
        named = ", ".join(told.kept[:8])
        more = f" and {len(told.kept) - 8} more" if len(told.kept) > 8 else ""
        lines.append(Line("to be kept", f"{named}{more}", forms=_MORE))
    table = Table(told.matrices, _KEYS, [Columns(_COLUMNS)])
    return [
        Section(
            "Stored weights",
            lines=lines,
            table=table,
            notes=[Note(_NOTE, Form.WRITTEN)],
        )
    ]
