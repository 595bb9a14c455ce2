"""Which devices do the work: sequences of a batch on one, or spread over all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec


AXIS = "batch"
SEQUENCES = "sequences of a batch"


def chosen_device() -> Any:
    """What `jax.default_device` chose in this thread, or None."""
    config: Any = jax.config
    return config.jax_default_device


def as_here(device: Any, work: Callable, *arguments: Any) -> Any:
    """Run in a worker, and get NumPy's arrays: fp64 and the device are a thread's own
    business."""
    with jax.enable_x64(True), jax.default_device(device):
        return jax.tree.map(np.asarray, work(*arguments))


def devices() -> list[jax.Device]:
    """The one that was chosen, or else all that this process has."""
    chosen = chosen_device()
    if chosen is None:
        return jax.local_devices()
    return [jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen]


def has_gpu() -> bool:
    """Whether the work is done on NVIDIA GPUs."""
    return devices()[0].platform in ("gpu", "cuda")


def spread_over(sequences: int) -> list[jax.Device]:
    """The devices that a batch is spread over: as many as divide it."""
    present = devices()
    count = min(sequences, len(present))
    while count > 1 and sequences % count:
        count -= 1
    return present[: max(count, 1)]


def device_memory() -> int:
    """Bytes that JAX may hold on a GPU; 0 elsewhere, or where it does not say."""
    stats = devices()[0].memory_stats() if has_gpu() else None
    return (stats or {}).get("bytes_limit", 0)


def over_batch(run: Callable, *batched: Any) -> Any:
    """`jax.vmap(run)(*batched)`, each device with its share of the sequences.

    Where there is one device, that is all it is. Otherwise a `NamedSharding` over as
    many as divide the batch lays out what comes in and goes out along the first axis;
    what `run` closes over, such as parameters, every device has whole. Sequences do
    not interact, so nothing is sent between devices.

    **Arguments:**

    - `batched`: pytrees of arrays whose first axis is the batch.
    """
    here = spread_over(jax.tree.leaves(batched)[0].shape[0])
    run = side_by_side(run)
    if len(here) == 1:
        return run(*batched)
    along = PartitionSpec(AXIS)
    spread = jax.shard_map(
        run,
        mesh=Mesh(np.asarray(here), (AXIS,)),
        in_specs=along,
        out_specs=along,
        # a kernel does not say along which axes its outputs vary
        check_vma=False,
    )
    return spread(*batched)


def side_by_side(run: Callable) -> Callable:
    """`jax.vmap` over the sequences of a batch, which `in_batch` counts inside.

    One sequence is not mapped over, which is a quarter of tracing.
    """
    mapped = jax.vmap(run, axis_name=SEQUENCES)

    def each(*batched: Any) -> Any:
        if jax.tree.leaves(batched)[0].shape[0] > 1:
            return mapped(*batched)
        alone = run(*jax.tree.map(lambda x: x[0], batched))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], alone)

    return each


def in_batch() -> int:
    """Count the sequences that run side by side here; 1 outside `side_by_side`."""
    try:
        return jax.lax.axis_size(SEQUENCES)
    except NameError:
        return 1
