"""Executions that quantise what products read as a checkpoint's configuration has it.

Each module has a format of its own there, or none; servers follow that, and so do the
executions made here: one for each sublayer whose modules are asked for something. What
no site or format stands for is said in a line and left as it is.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..checkpoints._network import NetworkLayout
from ..checkpoints.quantised._activations import Asked
from ..checkpoints.quantised._fused import FUSED
from ..checkpoints.quantised._recognise import Quantisation
from ..formats import FP64, Format, operand_format_named
from ..formats._operand_table import parse_operand
from ._execution import Execution
from ._quantised_activations import BEHIND_CODES, OPERANDS


class Read(NamedTuple):
    """What the matrices behind one site of one sublayer read."""

    format: str
    """As `operand_format_named` takes it."""
    matrices: tuple[str, ...]


class Refusal(NamedTuple):
    """Why what a site's matrices read is left as it is."""

    kind: str
    matrices: tuple[str, ...]
    why: str


@dataclasses.dataclass(frozen=True)
class Configured:
    """What a configuration asks of each sublayer, as far as it is followed.

    **Arguments:**

    - `reads`: of every sublayer by site; empty where nothing is quantised.
    - `left`: lines on what is not followed.
    - `joined`: lines on scales of several modules of which one is taken.
    """

    reads: tuple[Mapping[str, Read], ...]
    left: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Tell whether anything is followed at all."""
        return any(self.reads)


# a checkpoint of experts has ten thousands of scales, and a check asks several times
_FOUND: WeakKeyDictionary[NetworkLayout, Configured] = WeakKeyDictionary()


def configured_activations(layout: NetworkLayout) -> Configured:
    """Find what the configuration asks of each sublayer's products.

    **Raises:** `CorruptCheckpointError` for a scale that is to be fixed beforehand and
    is missing, or is no positive number.
    """
    if (known := _FOUND.get(layout)) is None:
        known = _FOUND[layout] = _configured(layout)
    return known


def _configured(layout: NetworkLayout) -> Configured:
    told = layout.checkpoint.quantisation
    if told is None or not told.asked:
        return Configured(tuple({} for _ in layout.parts))
    reads: list[dict[str, Read]] = []
    refused: dict[Refusal, list[int]] = {}
    joined: dict[tuple[str, tuple[str, ...], bool], list[int]] = {}
    for number, (sizes, parts) in enumerate(
        zip(layout.config.sublayers, layout.parts, strict=True)
    ):
        modules = {
            name: tuple(one.removesuffix(".weight") for one in part.names)
            for name, part in parts.items()
        }
        found: dict[str, Read] = {}
        for site, names in _sites(sizes.kind, modules, told):
            here = tuple(one for name in names for one in modules[name])
            answer = _format_of(told, here, site)
            if isinstance(answer, str):
                refusal = Refusal(sizes.kind, names, answer)
                refused.setdefault(refusal, []).append(number)
                continue
            found[site] = Read(answer.format, names)
            if answer.scales > 1:
                key = sizes.kind, names, answer.least
                joined.setdefault(key, []).append(number)
        reads.append(found)
    left = [_told(refusal, numbers) for refusal, numbers in refused.items()]
    head = layout.names.head.removesuffix(".weight")
    if head in told.asked:
        left.append(f"in front of the head, {told.asked[head].words}")
    return Configured(
        tuple(reads),
        tuple(f"not followed: quantised activations {one}" for one in left),
        tuple(_one_of_several(*key, numbers) for key, numbers in joined.items()),
    )


def _sites(
    kind: str, modules: Mapping[str, Sequence[str]], told: Quantisation
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each site in front of matrices of which one is asked for something at least, and
    the matrices; the site is empty where no site is declared for what they read."""
    left = {n for n, here in modules.items() if any(m in told.asked for m in here)}
    for site, names in OPERANDS.get(kind, {}).items():
        if left & set(names):
            yield site, tuple(name for name in names if name in modules)
            left -= set(names)
    for name in sorted(left):
        yield "", (name,)


class _Found(NamedTuple):
    """The format of a site, and how it came from the modules' scales."""

    format: str
    scales: int
    """How many different ones there were."""
    least: bool = False
    """Whether the number in the format's name is the smallest of several."""


def _format_of(told: Quantisation, modules: Sequence[str], site: str) -> _Found | str:
    """The format of what modules read together, or why there is none."""
    asked = {module: told.asked.get(module) for module in modules}
    ways = set(asked.values())
    words = " or ".join(sorted({one.words for one in ways if one is not None}))
    if not site:
        return f"{words}: no execution here quantises them there"
    if None in ways:
        plain = [module for module, one in asked.items() if one is None]
        return f"{words}: {plain[0]} reads the same and is not quantised"
    if len(ways) > 1:
        return f"{words}: they read one tensor, and it is quantised one way here"
    one = next(iter(ways))
    if one is None or one.format is None:
        return f"{words}: no such format is declared"
    if one.scale is None:
        return _Found(one.format, 1)
    scales = {told.scale_of(module) for module in modules}
    if len(scales) > 1 and not _joined(modules, site):
        return f"{words}: they read one tensor under different scales"
    return _under_one(one, {scale for scale in scales if scale is not None}, site)


