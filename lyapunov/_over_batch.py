"""Sequences of a batch, side by side: on one device, or spread over all of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec


AXIS = "batch"


def over_batch(run: Callable, *batched: Any) -> Any:
    """`jax.vmap(run)(*batched)`, each device with its share of the sequences.

    Where there is one device, or the batch does not divide among them, that is all it
    is. Otherwise a `NamedSharding` over all devices lays out what comes in and goes
    out along the first axis; what `run` closes over, such as parameters, every device
    has whole. Sequences do not interact, so nothing is sent between devices.

    **Arguments:**

    - `batched`: pytrees of arrays whose first axis is the batch.
    """
    devices = jax.local_devices()
    sequences = jax.tree.leaves(batched)[0].shape[0]
    if len(devices) == 1 or sequences % len(devices):
        return jax.vmap(run)(*batched)
    along = PartitionSpec(AXIS)
    spread = jax.shard_map(
        jax.vmap(run),
        mesh=Mesh(np.asarray(devices), (AXIS,)),
        in_specs=along,
        out_specs=along,
        # a kernel does not say along which axes its outputs vary
        check_vma=False,
    )
    return spread(*batched)
