"""What blocks of a file read: what somebody captured, or draws of a stated scale."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .._arguments import shown, whole
from .._errors import ArgumentError, DumpError, UsageError
from ..checkpoints.files._files import human_bytes, listing, quote
from ..checkpoints.files._tensors import physical_memory
from ..implementations.dump._npz import Npz
from ..mixers import StoredBlock


OUTPUT = ".output"
"""Behind a block's name: what it gave on what it read."""
FORM = (
    "np.savez('captured.npz', **{'NAME': what the block read, 'NAME.output': what it "
    "gave}), each (seq, d_model) or (batch, seq, d_model)"
)


class BlockInputs(NamedTuple):
    """What every block read, and what some gave."""

    source: str
    """In words."""
    read: Mapping[str, Float[np.ndarray, "batch seq d_model"]]
    wrote: Mapping[str, Float[np.ndarray, "batch seq d_model"]]


def captured(inputs: Any, blocks: Sequence[StoredBlock]) -> BlockInputs:
    """Inputs that somebody has: of a .npz, or arrays in memory.

    **Arguments:**

    - `inputs`: path of a .npz with arrays under the blocks' names (`NAME`, or
      `NAME.output` for what it gave), or with a single array for all; or such a mapping
      or array. (seq, d_model) or (batch, seq, d_model), fp64, fp32 or fp16.

    **Raises:** `UsageError` for an array that is missing, belongs to no block, or has
    another width or kind.
    """
    if isinstance(inputs, str | os.PathLike):
        path = Path(inputs).expanduser()
        arrays, source = _of_npz(path, blocks), f"inputs of {path}"
    elif isinstance(inputs, Mapping):
        arrays, source = dict(inputs), "inputs that were given"
    else:
        arrays, source = {"the array": inputs}, "inputs that were given"
    names = [one.title for one in blocks]
    known = {name: name for name in names} | {f"{n}{OUTPUT}": n for n in names}
    single = len(arrays) == 1 and next(iter(arrays)) not in known
    if single:
        (array,) = arrays.values()
        arrays, source = dict.fromkeys(names, array), f"{source}, one array for all"
    strangers = [name for name in arrays if name not in known]
    missing = [name for name in names if name not in arrays]
    if strangers or missing:
        what = f"{quote(strangers[0])}, which is no block" if strangers else ""
        what = what or f"nothing that {quote(missing[0])} read"
        raise UsageError(
            f"the inputs have {what}",
            hint=f"the blocks are {listing(names)}: {FORM}",
        )
    of = {one.title: one for one in blocks}
    found = {key: _array(key, one, of[known[key]]) for key, one in arrays.items()}
    wrote = {known[k]: one for k, one in found.items() if k not in of}
    for name, one in wrote.items():
        if one.shape != found[name].shape:
            raise UsageError(
                f"{quote(name)} read {found[name].shape} and gave {one.shape}",
                hint="a block gives what has the shape of what it read",
            )
    return BlockInputs(source, {name: found[name] for name in names}, wrote)


def _of_npz(path: Path, blocks: Sequence[StoredBlock]) -> dict[str, np.ndarray]:
    """The arrays, whose headers are looked at before memory is taken."""
    try:
        file = Npz(path)
        if not list(file):
            raise DumpError(f"{path.name} has no arrays")
        arrays = {}
        for name in file:
            shape, dtype = file.shape_and_dtype(name)
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size > physical_memory():
                raise DumpError(
                    f"{quote(name)} takes {human_bytes(size)}, more than this machine "
                    "has"
                )
            if dtype.kind != "f":
                raise DumpError(f"{quote(name)} is of dtype {dtype}, no floats")
            arrays[name] = file.read(name, kinds="f")
    except DumpError as error:
        raise UsageError(
            f"--inputs: {error.message}", hint=FORM.replace("NAME", blocks[0].title)
        ) from None
    return arrays


def _array(name: str, value: Any, block: StoredBlock) -> np.ndarray:
    """One array as (batch, seq, d_model).

    **Raises:** `UsageError`.
    """
    array = np.asarray(value)
    width = block.sizes["d_model"]
    if array.ndim == 2:
        array = array[None]
    fits = array.ndim == 3 and array.shape[-1] == width and 0 not in array.shape
    if not fits or array.dtype not in (np.float64, np.float32, np.float16):
        raise UsageError(
            f"the inputs' {quote(name)} is of {array.dtype} and shape "
            f"{np.shape(value)}; {quote(block.title)} reads rows of {width}",
            hint=f"(seq, {width}) or (batch, seq, {width}) of fp64, fp32 or fp16",
        )
    if array.shape[1] < 2:
        raise UsageError(
            f"the inputs' {quote(name)} is one token long", hint="two tokens or more"
        )
    if not np.isfinite(array).all():
        raise UsageError(
            f"the inputs' {quote(name)} is not finite",
            hint="capture a forward pass that was",
        )
    return array


def random(
    blocks: Sequence[StoredBlock], scale: Any, *, batch: int, length: int, seed: int
) -> BlockInputs:
    """Draw rows for every block: standard normal numbers, each row divided by its root
    mean square and times the scale, in fp32; seeded by `seed` and the block's place.

    **Arguments:**

    - `scale`: the root mean square of each row.

    **Raises:** `ArgumentError`.
    """
    number = None if isinstance(scale, bool | str) else scale
    if not isinstance(number, int | float) or not 0.0 < number < 1e30:
        raise ArgumentError(
            f"random inputs of scale {shown(scale)}",
            hint="the root mean square of every row, as 1; behind a norm it is near 1",
        )
    whole(batch, "batch", 1)
    whole(length, "length", 2)
    read = {}
    for place, one in enumerate(blocks):
        drawn = np.random.default_rng([seed, place]).standard_normal(
            (batch, length, one.sizes["d_model"])
        )
        drawn *= number / np.sqrt(np.mean(drawn**2, axis=-1, keepdims=True))
        read[one.title] = drawn.astype(np.float32)
    source = (
        f"random inputs: standard normal rows, each scaled to a root mean square of "
        f"{number:g} (seed {seed})"
    )
    return BlockInputs(source, read, {})
