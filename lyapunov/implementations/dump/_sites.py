"""Which stored tensors a dump may hold of a sublayer, and how wide they are."""

from typing import Any

import jax
import jax.numpy as jnp

from ...arithmetic import Rounded
from ...formats import FP32
from ...models import Model, Sublayer
from ...sublayers.residual import Incoming, sublayer


# Two lengths: a width that changes with the text is no width.
LENGTHS = (5, 7)


def site_widths(model: Model, layer: Sublayer) -> dict[str, int]:
    """Widths of the sublayer's stored tensors of one row a token, by site.

    The flow is traced and not run, with a store at every site that its kind has.
    """
    sizes: Any = model.config.sublayers[layer.layer]
    p = model.parameters(layer.layer)
    with jax.enable_x64(True):
        short, long = (_shapes(model, layer, sizes, p, seq) for seq in LENGTHS)
    of_stream: dict[str, int] = dict.fromkeys(
        ("residual", "residual_aside"), sizes.d_model
    )
    return of_stream | {
        site: short[site][1]
        for site in sizes.sites
        if site in short
        and len(short[site]) == 2
        and short[site][0] == LENGTHS[0]
        and long[site] == (LENGTHS[1], short[site][1])
    }


def _shapes(model: Model, layer: Sublayer, sizes, p, seq: int):
    stream = jnp.zeros((seq, model.config.d_model))
    embedded = stream if layer.embedded else None

    def stored(incoming, p, start):
        at = Rounded(dict.fromkeys(sizes.sites, FP32.numbers()))
        sublayer(at, layer.flow, incoming, p, start)
        return at.records

    incoming = Incoming(stream, stream, stream, embedded)
    found = jax.eval_shape(stored, incoming, p, model.start(p))
    return {site: array.shape for site, array in found.items()}
