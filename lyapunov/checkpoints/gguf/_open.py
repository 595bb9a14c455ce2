"""From GGUF files to settings and tensors as transformers calls them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import quote
from ..quantised._recognise import Quantisation
from ._header import Header, read_header
from ._hybrids import falcon_h1, granite_hybrid, nemotron_h
from ._mamba import jamba, mamba, mamba2
from ._model import FileModel
from ._qwen3_next import qwen3_next
from ._tensors import METHOD, GgufTensor, format_of


ARCHITECTURES: Mapping[str, Callable[[FileModel], dict[str, Any]]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "falcon-h1": falcon_h1,
    "granitehybrid": granite_hybrid,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "jamba": jamba,
    "qwen3next": qwen3_next,
}
"""Readers by llama.cpp's names of architectures."""


_ASSUMED = (
    "the model is what llama.cpp computes of the file (read in the version inside"
    " llama-cpp-python 0.3.36): dt has no limits, all norms of a kind have the file's"
    " one epsilon, and settings are the fp32 numbers that it holds",
    "the file holds A = -exp(A_log); A_log is its logarithm in fp64, and exp of that"
    " is A again to some 1e-16",
)
_HELD = (
    "weights in blocks ({}) are what the gguf package makes of them in fp32, by up to"
    " three roundings (Q8_0: by none), and rounded no further in the reference; an"
    " execution rounds each once to its own format of weights"
)
_ACTIVATIONS = "to 8-bit blocks, by llama.cpp on a CPU, before weights in blocks"


class GgufModel(NamedTuple):
    """What a model's files come to: fields of a `Checkpoint`."""

    config: dict[str, Any]
    """What transformers' config.json would say of it."""
    tensors: dict[str, Any]
    """By transformers' names."""
    quantisation: Quantisation | None
    assumptions: tuple[str, ...]


def read_gguf(files: tuple[Path, ...]) -> GgufModel:
    """Read settings and tensors of a model in GGUF files, without the tensors' bytes.

    **Raises:** a `CheckpointError` of the kind that fits; `MissingExtraError` where
    tensors are stored in blocks that the gguf package reads, which is not there.
    """
    headers = [read_header(path) for path in files]
    shown = quote(files[0], 200)
    tensors: dict[str, GgufTensor] = {}
    for path, header in zip(files, headers, strict=True):
        for entry in header.tensors:
            if entry.name in tensors:
                raise CorruptCheckpointError(
                    f"{quote(entry.name)} in more than one file of {shown}",
                    hint="download all files of the model again",
                )
            tensors[entry.name] = GgufTensor.of(path, entry)
    _demand_whole(headers, len(tensors), shown)
    values = headers[0].metadata
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptCheckpointError(
            f"{shown} does not say 'general.architecture'",
            hint="is it the first file of its model?",
        )
    reader = ARCHITECTURES.get(architecture)
    if reader is None:
        covered = ", ".join(ARCHITECTURES)
        raise UnsupportedCheckpointError(
            f"{shown} is of architecture {quote(architecture)}, which is not covered as"
            f" GGUF; covered are {covered}",
            hint="check the checkpoint that it was made from",
        )
    model = FileModel(values, architecture, tensors, shown)
    config = reader(model)
    model.names.demand_all_taken()
    found = model.names.found
    blocks = format_of(kind for one in found.values() for kind in one.kinds)
    quantisation = None
    if blocks is not None:
        held = _HELD.format(blocks.element)
        quantisation = Quantisation(METHOD, _ACTIVATIONS, False, (), held=held)
    return GgufModel(config, found, quantisation, _ASSUMED)


def _demand_whole(headers: list[Header], tensors: int, shown: str) -> None:
    """Hold the number of files and tensors to what the first file says of them."""
    for i, header in enumerate(headers):
        count = header.metadata.get("split.count", 1) or 1
        place = header.metadata.get("split.no", 0)
        if count != len(headers) or place != i:
            raise CorruptCheckpointError(
                f"{shown} has {len(headers)} files, of which number {i + 1} says that"
                f" it is number {quote(place, 20)} (from 0) of {quote(count, 20)}",
                hint="download all files of the model again, and keep their names",
            )
    claimed = headers[0].metadata.get("split.tensors.count", tensors)
    if claimed != tensors:
        raise CorruptCheckpointError(
            f"the files of {shown} hold {tensors} tensors; the first claims"
            f" {quote(claimed, 20)}",
            hint="download all files of the model again",
        )
