"""From a configuration that names a quantisation to the tensors that a model has."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import listing, quote
from ..files._tensors import StoredTensor
from ._activations import Asked, Asking, stored_scale
from ._awq import read_awq
from ._bitsandbytes import read_bitsandbytes
from ._compressed_tensors import read_compressed_tensors
from ._fp8_blocks import read_fp8_blocks
from ._fused import different_scales
from ._gptq import read_gptq
from ._modelopt import read_modelopt
from ._patterns import Kept, is_pattern
from ._settings import names_of, unsupported
from ._taken import Note, Taken
from ._torchao import read_torchao


IN_CONFIG = ("quantization_config", "compression_config")
"""Of config.json: where a quantisation is named; the second by older writers."""
MODELOPT_FILE = "hf_quant_config.json"
GPTQ_FILE = "quantize_config.json"
AWQ_FILE = "quant_config.json"
BESIDE = (MODELOPT_FILE, GPTQ_FILE, AWQ_FILE)
"""Files beside config.json that name one."""


class Layout(NamedTuple):
    """One method's layout."""

    read: Callable[[Mapping[str, Any], Taken], Asking]
    """Takes the method's tensors; returns how activations are quantised, by module."""
    kept: tuple[str, ...]
    """What its configuration calls the list of what is left alone."""
    signs: tuple[str, ...]
    """Endings of names that no other than such a file has."""


LAYOUTS: dict[str, Layout] = {
    "compressed-tensors": Layout(
        read_compressed_tensors, ("ignore",), (".weight_packed", ".weight_global_scale")
    ),
    "fp8": Layout(
        read_fp8_blocks,
        ("modules_to_not_convert", "ignored_layers"),
        (".weight_scale_inv",),
    ),
    "modelopt": Layout(
        read_modelopt, ("ignore", "exclude_modules"), (".weight_scale_2",)
    ),
    "gptq": Layout(read_gptq, ("modules_to_not_convert",), (".qweight", ".g_idx")),
    "awq": Layout(read_awq, ("modules_to_not_convert",), (".qweight",)),
    "bitsandbytes": Layout(
        read_bitsandbytes,
        ("llm_int8_skip_modules",),
        (".SCB", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"),
    ),
    "torchao": Layout(read_torchao, ("modules_to_not_convert",), ("._weight_qdata",)),
}
"""By quant_method."""
_LIST_ALL = ("compressed-tensors", "modelopt")
"""Whose writers list every matrix that they leave alone."""
_SIGNS = tuple(
    dict.fromkeys(
        (*(s for one in LAYOUTS.values() for s in one.signs), ".weight_scale")
    )
)


@dataclass(frozen=True)
class Quantisation:
    """Hold what a checkpoint's quantisation is, beside its tensors.

    **Arguments:**

    - `method`: the layout, as `gptq`.
    - `activations`: how they are quantised in front of products, in words; None where
      they are not.
    - `cache`: whether scales of a quantised key-value cache are stored.
    - `kept`: what the quantiser was told to leave alone, as its configuration lists it.
    - `notes`: what is to be said of it.
    - `held`: what its numbers are, where they are not code times scale in fp64.
    - `asked`: by module how what it reads is to be quantised; of those that are not on
      the list of what was to be left alone.
    - `scales`: what is stored for that, by name.
    """

    method: str
    activations: str | None
    cache: bool
    kept: tuple[str, ...]
    notes: tuple[Note, ...] = field(default=())
    held: str | None = None
    asked: Mapping[str, Asked] = field(default_factory=dict, repr=False)
    scales: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)

    def scale_of(self, module: str) -> float | None:
        """The scale that is fixed for what a module reads, in fp32's numbers; None
        where it is chosen as it runs.

        **Raises:** `CorruptCheckpointError` as `stored_scale`.
        """
        return stored_scale(self.asked[module], module, self.scales)


