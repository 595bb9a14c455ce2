"""The residual stream around a sublayer, and the head at its end."""

from typing import Any, NamedTuple

from ..arithmetic import AbstractArithmetic, Weight
from .norm import Norm, normalise


def sublayer(at: AbstractArithmetic, flow, residual, hidden, p, start):
    """Add what the sublayer before put out, then run this one.

    **Arguments:**

    - `flow`: `(at, residual, p, start) -> (output, after)`, such as `mamba1`.
    - `residual`, `hidden`: (seq, d_model), the stream and the output before it.

    **Returns:** the stream (seq, d_model), the sublayer's output and its state.
    """
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    output, after = flow(at, residual, p, start)
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

    def after(self, residual, output, more: bool, together=None) -> "Stream":
        """The stream for the next sublayer.

        **Arguments:**

        - `residual`, `output`: what `sublayer` gave.
        - `more`: whether the next sublayer stands beside this one.
        - `together`: how outputs side by side are added; plainly by default.
        """
        if more:
            return self._replace(waiting=(*self.waiting, output))
        for other in reversed(self.waiting):
            output = output + other if together is None else together(output, other)
        return Stream(residual, output)


def final_norm(at: AbstractArithmetic, residual, hidden, p: Norm):
    """The normalised stream (seq, d_model) that the head reads."""
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    return normalise(at, residual, p, "norm_f")


def logits(at: AbstractArithmetic, x, rows: Weight):
    """Logits (seq, rows) of a slice of the vocabulary."""
    return at.store("logits", at.matmul(x, rows))
