"""What an execution's roundings may do to the output of one block that stands alone.

T3 of a network that is not ours to run: blocks are ours, what lies around them is not.
A block's read is rounded once and for all, so that nothing random is in it; every store
behind it draws.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..arithmetic import Rounded
from ..arithmetic._fp64 import in_fp64
from ..formats import FP32, FP64
from ..implementations import Execution
from ..models import Model
from ..sublayers.residual import Incoming
from .passes import exact_pass
from .probes import Draw, run_sampled


READ = ("residual", "norm_read")
"""Sites at which a block that has no norm in front stores what it reads."""


class BlockRoundings(NamedTuple):
    """Differences at a block's output from exact arithmetic on the same read."""

    shift: Float[np.ndarray, "batch seq d_model"]
    """What is not random: weights and the read as the execution holds them."""
    drawn: Float[np.ndarray, "probes batch seq d_model"]
    """With an offset at every store as well, the shift included."""


@in_fp64
def block_roundings(
    model: Model,
    tokens: Int[np.ndarray, "batch seq"],
    execution: Execution,
    *,
    n_probes: int,
    seed: int,
    place: int = 0,
) -> BlockRoundings:
    """Draw roundings of the only sublayer of a model.

    **Arguments:**

    - `model`: of one block and no norm in front of it, as `model_of_call` makes it.
    - `n_probes`: independent draws, 0 or more.
    - `seed`, `place`: the draws follow from these; blocks of one network differ in
      their places.
    """
    (layer,) = model.sublayers
    own = execution.of(layer.kind)
    exact_p, p = model.parameters(0), model.parameters(0, own)
    start: Any = model.start(p)
    read = model.embed(tokens)
    exact = exact_pass(
        layer.flow, Incoming(read, jnp.zeros_like(read)), exact_p, model.start(exact_p)
    )
    sites = own.site_numbers()
    held = model.embed(tokens, execution)
    held = jnp.asarray(Rounded(sites).store(READ[0], held), jnp.float64)
    incoming = Incoming(held, jnp.zeros_like(held))
    shifted = exact_pass(layer.flow, incoming, p, start)
    sites |= {site: FP64.numbers() for site in READ if site in sites}
    # as `Probes`: beside a 16-bit store the roundings between two stores don't show
    reduced = any(fmt.is_reduced for fmt in execution.sites.values())
    inner = None if reduced else FP32.numbers()
    drawn = [
        run_sampled(
            layer.flow,
            sites,
            inner,
            Draw(n_probes, np.asarray([seed, number]), np.asarray(1.0)),
            np.asarray(place),
            incoming,
            p,
            start,
            own.form,
        )[1]
        for number in range(n_probes)
    ]
    base = np.asarray(exact)
    return BlockRoundings(
        np.asarray(shifted) - base,
        np.asarray([np.asarray(one) - base for one in drawn]).reshape(-1, *base.shape),
    )