def dequantised_tensors(
    config: Mapping[str, Any],
    beside: Mapping[str, Mapping[str, Any]],
    stored: dict[str, StoredTensor],
) -> tuple[dict[str, Any], Quantisation | None]:
    """Put the matrices that are stored as codes in the place of what they are stored
    as.

    **Arguments:**

    - `config`: config.json.
    - `beside`: what there is of `BESIDE`, by name.
    - `stored`: every tensor of the files.

    **Returns:** the tensors that a model's table looks at, and what is to be said of
    the quantisation: None where there is none.

    **Raises:** `UnsupportedCheckpointError` for a method that is not covered,
    `CorruptCheckpointError` where configuration and tensors disagree.
    """
    settings = declared_settings(config, beside)
    if settings is None:
        signs = [name for name in stored if name.endswith(_SIGNS)]
        if signs:
            raise CorruptCheckpointError(
                f"{listing(signs)} are of a quantised model, and config.json names no"
                " quantisation (quantization_config)",
                hint="take config.json from where the weights come from; GPTQ's may"
                f" stand in {GPTQ_FILE}, ModelOpt's in {MODELOPT_FILE}",
            )
        return dict(stored), None
    method, told = settings
    layout = LAYOUTS[method]
    taken = Taken(stored, method)
    asking = layout.read(told, taken)
    inner = told.get("quantization")
    named = inner if isinstance(inner, dict) else told
    kept = names_of(named, *layout.kept)
    if not taken.made:
        raise _nothing_of(method, stored)
    left = taken.left()
    _no_signs_left(left, method)
    notes = [*taken.notes, *different_scales(taken.made)]
    asked = Kept(kept)
    notes += [*_of_kept(asked, taken, left), *_on_no_list(method, asked, left)]
    cache = bool(taken.cache_scales or _names_cache(named))
    activations = {
        module: found
        for module in (name.removesuffix(".weight") for name in taken.made)
        if not asked.means(module) and (found := asking(module)) is not None
    }
    notes += _idle_scales(activations, taken)
    return left, Quantisation(
        method,
        "; ".join(dict.fromkeys(one.words for one in activations.values())) or None,
        cache,
        kept,
        tuple(notes),
        asked=activations,
        scales=taken.scales,
    )


def _idle_scales(asked: Mapping[str, Asked], taken: Taken) -> Iterator[Note]:
    """Scales of activations that the configuration has no use for."""
    idle = []
    for name in taken.scales:
        module, _, last = name.rpartition(".")
        one = asked.get(module)
        if one is None or (one.format is not None and one.scale != last):
            idle.append(name)
    if idle:
        yield Note(
            f"{listing(idle)} are scales of activations that the configuration does"
            " not ask for: they are not read",
            hint=True,
        )


def declared_settings(
    config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Mapping[str, Any]] | None:
    """The method that a checkpoint names, and its settings; None where it names none.

    **Raises:** `UnsupportedCheckpointError` for a method that is not covered.
    """
    for key in IN_CONFIG:
        found = config.get(key)
        text = config.get("text_config")
        if not found and isinstance(text, dict):
            found = text.get(key)
        if not found:
            continue
        if not isinstance(found, dict):
            raise CorruptCheckpointError(
                f"config.json: {key} is no object",
                hint="take config.json from where the weights come from",
            )
        return _method_of(found), found
    if MODELOPT_FILE in beside:
        return "modelopt", beside[MODELOPT_FILE]
    for name, method in ((GPTQ_FILE, "gptq"), (AWQ_FILE, "awq")):
        if name in beside:
            return method, beside[name]
    return None


def _method_of(settings: Mapping[str, Any]) -> str:
    """The layout that a quantisation's settings name."""
    method = settings.get("quant_method")
    if method is None and ("load_in_4bit" in settings or "load_in_8bit" in settings):
        method = "bitsandbytes"
    if method is None and "config_groups" in settings:
        method = "compressed-tensors"
    if method is None and "quant_algo" in settings:
        method = "modelopt"
    if isinstance(method, str) and method.startswith("modelopt"):
        method = "modelopt"  # modelopt_fp4, modelopt_mixed
    if not isinstance(method, str) or method not in LAYOUTS:
        what = "a quantised model: quant_method"
        raise unsupported(what, method, tuple(LAYOUTS))
    return method