def _under_one(asked: Asked, scales: set[float], site: str) -> _Found:
    """The largest scale of those stored, as vLLM 0.33 takes it for matrices that it
    joins.

    Of experts in compressed-tensors' NVFP4 it takes the inverses first
    (`fused_moe/oracle/nvfp4.py`, a13_scale.max()): the smallest stored.
    """
    divides = asked.format == "nvfp4=" and not asked.inverse
    least = divides and site.startswith("expert")
    value = min(scales) if least else max(scales)
    if asked.inverse:
        value = float(np.float32(1.0) / np.float32(value))
    return _Found(f"{asked.format}{value!r}", len(scales), least)


def _joined(modules: Sequence[str], site: str) -> bool:
    """Whether vLLM joins these matrices into one, so that they read under one scale."""
    if site.startswith("expert"):
        return True
    leaves = {module.rpartition(".")[2] for module in modules}
    return any(leaves <= set(group) for group in FUSED)


def _told(refusal: Refusal, numbers: Sequence[int]) -> str:
    kind, matrices, why = refusal
    return f"in front of {', '.join(matrices)} of {kind} ({_which(numbers)}), {why}"


def _one_of_several(
    kind: str, matrices: tuple[str, ...], least: bool, numbers: Sequence[int]
) -> str:
    which = "smallest" if least else "largest"
    return (
        f"{', '.join(matrices)} of {kind} ({_which(numbers)}) have different scales of"
        f" activations; the {which} is taken for all, as vLLM 0.33 does that joins them"
    )


def _which(numbers: Iterable[int]) -> str:
    """Sublayers by their numbers, as 0-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    few = told if len(told) <= 8 else [*told[:7], "..."]
    many = len(runs) > 1 or runs[0][0] != runs[0][1]
    return f"sublayer{'s' * many} {', '.join(few)}"


def with_configured_activations(
    execution: Execution, layout: NetworkLayout, configured: Configured
) -> Execution:
    """The same execution with a format of its own in front of each product that the
    configuration asks it of.

    Sublayers that are asked for the same have equal executions; scales that are fixed
    are numbers of a format, so that one program runs all of them.
    """
    name = f"{execution.name}, activations as configured"
    made: dict[tuple[str, tuple[tuple[str, Read], ...]], Execution] = {}
    layers: dict[int, Execution] = {}
    concerned = {
        sizes.kind
        for sizes, reads in zip(layout.config.sublayers, configured.reads, strict=True)
        if reads
    }
    for number, (sizes, reads) in enumerate(
        zip(layout.config.sublayers, configured.reads, strict=True)
    ):
        if sizes.kind not in concerned:
            continue
        key = sizes.kind, tuple(reads.items())
        if key not in made:
            made[key] = _quantising(execution.of(sizes.kind), name, reads)
        layers[number] = made[key]
    named = lambda one: dataclasses.replace(one, name=name)
    kinds = {kind: named(one) for kind, one in execution.kinds.items()}
    told = (*_assumed(layout, configured), *configured.joined)
    return dataclasses.replace(
        execution,
        name=name,
        kinds=kinds,
        layers=layers,
        assumptions=(*execution.assumptions, *told),
    )


def _quantising(own: Execution, name: str, reads: Mapping[str, Read]) -> Execution:
    sites: dict[str, Format] = {
        site: operand_format_named(read.format) for site, read in reads.items()
    }
    names = [matrix for read in reads.values() for matrix in read.matrices]
    return dataclasses.replace(
        own,
        name=name,
        sites=own.sites | sites,
        parameters=own.parameters | dict.fromkeys(names, FP64),
    )


def _assumed(layout: NetworkLayout, configured: Configured) -> Iterator[str]:
    """What is quantised how, a line for each format."""
    found: dict[str, dict[tuple[str, tuple[str, ...]], list[int]]] = {}
    for number, (sizes, reads) in enumerate(
        zip(layout.config.sublayers, configured.reads, strict=True)
    ):
        here: dict[str, list[str]] = {}
        for read in reads.values():
            row, value = parse_operand(read.format)
            own = "" if value is None else " (each module's own, as stored)"
            here.setdefault(f"{row.meaning}{own}", []).extend(read.matrices)
        for meaning, matrices in here.items():
            places = found.setdefault(meaning, {})
            places.setdefault((sizes.kind, tuple(matrices)), []).append(number)
    for meaning, places in found.items():
        listed = "; ".join(
            f"{', '.join(matrices)} of {kind} ({_which(numbers)})"
            for (kind, matrices), numbers in places.items()
        )
        yield (
            f"as the checkpoint's configuration has it, activations are quantised to"
            f" {meaning} in front of {listed}{BEHIND_CODES}"
        )
