"""The emulator, run in calls: chunks and steps with the state handed from one on."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._devices import side_by_side
from ...arithmetic import Rounded
from ...models import Model
from ...sublayers.config import plain_mamba1
from ...sublayers.residual import Stream, final_norm, logits, sublayer
from .._segment import Segment
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from .runner import Emulated


class EmulatedVariants:
    """Emulate one text's runs in several calls."""

    @traced_in_fp64
    def trace(
        self, model: Model, tokens, variant: Variant, segments: tuple[Segment, ...]
    ) -> Trace:
        """Records of all sublayers with their stored tensors, then the head.

        **Arguments:**

        - `tokens`: (batch, seq).
        - `segments`: the calls and their executions.
        """
        del variant
        execution = segments[0].execution
        if plain_mamba1(model.config) is None:
            (_,) = segments  # others are run in one call
            yield from Emulated(execution).trace(model, tokens)
            return
        stream = Stream.start(model.embed(tokens, execution))
        for layer in model.sublayers:
            p = model.parameters(layer.layer, execution)
            incoming, state = stream.incoming(layer), None
            parts = []
            for segment in segments:
                span = slice(segment.start, segment.stop)
                start = model.start(p) if state is None else state
                *part, state = _run_call(
                    layer.flow,
                    segment.execution.site_numbers(),
                    {} if state is None else {"state": segment.cache.numbers()},
                    jax.tree.map(lambda x: x[:, span], incoming),  # noqa: B023
                    p,
                    start,
                    state is not None,
                )
                parts.append(part)
            residual, output, stored = _joined(parts)
            yield SublayerRecord.of(layer, incoming, output, stored, {})
            stream = stream.after(layer, residual, output, jnp.add)
        sites = execution.site_numbers()
        normed = _run_norm(
            sites, stream.residual, stream.hidden, model.final_norm(execution)
        )
        yield HeadRecord(
            stream.residual,
            stream.hidden,
            lambda start, stop: _run_head(
                sites, normed, model.head(start, stop, execution)
            ),
        )


def _joined(parts):
    """Streams, outputs and stored tensors of all calls, one after another."""
    residuals, outputs, stored = zip(*parts, strict=True)
    # what only some calls store is no tensor of the whole text
    common = set.intersection(*(set(s) for s in stored))
    join = lambda arrays: jnp.concatenate(list(arrays), axis=1)
    tensors = {site: join(s[site] for s in stored) for site in sorted(common)}
    return join(residuals), join(outputs), tensors


@eqx.filter_jit
def _run_call(flow, sites, cache, incoming, p, start, per_sequence):
    def one(incoming, start):
        if cache:
            kept = Rounded(cache).store("state", start.state)
            start = eqx.tree_at(lambda s: s.state, start, kept)
        at = Rounded(sites)
        residual, output, after = sublayer(at, flow, incoming, p, start)
        return residual, output, at.records, after

    axes = (0, 0 if per_sequence else None)
    residual, output, stored, after = side_by_side(one, axes)(incoming, start)
    return (
        jnp.asarray(residual, jnp.float64),
        jnp.asarray(output, jnp.float64),
        stored,
        after,
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
