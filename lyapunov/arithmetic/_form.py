"""The form in which a program runs recurrences and sums of products."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Say in which of its forms a recurrence runs, and where calls and chunks begin.

    In exact arithmetic all forms give the same numbers.
    """

    chunked: bool = False
    """Whether a recurrence that has a chunked form runs in it."""
    chunks_at_once: bool = False
    """Whether that form hands states on in one product over all chunks, later ones
    times an exact 0, so that what is no number reaches earlier tokens, too; see
    `AbstractArithmetic.reached`."""
    calls: tuple[int, ...] = ()
    """Tokens of each of the calls that the sequence came in, since chunks begin anew
    with a call; none: it came in one."""
    chunk: int | None = None
    """Tokens of a chunk; None: as many as the model says."""
    grid: int | None = None
    """How many tokens of the text are in front of the first one, where chunks end at
    multiples of their length counted from the text's start, and with calls; None: they
    are counted from the start of a call."""
    in_stream: bool = False
    """Whether chunks are cut in the stream of all texts of a batch: `grid` then counts
    what other texts have in front of this one."""
    last_again: bool = False
    """Whether the state that a call leaves is made anew from the cached one in front of
    its last chunk."""
    period: int = 1
    """Tokens between two stores of a cached state."""
    ranks: int = 1
    """Devices that share a matrix along what it sums over."""


WHOLE = Form()
"""Token by token in one call, on one device."""
