"""A check of the state-space blocks of a file of weights, without its network."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._arguments import choice, progress_or_none, shown, sublayer_numbers
from .._errors import UsageError
from .._xla import demand_flags
from ..checkpoints._checkpoint import file_hashes
from ..checkpoints.files._files import listing, quote
from ..mixers import Call, Mixer, StoredBlock, blocks_of_file, model_of_call
from ..mixers._file import OTHERS, UNUSED, chosen_set
from ..mixers._kinds import KINDS
from ..results import Report
from ._block_inputs import BlockInputs, captured, random
from ._request import Request, device_named
from ._verified import verified
from ._watch import MEASURES, SETTINGS, to_check
from ._watch_report import BlockCall, Subject, report_of_calls


NO_LOGITS = "blocks of a file without a configuration have no logits"
DRAWN = {"length": 512, "batch": 1}
"""What random inputs are as long as, where nobody says it."""


def check_blocks(
    path: str | os.PathLike,
    *,
    inputs: Any = None,
    random_inputs: float | None = None,
    length: int | None = None,
    batch: int | None = None,
    options: Mapping[str, Any] | None = None,
    weight_set: str | None = None,
    layers: Sequence[int] | None = None,
    progress: Any = None,
    **settings: Any,
) -> Report:
    """Check every state-space block of a file of weights that has no configuration.

    Names and shapes tell what a block is (`lyapunov.mixers.blocks_of_file` lists them);
    what they do not say is asked for, and nothing is assumed.

    **Arguments:**

    - `path`: a `.safetensors`, or a `.pth`, `.pt` or `.ckpt` that `torch.save` wrote.
    - `inputs`: what the blocks read: path of a .npz, or arrays by the blocks' names, or
      one array for all, (seq, d_model) or (batch, seq, d_model). Where `NAME.output` is
      there as well, the block is held to what it gave.
    - `random_inputs`: instead of `inputs`: normal rows with this root mean square,
      `batch` (1) times `length` (512), by `seed`.
    - `options`: what the tensors leave open, for all blocks, as `{"chunk": 256}`.
    - `weight_set`: which dictionary of the file, as `ema`, where several have blocks.
    - `layers`: places in the list of blocks, from 0; None is all.
    - `progress`: as for `check`.
    - `settings`: as of `watch`.

    **Raises:** `UsageError` for what is open, unknown or of another shape;
    `CheckpointError` for a file that cannot be read.
    """
    began = time.perf_counter()
    demand_flags()
    strange = sorted(set(settings) - set(SETTINGS))
    if strange:
        raise UsageError(
            f"check_blocks takes no {strange[0]}", hint=f"one of {', '.join(SETTINGS)}"
        )
    choice(settings.get("measure", "emulated"), "measure", MEASURES)
    request = Request.of(**settings)
    path = Path(path).expanduser()
    blocks = _chosen(chosen_set(blocks_of_file(path), weight_set), layers)
    given = dict(options or {})
    _refuse_options(blocks, given)
    shape = {"length": length, "batch": batch}
    read = _inputs(blocks, inputs, random_inputs, shape, request.seed)
    _demand_options(blocks, given, read)
    bar = progress_or_none(progress)
    if bar is not None:
        bar.start(len(blocks), "reading")
    with jax.enable_x64(True), jax.default_device(device_named(request.device)):
        calls = []
        for block in blocks:
            calls.append(_call(block, given, read, str(path)))
            if bar is not None:
                bar.advance(1, block.title)
        subject = Subject(
            str(path),
            read.source,
            NO_LOGITS,
            _said(blocks, given),
            file_hashes((path,)),
        )
        return report_of_calls(calls, subject, request, began)


def _inputs(
    blocks: Sequence[StoredBlock],
    inputs: Any,
    scale: float | None,
    shape: Mapping[str, int | None],
    seed: int,
) -> BlockInputs:
    """What was captured, or draws of this scale; one of the two has to be said."""
    asked = {name: number for name, number in shape.items() if number is not None}
    if inputs is not None and scale is None:
        if asked:
            raise UsageError(
                f"{listing(list(asked))} beside inputs, which have their own",
                hint="leave it out",
            )
        return captured(inputs, blocks)
    if scale is not None and inputs is None:
        return random(blocks, scale, seed=seed, **{**DRAWN, **asked})
    what = "no inputs" if inputs is None else "inputs and a scale of random ones"
    raise UsageError(
        f"the blocks are given {what}",
        hint="--inputs captured.npz (inputs=), or --random-inputs 1 (random_inputs=1); "
        f"the blocks are {listing([one.title for one in blocks])}",
    )


def _chosen(blocks: list[StoredBlock], layers: Any) -> list[StoredBlock]:
    """The blocks at these places."""
    numbers = sublayer_numbers(layers)
    if numbers is None:
        return blocks
    if numbers[-1] >= len(blocks):
        raise UsageError(
            f"there is no block {numbers[-1]}; the file has {len(blocks)}",
            hint=f"--layers 0-{len(blocks) - 1}",
        )
    return [blocks[number] for number in numbers]


def _refuse_options(blocks: Sequence[StoredBlock], given: Mapping[str, Any]) -> None:
    """Refuse options that no block asks for."""
    asked = {name for one in blocks for name in one.open}
    for name, value in given.items():
        shapes_say = [one.said[name] for one in blocks if name in one.said]
        if name in asked or value in shapes_say:
            continue
        every = {n for known in KINDS.values() for n in known.options} | {OTHERS}
        why = "the tensors leave no such thing open" if name in every else "unknown"
        why = f"the shapes say {shapes_say[0]}" if shapes_say else why
        raise UsageError(
            f"no block asks for {shown(name)}: {why}",
            hint=f"one of {', '.join(sorted(asked))}; --list says what each means",
        )
    if OTHERS in given and given[OTHERS] != UNUSED:
        raise UsageError(
            f"{OTHERS} is {shown(given[OTHERS])}", hint=f"{OTHERS}={UNUSED}"
        )


def _demand_options(
    blocks: Sequence[StoredBlock], given: Mapping[str, Any], read: BlockInputs
) -> None:
    """Ask for everything that is open, at once."""
    missing: dict[str, tuple[str, StoredBlock]] = {}
    for one in blocks:
        for name, meaning in one.open.items():
            told = name == OTHERS or bool(one.known.options[name].tried)
            if name not in given and not (told and one.title in read.wrote):
                missing.setdefault(name, (meaning, one))
    if missing:
        name, (meaning, one) = next(iter(missing.items()))
        rest = [f"{n} ({text})" for n, (text, _) in list(missing.items())[1:]]
        raise UsageError(
            f"the tensors do not say {name} of {quote(one.title)}: {meaning}"
            + (f"; nor {'; '.join(rest)}" if rest else ""),
            hint=" ".join(f"--block-option {n}=..." for n in missing)
            + f" (options={{{name!r}: ...}})",
        )


def _call(
    block: StoredBlock, given: Mapping[str, Any], inputs: BlockInputs, source: str
) -> BlockCall:
    """A block on what it read; held to what it gave, where that is there."""
    read, wrote = inputs.read[block.title], inputs.wrote.get(block.title)
    mixers = block.mixers(given, output_tells=wrote is not None)
    if wrote is None:
        (mixer,) = mixers
        model, ids = model_of_call(mixer, read, source)
        told = (
            f"{block.title} is taken for {mixer.kind} by names and shapes of its "
            "tensors; not verified: no output was given"
        )
        return BlockCall(block.name, block.title, mixer, model, ids, read, told)
    call = Call(
        block.title, 0, mixers, read, wrote, _narrowest(mixers[0], read, wrote), "", ""
    )
    try:
        return to_check(verified(call, source))
    except UsageError as error:
        said = ", ".join(name for name in given if name in block.known.options)
        raise UsageError(
            error.message,
            hint=f"another value of {said or 'its options'}; or a function of its own, "
            "which is described in Python: lyapunov.watch",
        ) from None


def _narrowest(mixer: Mixer, *arrays: np.ndarray) -> str:
    """The type with the fewest bits of what the block multiplies, read and gave."""
    names = {"float64": "fp64", "float32": "fp32", "float16": "fp16"}
    names["bfloat16"] = "bf16"
    order = list(names)
    every = [*arrays, *(w for w in mixer.weights.values() if w.ndim > 1)]
    return names[max((str(a.dtype.newbyteorder("=")) for a in every), key=order.index)]


def _said(blocks: Sequence[StoredBlock], given: Mapping[str, Any]) -> list[str]:
    """What was said of the blocks beside their tensors."""
    lines = []
    if weight_set := blocks[0].weight_set:
        lines.append(f"the weights are those under {weight_set}")
    if given:
        told = ", ".join(f"{name} = {value}" for name, value in given.items())
        lines.append(f"said of the blocks, and not by their tensors: {told}")
    lines.append(
        "nothing is known of the network around the blocks: whether a norm stands in "
        "front of one, and what becomes of its output"
    )
    return lines