def _nothing_of(method: str, stored: Mapping[str, StoredTensor]) -> Exception:
    """The error for a configuration whose layout no tensor has."""
    signs = [name for name in stored if name.endswith(_SIGNS)]
    if signs:
        others = [
            other
            for other, layout in LAYOUTS.items()
            if any(name.endswith(layout.signs) for name in signs)
        ]
        like = " or ".join(others) or "another layout"
        return CorruptCheckpointError(
            f"the configuration says {method}; {listing(signs)} are as {like} stores"
            " them",
            hint="take config.json and weights from the same place",
        )
    return CorruptCheckpointError(
        f"the configuration says {method}, and no tensor is stored so",
        hint="weights that are not quantised need no quantization_config: remove it"
        " from config.json, or take the weights that belong to it",
    )


def _no_signs_left(left: Mapping[str, Any], method: str) -> None:
    """Refuse scales without a matrix, and what another layout left.

    **Raises:** `CorruptCheckpointError`.
    """
    signs = [
        name
        for name, tensor in left.items()
        if name.endswith(_SIGNS) and isinstance(tensor, StoredTensor)
    ]
    if signs:
        raise CorruptCheckpointError(
            f"{listing(signs)} belong to no matrix that {method} stores",
            hint="take config.json and weights from the same place",
        )
    codes = [
        name
        for name, tensor in left.items()
        if isinstance(tensor, StoredTensor)
        and name.endswith(".weight")
        and tensor.dtype in ("fp8_e4m3", "fp8_e5m2", "int8", "uint8")
    ]
    if codes:
        raise CorruptCheckpointError(
            f"{listing(codes)} hold codes ({left[codes[0]].dtype}) without scales"
            f" that {method} stores beside them",
            hint="take config.json and weights from the same place; is the download"
            " whole?",
        )


def _of_kept(kept: Kept, taken: Taken, left: Mapping[str, Any]):
    """What the list of what was to be left alone says, against what the tensors say."""
    modules = {name.rpartition(".")[0] for name in left}
    parents = {name.rpartition(".")[0] for name in modules}
    idle = kept.idle(sorted(modules | parents))
    # every writer lists the head, which a model may share with its embedding; patterns
    # come from recipes for several families
    names = [one for one in idle if one != "lm_head" and not is_pattern(one)]
    for some, hint in ((names, False), (list(filter(is_pattern, idle)), True)):
        if some:
            what = "in the list of what was to be left alone name no module"
            yield Note(f"{listing(some)} {what}", hint=hint)
    made = [name.removesuffix(".weight") for name in taken.made]
    broken = [name for name in made if kept.means(name)]
    if broken:
        yield Note(f"{listing(broken)} were to be left alone, and are stored as codes")


def _on_no_list(method: str, kept: Kept, left: Mapping[str, Any]) -> Iterator[Note]:
    """Matrices that were left alone and are on no list, of writers that list all."""
    # an entry that is not looked at may mean any
    if method not in _LIST_ALL or not kept.whole:
        return
    plain = [
        name.removesuffix(".weight")
        for name, tensor in left.items()
        if isinstance(tensor, StoredTensor)
        and name.endswith(".weight")
        and len(tensor.shape) == 2
        and "embed" not in name
    ]
    unnamed = [name for name in plain if not kept.means(name)]
    if unnamed:
        yield Note(
            f"{listing(unnamed)} are stored plain and are on no list of what was to be"
            " left alone: a server that goes by the list looks for codes there",
            hint=True,
        )


def _names_cache(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("kv_cache_scheme") or settings.get("kv_cache_quant_algo"))


def refuse_quantised_module(config: Mapping[str, Any]) -> None:
    """Refuse a live module of a quantised model, whose tensors are its library's own.

    **Raises:** `UnsupportedCheckpointError`.
    """
    for key in IN_CONFIG:
        found = config.get(key)
        if not found:
            continue
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method is None and isinstance(found, dict) and "load_in_4bit" in found:
            method = "bitsandbytes"
        raise UnsupportedCheckpointError(
            f"a quantised model ({quote(method or key)}) in memory, which is not"
            " covered",
            hint="lyapunov.load its folder: quantised checkpoints are read from files",
        )
