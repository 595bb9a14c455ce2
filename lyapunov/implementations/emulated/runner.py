"""The emulator: a flow with every stored tensor rounded as the execution says."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._devices import over_batch
from ...arithmetic import Rounded
from ...arithmetic._form import Form
from ...arithmetic._programs import program
from ...arithmetic.random_keys import random_key
from ...models import Model
from ...sublayers.residual import Incoming, Stream, beside, final_norm, logits, sublayer
from ...sublayers.sites import NO_ROW_A_TOKEN
from .. import Execution
from .._segment import Segment
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant


class Emulated:
    """Run a network as an execution would, roundings included, on any machine.

    **Arguments:**

    - `seed`: of what is drawn, for a state that is rounded stochastically.
    """

    def __init__(self, execution: Execution, seed: int = 0):
        self.execution = execution
        self._seed = seed

    @traced_in_fp64
    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers with their stored tensors, then the head.

        **Arguments:** as for `Runner.trace`; the variant is what its segments say.
        """
        del variant
        execution = self.execution
        segments = segments or (Segment(0, tokens.shape[1], execution),)
        sites = execution.site_numbers()
        stream = Stream.start(model.embed(tokens, execution), model.sublayers)
        for layer in model.sublayers:
            incoming = stream.incoming(layer)
            residual, output, *stored = self._sublayer(model, layer, incoming, segments)
            yield SublayerRecord.of(layer, incoming, output, stored.pop(), {})
            together = lambda one, other: _run_together(sites, one, other)
            stream = stream.after(layer, residual, output, together)
        normed = _run_norm(
            sites, stream.residual, stream.hidden, model.final_norm(execution)
        )
        end = model.config.logits_end
        yield HeadRecord(
            stream.residual,
            stream.hidden,
            lambda start, stop: _run_head(
                sites, normed, model.head(start, stop, execution), end
            ),
        )

    def _sublayer(self, model: Model, layer, incoming, segments: Sequence[Segment]):
        """Call after call: stream, output and what was stored, of all tokens."""
        sizes: Any = model.config.sublayers[layer.layer]
        parts, after = [], None
        for segment in segments:
            own = segment.execution.at(layer).begun(segment.start)
            p = model.parameters(layer.layer, own)
            *part, after = run_rounded(
                sizes,
                own.site_numbers(),
                {"state": segment.cache.numbers()},
                incoming if len(segments) == 1 else _cut(incoming, segment),
                p,
                model.start(p),
                after,
                np.asarray([self._seed, layer.layer, segment.start]),
                own.form,
                segment is not segments[-1],
            )
            parts.append(part)
        return parts[0] if len(parts) == 1 else _joined(parts)


def _cut(incoming: Incoming, segment: Segment) -> Incoming:
    return jax.tree.map(lambda x: x[:, segment.start : segment.stop], incoming)


def _joined(parts):
    """Streams, outputs and stored tensors of all calls, one after another."""
    residuals, outputs, stored = zip(*parts, strict=True)
    # what only some calls store is no tensor of the whole text
    common = set.intersection(*(set(s) for s in stored)) - set(NO_ROW_A_TOKEN)
    join = lambda arrays: jnp.concatenate(list(arrays), axis=1)
    tensors = {site: join(s[site] for s in stored) for site in sorted(common)}
    return join(residuals), join(outputs), tensors


@program
def run_rounded(
    sizes,
    sites,
    cache,
    incoming,
    p,
    start,
    before,
    drawn,
    form: Form,
    hands_on: bool,
):
    """One sublayer over a batch: stream, output, stored tensors, and the state behind.

    **Arguments:**

    - `before`: the state that the call before left, held in `cache`; None: `start`.
    - `drawn`: a seed, the sublayer's number and the call's first token, from which
      whatever is drawn follows.
    """

    def one(incoming, key, start):
        at = Rounded(sites, key=key, form=form)
        residual, output, after = sublayer(at, sizes.flow, incoming, p, start)
        return residual, output, at.records, after if hands_on else None

    def later(incoming, key, before):
        return one(incoming, key, sizes.handed(Rounded(cache), before))

    seed, layer, first = drawn
    key = jax.random.fold_in(random_key(seed), layer)
    key = jnp.where(first > 0, jax.random.fold_in(key, first), key)
    keys = jax.random.split(key, incoming.residual.shape[0])
    if before is None:
        found = over_batch(lambda i, k: one(i, k, start), incoming, keys)
    else:
        found = over_batch(later, incoming, keys, before)
    residual, output, stored, after = found
    return (
        jnp.asarray(residual, jnp.float64),
        jnp.asarray(output, jnp.float64),
        stored,
        after,
    )


@program
def _run_together(sites, output, other):
    return jnp.asarray(beside(Rounded(sites), output, other), jnp.float64)


@program
def _run_norm(sites, residual, hidden, p):
    normed = over_batch(
        lambda r, h: final_norm(Rounded(sites), r, h, p), residual, hidden
    )
    return jnp.asarray(normed, jnp.float64)


@program
def _run_head(sites, normed, rows, end):
    return jnp.asarray(logits(Rounded(sites), normed, rows, end), jnp.float64)
