"""A trace: the ordered stream of what each sublayer did, whoever ran it.

Every runner yields `SublayerRecord`s in order and then one `HeadRecord`; everything
that compares or bounds reads nothing else.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from ..arithmetic._fp64 import in_fp64
from ..sublayers.residual import Incoming


IN_FRONT = "in_front"
"""What a runner has observed of the text in front of a packed one: (heads), as
`Mamba2Parameters.in_front`."""


class SublayerRecord(NamedTuple):
    """One sublayer of one run, over a batch of sequences."""

    layer: int
    kind: str
    residual: Float[Array, "batch seq d_model"]
    """The stream before `hidden` is added."""
    hidden: Float[Array, "batch seq d_model"]
    """The output of the sublayer before (zero for the first)."""
    output: Float[Array, "batch seq d_model"]
    stored: dict[str, Any]
    """Stored tensors by site, in a dtype that holds them, as far as the runner sees
    them."""
    observed: dict[str, Any]
    """Values that are never stored, kept for statistics (reference only); and
    `IN_FRONT`."""
    aside: Any = None
    """What it alone read on top of the stream, if anything."""
    embedded: Any = None
    """The embedding, where it read that beside the stream."""

    @property
    def incoming(self) -> Incoming:
        """What the sublayer read."""
        return Incoming(self.residual, self.hidden, self.aside, self.embedded)

    @staticmethod
    def of(place: Any, incoming: Incoming, output, stored, observed):
        """A record from what went in and came out.

        **Arguments:**

        - `place`: with `layer` and `kind`, such as a `Sublayer`.
        """
        residual, hidden, aside, embedded = incoming
        return SublayerRecord(
            place.layer,
            place.kind,
            residual,
            hidden,
            output,
            stored,
            observed,
            aside,
            embedded,
        )


class HeadRecord(NamedTuple):
    """The end of a run: the stream, and logits a slice of the vocabulary at a time."""

    residual: Float[Array, "batch seq d_model"]
    hidden: Float[Array, "batch seq d_model"]
    logits: Callable[[int, int], Float[Array, "batch seq rows"]]


Trace = Iterator[SublayerRecord | HeadRecord]


def traced_in_fp64(trace: Callable[..., Trace]) -> Callable[..., Trace]:
    """A runner's `trace` whose records, and the head's logits, are made in fp64.

    Between two records the caller's own setting of `jax_enable_x64` holds.
    """

    def stepped(records: Trace) -> Trace:
        while True:
            with jax.enable_x64(True):
                record = next(records, None)
            if record is None:
                return
            if isinstance(record, HeadRecord):
                record = record._replace(logits=in_fp64(record.logits))
            # whoever takes it may let go of it before the next one is made
            found = [record]
            del record
            yield found.pop()

    @functools.wraps(trace)
    def run(*arguments, **named) -> Trace:
        with jax.enable_x64(True):
            records = iter(trace(*arguments, **named))
        return stepped(records)

    return run
