"""The fp64 reference: exact arithmetic up to its own 2^-53."""

import jax.numpy as jnp

from .._devices import over_batch
from ..arithmetic import Exact
from ..arithmetic._programs import program
from ..models import Model
from ..sublayers.residual import NO_END, Stream, final_norm, logits, sublayer
from . import Execution
from ._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64


class Reference:
    """Run a network in fp64, a layer at a time.

    **Arguments:**

    - `state_units`: unit roundoffs of state formats; for each the share of updates
      too small to move a state held in it is observed as `stagnation`.
    - `state_smallest`: smallest normal numbers of the same formats; what their
      subnormals cost is observed as `underflow`.
    - `function`: an execution whose own function is run in place of the model's.
    - `state_steps`: of formats that hold a channel in equal steps, over its largest
      state; 0 for the others.
    """

    def __init__(
        self,
        state_units: tuple[float, ...] = (),
        state_smallest: tuple[float, ...] = (),
        function: Execution | None = None,
        state_steps: tuple[float, ...] = (),
    ):
        self._state_units = state_units
        self._state_smallest = state_smallest
        self._function = function
        self._state_steps = state_steps

    @traced_in_fp64
    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers, then the head."""
        stream = Stream.start(model.embed(tokens), model.sublayers)
        for layer in model.sublayers:
            own = None if self._function is None else self._function.at(layer)
            p = model.parameters(layer.layer, function=own)
            incoming = stream.incoming(layer)
            residual, output, observed = run_layer(
                layer.flow,
                incoming,
                p,
                model.start(p),
                self._state_units,
                self._state_smallest,
                self._state_steps,
            )
            yield SublayerRecord.of(layer, incoming, output, {}, observed)
            stream = stream.after(layer, residual, output, jnp.add)
        normed = run_norm(stream.residual, stream.hidden, model.final_norm())
        end = model.config.logits_end
        yield HeadRecord(
            stream.residual,
            stream.hidden,
            lambda start, stop: run_head(normed, model.head(start, stop), end),
        )


@program
def run_layer(
    flow, incoming, p, start, state_units=(), state_smallest=(), state_steps=()
):
    """One sublayer over a batch: stream, output, observations."""

    def one(incoming):
        at = Exact(
            state_units=state_units,
            state_smallest=state_smallest,
            state_steps=state_steps,
        )
        residual, output, _ = sublayer(at, flow, incoming, p, start)
        return residual, output, at.observed

    return over_batch(one, incoming)


@program
def run_norm(residual, hidden, p):
    """What the head reads, over a batch."""
    return over_batch(lambda r, h: final_norm(Exact(), r, h, p), residual, hidden)


@program
def run_head(normed, rows, end=NO_END):
    """Logits of a slice of the vocabulary, over a batch."""
    return logits(Exact(), normed, rows, end)
