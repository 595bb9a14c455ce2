"""The emulator: a flow with every stored tensor rounded as the execution says."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._trace import HeadRecord, SublayerRecord, Trace
from ..arithmetic import Rounded
from ..executions import Execution
from ..flows.residual import final_norm, logits, sublayer
from ..models import Model


class Emulated:
    """Run a network as an execution would, roundings included, on any machine.

    **Arguments:**

    - `seed`: of what is drawn, for a state that is rounded stochastically.
    """

    def __init__(self, execution: Execution, seed: int = 0):
        self.execution = execution
        self._seed = seed

    def trace(self, model: Model, tokens) -> Trace:
        """Records of all sublayers with their stored tensors, then the head."""
        execution = self.execution
        sites = execution.site_numbers()
        residual = model.embed(tokens, execution)
        hidden = jnp.zeros_like(residual)
        for layer in model.sublayers:
            p = model.parameters(layer.layer, execution)
            before = residual
            key = jax.random.fold_in(jax.random.key(self._seed), layer.layer)
            residual, output, stored = _run_layer(
                layer.flow, sites, residual, hidden, p, model.start(p), key
            )
            yield SublayerRecord(
                layer.layer, layer.kind, before, hidden, output, stored, {}
            )
            hidden = output
        normed = _run_norm(sites, residual, hidden, model.final_norm(execution))
        yield HeadRecord(
            residual,
            hidden,
            lambda start, stop: _run_head(
                sites, normed, model.head(start, stop, execution)
            ),
        )


@eqx.filter_jit
def _run_layer(flow, sites, residual, hidden, p, start, key):
    def one(residual, hidden, key):
        at = Rounded(sites, key=key)
        residual, output, _ = sublayer(at, flow, residual, hidden, p, start)
        return residual, output, at.records

    keys = jax.random.split(key, residual.shape[0])
    residual, output, stored = jax.vmap(one)(residual, hidden, keys)
    return (
        jnp.asarray(residual, jnp.float64),
        jnp.asarray(output, jnp.float64),
        stored,
    )


@eqx.filter_jit
def _run_norm(sites, residual, hidden, p):
    normed = jax.vmap(lambda r, h: final_norm(Rounded(sites), r, h, p))(
        residual, hidden
    )
    return jnp.asarray(normed, jnp.float64)


@eqx.filter_jit
def _run_head(sites, normed, rows):
    return jnp.asarray(logits(Rounded(sites), normed, rows), jnp.float64)
