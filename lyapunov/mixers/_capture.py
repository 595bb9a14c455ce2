"""What each block read and wrote in the forward passes of a network."""

import functools
import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from .._errors import UsageError
from ..checkpoints.files._files import quote
from ..models._from_torch import copied
from ._found import FoundMixer
from ._mixer import Mixer, as_array
from ._scan_calls import ScanCalls
from ._scans import channels_last, taken_apart


INPUTS = ("hidden_states", "x", "u", "input", "inputs", "input_states")
"""What blocks call what they read, where it is given by name."""
HARMLESS = ("attention_mask", "mask", "padding_mask")
"""Arguments that change nothing where they are all ones."""
NO_OPINION = ("cache_position", "layer_idx", "use_cache", "output_attentions")
"""Arguments that change nothing of a whole sequence."""


@dataclass(frozen=True, eq=False)
class NormInFront:
    """Hold a norm whose output a block read.

    **Arguments:**

    - `centred`: a LayerNorm; else an RMSNorm.
    - `read`: what the norm read, in its own type.
    """

    weight: np.ndarray = field(repr=False)
    bias: np.ndarray | None = field(repr=False)
    epsilon: float
    centred: bool
    read: Float[np.ndarray, "batch seq d_model"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Call:
    """Hold one call of a block.

    **Arguments:**

    - `name`: of the module. `number`: which of its calls, from 0.
    - `candidates`: what the block may be, its weights as they were then.
    - `read`, `wrote`: what it read and what it gave, in their own types.
    - `dtype`: the narrowest type among what it read, wrote and multiplied with.
    - `device`: where it ran.
    """

    name: str
    number: int
    candidates: tuple[Mixer, ...]
    read: Float[np.ndarray, "batch seq d_model"] = field(repr=False)
    wrote: Float[np.ndarray, "batch seq d_model"] = field(repr=False)
    dtype: str
    device: str
    library: str
    """The package of the block's class."""
    norm: NormInFront | None = None
    """Where a norm's output is what the block read."""

    @property
    def title(self) -> str:
        """Its name in reports."""
        name = self.name or "the module itself"
        return name if self.number == 0 else f"{name}, call {self.number + 1}"


class Capture:
    """Look at blocks while a network runs; changes nothing in it.

    **Arguments:**

    - `found`: the blocks to look at.
    - `sequence_first`: names of blocks that read (seq, batch, d_model).
    - `scans`: functions that are scans, as `known_scans` gives them.
    """

    def __init__(
        self,
        found: Sequence[FoundMixer],
        sequence_first: Sequence[str] = (),
        scans: Mapping[Any, str] = MappingProxyType({}),
    ):
        self._found = found
        self._scans = ScanCalls(scans)
        self._inside: list[str] = []
        self._fronts: dict[str, tuple[Any, Any, Any] | None] = {}
        self._sequence_first = set(sequence_first)
        self.calls: list[Call] = []
        self._handles: list[Any] = []
        self._seen: dict[int, tuple[Any, tuple[Mixer, ...]]] = {}
        self._normed: tuple[Any, Any, Any] | None = None

    def start(self, module: Any) -> None:
        """Hang hooks into the blocks, and into the norms of the network around them."""
        for one in module.modules():
            if _is_norm(one):
                self._handles.append(one.register_forward_hook(self._after_norm))
        for name, one in module.named_modules():
            enter = functools.partial(self._enter, name)
            self._handles += [
                one.register_forward_pre_hook(enter),
                one.register_forward_hook(self._leave, always_call=True),
            ]
        self._scans.start(module, self._after_scan)
        for one in self._found:
            hook = self._hook(one)
            self._handles.append(
                one.module.register_forward_hook(hook, with_kwargs=True)
            )

    def stop(self) -> None:
        """Take all hooks out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._scans.stop()
        self._inside.clear()
        self._fronts.clear()
        self._normed = None

    def _enter(self, name: str, module: Any, given: tuple) -> None:
        del module, given
        self._inside.append(name)
        if any(one.name == name for one in self._found):
            # norms inside a block come before it ends
            self._fronts[name] = self._normed

    def _leave(self, module: Any, given: tuple, result: Any) -> None:
        del module, given, result
        self._inside.pop()

    def _after_scan(
        self, scan: str, given: tuple, named: Mapping[str, Any], result: Any
    ) -> None:
        """Keep the call of a scan, where it is not that of a block."""
        if {one.name for one in self._found} & set(self._inside):
            return
        taken = taken_apart(scan, given, named)
        y = result[0] if isinstance(result, tuple | list) else result
        name = f"{self._inside[-1] or scan}: scan" if self._inside else scan
        arrays = taken.read, channels_last(taken.mixer.kind, copied(y))
        _refuse_not_finite(name, arrays)
        self.calls.append(
            Call(
                name,
                sum(call.name == name for call in self.calls),
                (taken.mixer,),
                *arrays,
                _name_of(y.dtype, given[0].dtype if given else y.dtype),
                str(y.device),
                "mamba_ssm",
            )
        )

    def _after_norm(self, module: Any, given: tuple, result: Any) -> None:
        """Remember the last norm alone: a block comes right behind its own."""
        self._normed = (module, given[0], result) if given else None

    def _norm_of(self, one: FoundMixer, read: Any) -> NormInFront | None:
        """The norm whose output this very tensor is."""
        front = self._fronts.pop(one.name, None)
        if front is None or front[2] is not read:
            return None
        module, before, _ = front
        bias = getattr(module, "bias", None)
        epsilon = getattr(module, "eps", getattr(module, "variance_epsilon", None))
        if before.shape != read.shape or not isinstance(epsilon, float):
            return None
        return NormInFront(
            as_array("norm", module.weight),
            None if bias is None else as_array("norm_bias", bias),
            epsilon,
            type(module).__name__ == "LayerNorm",
            self._array(one, before),
        )

    def _array(self, one: FoundMixer, tensor: Any) -> np.ndarray:
        """A tensor as (batch, seq, d_model) on the host."""
        return rows_of(tensor, one.name in self._sequence_first)

    def _hook(self, one: FoundMixer) -> Any:
        def hook(module: Any, given: tuple, named: Mapping[str, Any], result: Any):
            del module
            read, others = input_of(one, given, named)
            _refuse_others(one, others, read)
            wrote = result[0] if isinstance(result, tuple | list) else result
            self.calls.append(self._call(one, read, wrote))

        return hook

    def _call(self, one: FoundMixer, read: Any, wrote: Any) -> Call:
        where = quote(one.name or type(one.module).__name__)
        if read.ndim not in (2, 3) or wrote is None or wrote.shape != read.shape:
            raise UsageError(
                f"{where} read {tuple(read.shape)} and gave "
                f"{tuple(getattr(wrote, 'shape', ()))}",
                hint="a block reads and gives (batch, seq, d_model), or (seq, d_model)",
            )
        arrays = [self._array(one, tensor) for tensor in (read, wrote)]
        _refuse_not_finite(where, arrays)
        candidates = self._candidates(one)
        return Call(
            one.name,
            sum(call.name == one.name for call in self.calls),
            candidates,
            arrays[0],
            arrays[1],
            _narrowest(read, wrote, one.module),
            str(read.device),
            type(one.module).__module__.partition(".")[0],
            self._norm_of(one, read),
        )

    def _candidates(self, one: FoundMixer) -> tuple[Mixer, ...]:
        """The block as it is, copied anew where its weights have changed."""
        version = tuple(
            (p.data_ptr(), p._version) for p in one.module.parameters(recurse=True)
        )
        before = self._seen.get(id(one.module))
        if before is None or before[0] != version:
            before = version, one.describe()
            self._seen[id(one.module)] = before
        return before[1]


def rows_of(tensor: Any, sequence_first: bool) -> np.ndarray:
    """What a block reads or gives as (batch, seq, d_model) on the host."""
    array = copied(tensor)
    array = array[None] if array.ndim == 2 else array
    return np.ascontiguousarray(np.swapaxes(array, 0, 1)) if sequence_first else array


def _is_norm(module: Any) -> bool:
    """A LayerNorm or an RMSNorm of one axis, whoever wrote it."""
    name = type(module).__name__
    weight = getattr(module, "weight", None)
    alone = name == "LayerNorm" or name.endswith("RMSNorm")
    return alone and getattr(weight, "ndim", 0) == 1


def input_of(
    one: FoundMixer, given: tuple, named: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What the block read, and what else it was given, by name."""
    others = dict(named)
    if given:
        names = [*inspect.signature(one.module.forward).parameters][1:]
        beyond = (f"argument {i}" for i in itertools.count(len(names) + 2))
        places = itertools.chain(names, beyond)
        return given[0], others | dict(zip(places, given[1:], strict=False))
    for name in INPUTS:
        if name in others:
            return others.pop(name), others
    raise UsageError(
        f"{quote(one.name)} was called with {', '.join(named) or 'nothing'}",
        hint=f"what it reads comes first, or is called one of {', '.join(INPUTS)}",
    )


def _refuse_others(one: FoundMixer, others: Mapping[str, Any], read: Any) -> None:
    """Refuse a call that does more than run a whole sequence."""
    torch = sys.modules["torch"]
    if not isinstance(read, torch.Tensor):
        raise UsageError(
            f"{quote(one.name)} read {type(read).__name__}, no tensor",
            hint="a block reads (batch, seq, d_model)",
        )
    for name, value in others.items():
        if value is None or value is False or name in NO_OPINION:
            continue
        if name in HARMLESS and isinstance(value, torch.Tensor) and bool(value.all()):
            continue
        if name == "position_ids" and _in_order(value, read):
            continue
        raise UsageError(
            f"{quote(one.name)} was called with {name}, which is not followed",
            hint="whole sequences without a cache (use_cache=False), mask or packing",
        )


def _in_order(positions: Any, read: Any) -> bool:
    """Whether every sequence counts from 0: one text, from its beginning."""
    length = read.shape[-2]
    counted = getattr(positions, "shape", ())[-1:] == (length,)
    return counted and bool((positions == positions.new_tensor(range(length))).all())


def _refuse_not_finite(where: str, arrays: Sequence[np.ndarray]) -> None:
    if not all(np.isfinite(a.astype(np.float32)).all() for a in arrays):
        raise UsageError(
            f"{where} read or gave values that are not finite",
            hint="inputs of a scale that the network was trained on",
        )


def _narrowest(read: Any, wrote: Any, module: Any) -> str:
    """The type with the fewest bits of what the block works on."""
    weights = [p for p in module.parameters() if p.ndim > 1 and p.is_floating_point()]
    return _name_of(read.dtype, wrote.dtype, *(p.dtype for p in weights))


def _name_of(*dtypes: Any) -> str:
    """The narrowest of torch's types, by the report's name."""
    torch = sys.modules["torch"]
    names = {
        torch.float64: "fp64",
        torch.float32: "fp32",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
    }
    strange = [dtype for dtype in dtypes if dtype not in names]
    if strange:
        raise UsageError(
            f"a block works in {strange[0]}", hint="fp64, fp32, fp16 or bf16"
        )
    return names[max(dtypes, key=list(names).index)]
