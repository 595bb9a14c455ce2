"""The fp64 reference: exact arithmetic up to its own 2^-53."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._trace import HeadRecord, SublayerRecord, Trace
from ..arithmetic import Exact
from ..flows.residual import final_norm, logits, sublayer
from ..models import Model


class Reference:
    """Run a network in fp64, a layer at a time.

    **Arguments:**

    - `state_units`: unit roundoffs of state formats; for each the share of updates
      too small to move a state held in it is observed as `stagnation`.
    - `state_smallest`: smallest normal numbers of the same formats; what their
      subnormals cost is observed as `underflow`.
    """

    def __init__(
        self,
        state_units: tuple[float, ...] = (),
        state_smallest: tuple[float, ...] = (),
    ):
        self._state_units = state_units
        self._state_smallest = state_smallest

    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers, then the head."""
        residual = model.embed(tokens)
        hidden = jnp.zeros_like(residual)
        for layer in model.sublayers:
            p = model.parameters(layer.layer)
            before = residual
            residual, output, observed = run_layer(
                layer.flow,
                residual,
                hidden,
                p,
                model.start(p),
                self._state_units,
                self._state_smallest,
            )
            yield SublayerRecord(
                layer.layer, layer.kind, before, hidden, output, {}, observed
            )
            hidden = output
        normed = run_norm(residual, hidden, model.final_norm())
        yield HeadRecord(
            residual,
            hidden,
            lambda start, stop: run_head(normed, model.head(start, stop)),
        )


@eqx.filter_jit
def run_layer(flow, residual, hidden, p, start, state_units=(), state_smallest=()):
    """One sublayer over a batch: stream, output, observations."""

    def one(residual, hidden):
        at = Exact(state_units=state_units, state_smallest=state_smallest)
        residual, output, _ = sublayer(at, flow, residual, hidden, p, start)
        return residual, output, at.observed

    return jax.vmap(one)(residual, hidden)


@eqx.filter_jit
def run_norm(residual, hidden, p):
    """What the head reads, over a batch."""
    return jax.vmap(lambda r, h: final_norm(Exact(), r, h, p))(residual, hidden)


@eqx.filter_jit
def run_head(normed, rows):
    """Logits of a slice of the vocabulary, over a batch."""
    return logits(Exact(), normed, rows)
