"""The residual stream around a sublayer, and the head at its end."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic, Weight
from .norm import Norm, normalise, scaled


def sublayer(
    at: AbstractArithmetic, flow, residual, hidden, p, start, aside=None, embedded=None
):
    """Add what the sublayer before put out, then run this one.

    **Arguments:**

    - `flow`: `(at, residual, p, start) -> (output, after)`, such as `mamba1`.
    - `residual`, `hidden`: (seq, d_model), the stream and the output before it.
    - `aside`: (seq, d_model), what this sublayer alone reads on top of the stream.
    - `embedded`: (seq, d_model), the embedding, for one that reads it beside the
        stream.

    **Returns:** the stream (seq, d_model), the sublayer's output and its state.
    """
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    read = residual
    if aside is not None:
        read = at.store("residual_aside", at.add(residual, aside, alone=True))
    if embedded is not None:
        read = at.join([read, embedded], axis=-1)
    output, after = flow(at, read, p, start)
    return residual, output, after


class Stream(NamedTuple):
    """The residual stream between two sublayers.

    Sublayers side by side read the same stream; what they put out is added up before
    it joins the residual.
    """

    residual: Any
    """(*batch, seq, d_model), before `hidden` is added."""
    hidden: Any
    """What the sublayers before put out."""
    waiting: tuple = ()
    """Outputs of sublayers whose neighbours are still to come."""
    aside: Any = None
    """What the next sublayer alone reads on top of the stream."""

    def after(
        self, residual, output, more: bool, together=None, *, aside: bool = False
    ) -> "Stream":
        """The stream for the next sublayer.

        **Arguments:**

        - `residual`, `output`: what `sublayer` gave.
        - `more`: whether the next sublayer stands beside this one.
        - `together`: how outputs side by side are added; plainly by default.
        - `aside`: whether the output goes to the next sublayer alone.
        """
        if more:
            return self._replace(waiting=(*self.waiting, output))
        for other in reversed(self.waiting):
            output = output + other if together is None else together(output, other)
        if aside:
            return Stream(residual, jnp.zeros_like(output), aside=output)
        return Stream(residual, output)


def final_norm(at: AbstractArithmetic, residual, hidden, p: Norm):
    """The normalised stream (seq, d_model) that the head reads."""
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    return normalise(at, residual, p, "norm_f")


def logits(at: AbstractArithmetic, x, rows: Weight, multiplier: float = 1.0):
    """Logits (seq, rows) of a slice of the vocabulary.

    **Arguments:**

    - `multiplier`: of all logits (Granite, Falcon-H1).
    """
    y = at.store("logits", at.matmul(x, rows))
    return scaled(at, y, multiplier, "logits_scaled")
