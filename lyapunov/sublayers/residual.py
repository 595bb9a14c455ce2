"""The residual stream around a sublayer, and the head at its end."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic, Weight
from .config import LogitsEnd
from .norm import Norm, normalise, scaled
from .soft_cap import soft_capped


class Incoming(NamedTuple):
    """What a sublayer reads: tensors (*batch, seq, d_model) of one run."""

    residual: Any
    """The stream before `hidden` is added."""
    hidden: Any
    """What the sublayers before put out."""
    aside: Any = None
    """What this sublayer alone reads on top of the stream, if anything."""
    embedded: Any = None
    """The embedding, for a sublayer that reads it beside the stream."""


def sublayer(at: AbstractArithmetic, flow, incoming: Incoming, p, start):
    """Add what the sublayer before put out, then run this one.

    **Arguments:**

    - `flow`: `(at, residual, p, start) -> (output, after)`, such as `mamba1`.
    - `incoming`: of one sequence, (seq, d_model).

    **Returns:** the stream (seq, d_model), times what the sublayer keeps of it, the
    sublayer's output and its state.
    """
    residual, hidden, aside, embedded = incoming
    residual, read = _added(at, residual, hidden)
    if aside is not None:
        read = at.store("residual_aside", at.add(residual, aside, alone=True))
    if embedded is not None:
        read = at.join([read, embedded], axis=-1)
    output, after = flow(at, read, p, start)
    keeps = getattr(p, "keeps", 1.0)
    if keeps == 0.0:
        residual = at.mask(residual, jnp.zeros(residual.shape))
    return scaled(at, residual, keeps or 1.0, "residual_scaled"), output, after


def beside(at: AbstractArithmetic, output, other):
    """The sum of what two sublayers side by side put out."""
    return at.store("beside", at.add(output, other, alone=True))


@runtime_checkable
class Place(Protocol):
    """What the stream needs to know of a sublayer's place in its network."""

    @property
    def shares(self) -> bool:
        """Whether the next one stands beside it and reads the same stream."""
        ...

    @property
    def aside(self) -> bool:
        """Whether its output goes to the next one alone."""
        ...

    @property
    def embedded(self) -> bool:
        """Whether it reads the embedding beside the stream."""
        ...


class Stream(NamedTuple):
    """The residual stream between two sublayers.

    Sublayers side by side read the same stream; what they put out is added up before
    it joins the residual.
    """

    residual: Any
    """(*batch, seq, d_model), before `hidden` is added."""
    hidden: Any
    """What the sublayers before put out."""
    embedded: Any
    """The embedding, as the first sublayer reads it; None where no other reads it."""
    waiting: tuple = ()
    """Outputs of sublayers whose neighbours are still to come."""
    aside: Any = None
    """What the next sublayer alone reads on top of the stream."""

    @staticmethod
    def start(embedded, places: Iterable[Place]) -> "Stream":
        """The stream in front of the first of the sublayers at these places."""
        kept = embedded if any(place.embedded for place in places) else None
        return Stream(embedded, jax.tree.map(jnp.zeros_like, embedded), kept)

    def incoming(self, place: Place) -> Incoming:
        """What the sublayer at that place reads."""
        embedded = self.embedded if place.embedded else None
        return Incoming(self.residual, self.hidden, self.aside, embedded)

    def after(self, place: Place, residual, output, together) -> "Stream":
        """The stream for the next sublayer.

        **Arguments:**

        - `place`: of the sublayer that ran.
        - `residual`, `output`: what `sublayer` gave.
        - `together`: adds two outputs side by side, as `beside` does.
        """
        if place.shares:
            return self._replace(waiting=(*self.waiting, output))
        for other in reversed(self.waiting):
            output = together(output, other)
        if place.aside:
            nothing = jax.tree.map(jnp.zeros_like, residual)
            return Stream(residual, nothing, self.embedded, aside=output)
        return Stream(residual, output, self.embedded)


def final_norm(at: AbstractArithmetic, residual, hidden, p: Norm):
    """The normalised stream (seq, d_model) that the head reads."""
    return normalise(at, _added(at, residual, hidden)[1], p, "norm_f")


def _added(at: AbstractArithmetic, residual, hidden):
    """The stream as it is stored, and as a norm reads it: kernels that add and
    normalise at once may read the sum itself."""
    total = at.add(residual, hidden, alone=True)
    stored = at.store("residual", total)
    return stored, at.store("norm_read", total) if at.stores("norm_read") else stored


NO_END = LogitsEnd()


def logits(at: AbstractArithmetic, x, rows: Weight, end: LogitsEnd = NO_END):
    """Logits (seq, rows) of a slice of the vocabulary."""
    y = at.store("logits", at.matmul(x, rows))
    y = scaled(at, y, end.multiplier, "logits_scaled")
    if end.soft_cap is None:
        return y
    return soft_capped(at, y, end.soft_cap, "logits", "logits_capped")
