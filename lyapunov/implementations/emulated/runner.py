"""The emulator: a flow with every stored tensor rounded as the execution says."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._devices import over_batch
from ...arithmetic import Rounded
from ...models import Model
from ...sublayers.residual import Stream, beside, final_norm, logits, sublayer
from .. import Execution
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64


class Emulated:
    """Run a network as an execution would, roundings included, on any machine.

    **Arguments:**

    - `seed`: of what is drawn, for a state that is rounded stochastically.
    """

    def __init__(self, execution: Execution, seed: int = 0):
        self.execution = execution
        self._seed = seed

    @traced_in_fp64
    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers with their stored tensors, then the head."""
        execution = self.execution
        sites = execution.site_numbers()
        stream = Stream.start(model.embed(tokens, execution))
        for layer in model.sublayers:
            own = execution.of(layer.kind)
            p = model.parameters(layer.layer, own)
            key = jax.random.fold_in(jax.random.key(self._seed), layer.layer)
            incoming = stream.incoming(layer)
            residual, output, stored = _run_layer(
                layer.flow,
                own.site_numbers(),
                incoming,
                p,
                model.start(p),
                key,
                own.chunked,
                own.chunks_at_once,
            )
            yield SublayerRecord.of(layer, incoming, output, stored, {})
            together = lambda one, other: _run_together(sites, one, other)
            stream = stream.after(layer, residual, output, together)
        normed = _run_norm(
            sites, stream.residual, stream.hidden, model.final_norm(execution)
        )
        multiplier = model.config.logits_multiplier
        yield HeadRecord(
            stream.residual,
            stream.hidden,
            lambda start, stop: _run_head(
                sites, normed, model.head(start, stop, execution), multiplier
            ),
        )


@eqx.filter_jit
def _run_layer(flow, sites, incoming, p, start, key, chunked, chunks_at_once):
    def one(incoming, key):
        at = Rounded(sites, key=key, chunked=chunked, chunks_at_once=chunks_at_once)
        residual, output, _ = sublayer(at, flow, incoming, p, start)
        return residual, output, at.records

    keys = jax.random.split(key, incoming.residual.shape[0])
    residual, output, stored = over_batch(one, incoming, keys)
    return (
        jnp.asarray(residual, jnp.float64),
        jnp.asarray(output, jnp.float64),
        stored,
    )


@eqx.filter_jit
def _run_together(sites, output, other):
    return jnp.asarray(beside(Rounded(sites), output, other), jnp.float64)


@eqx.filter_jit
def _run_norm(sites, residual, hidden, p):
    normed = over_batch(
        lambda r, h: final_norm(Rounded(sites), r, h, p), residual, hidden
    )
    return jnp.asarray(normed, jnp.float64)


@eqx.filter_jit
def _run_head(sites, normed, rows, multiplier):
    return jnp.asarray(logits(Rounded(sites), normed, rows, multiplier), jnp.float64)
