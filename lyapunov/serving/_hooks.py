"""What hooks on a server's modules have in common: rows, states and windows copied.

Hooks fire where modules are called, which is in eager mode alone: under torch.compile
and CUDA graphs a server replays kernels, and a dump of it would be empty.
"""

import abc
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from .._errors import DumpError, UsageError
from ._calls import Call, Handed
from ._recorder import Recorder


NORMS = ("norm", "input_layernorm")
LOGITS_ALONE = (
    "its logits can be watched without hooks: lyapunov.serving.write_logprobs"
)


class Mixer(NamedTuple):
    """One mixer of a network."""

    layer: int
    """The sublayer's number."""
    mixer: Any
    norm: Any
    kind: str


class Rows(NamedTuple):
    """Where the watched request is in one call."""

    first: int
    """Its first row among the tokens of the batch."""
    stop: int
    step: bool
    empty: bool
    index: int
    """Which sequence of the batch it is."""


class Slots(NamedTuple):
    """Where its state and window are in a cache."""

    took: tuple[int, int]
    """The block that is read, and at which row of the window's."""
    window_block: int
    """The block whose window is read and written."""
    left: tuple[tuple[int, int], ...]
    """The same as `took`, of what is written: behind every token of a draft's window,
    else behind the last one."""
    others: frozenset[int]
    sharing: int


def copied(tensor: Any) -> np.ndarray:
    """A tensor's numbers on the CPU, in their own format."""
    import torch

    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def found_mixers(
    model: Any, kinds: Mapping[str, str], sublayers: Mapping[str, int] | None
) -> list[Mixer]:
    """The mixers of a network by the names of their classes.

    **Arguments:**

    - `kinds`: class name -> kind of sublayer.
    - `sublayers`: module name -> the sublayer's number; None: one mixer is one
      sublayer, where every block of the network has one and nothing else.

    **Raises:** `UsageError` where it is not clear which sublayer a mixer is.
    """
    modules = dict(model.named_modules())
    names = [name for name, one in modules.items() if type(one).__name__ in kinds]
    if not names:
        raise UsageError(
            f"{type(model).__name__} has no {' or '.join(kinds)}",
            hint=f"mixers of these classes are watched; {LOGITS_ALONE}",
        )
    blocks = {name.rpartition(".")[0] for name in names}
    lists = {block.rpartition(".")[0] for block in blocks}
    beside = sum(len(modules[one]) for one in lists if hasattr(modules[one], "__len__"))
    if sublayers is None and beside != len(names):
        raise UsageError(
            f"{type(model).__name__} has {len(names)} mixers in {beside} blocks, so "
            "that it is not clear which sublayers they are",
            hint="sublayers={'model.layers.0.mixer': 0, ...}; lyapunov-check MODEL "
            "lists the sublayers",
        )
    found = []
    for place, name in enumerate(names):
        if sublayers is not None and name not in sublayers:
            continue
        block = modules[name.rpartition(".")[0]]
        norm = next((getattr(block, n) for n in NORMS if hasattr(block, n)), None)
        if norm is None:
            raise UsageError(
                f"{name} has no {' or '.join(NORMS)} beside it",
                hint=f"the norm in front of a mixer is watched, too; {LOGITS_ALONE}",
            )
        layer = place if sublayers is None else sublayers[name]
        kind = kinds[type(modules[name]).__name__]
        found.append(Mixer(layer, modules[name], norm, kind))
    return found


class AbstractHook(abc.ABC):
    """Watch one request of a live model, from `on` to `off`.

    **Arguments:**

    - `model`: the network's module.
    - `mixers`: those that are watched.
    - `recorder`: is filled.
    """

    def __init__(self, model: Any, mixers: list[Mixer], recorder: Recorder):
        self._model, self._mixers = model, mixers
        self.recorder = recorder
        self._removals: list[Callable[[], Any]] = []
        self._rows: Rows | None = None
        self._behind: np.ndarray | None = None
        self._asked = 0

    def on(self) -> Self:
        """Begin to watch."""
        model = self._model
        self._keep(model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._keep(model.register_forward_hook(self._end))
        for one in self._mixers:
            self._watch(one)
        self._wrap(model, "compute_logits", self._logits)
        return self

    def off(self) -> None:
        """Take all hooks off again."""
        while self._removals:
            self._removals.pop()()

    @property
    def watching(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._removals)

    def __enter__(self) -> Self:
        return self.on()

    def __exit__(self, *_: object) -> None:
        self.off()

    def write(self, path: str | os.PathLike, **named: Any) -> str:
        """Write the dump, as `Recorder.write`.

        **Raises:** `DumpError` as well where the model was asked for logits and no
        hook on it fired: it is compiled, or replayed from a CUDA graph.
        """
        if self._asked and not self.recorder.calls:
            raise DumpError(
                f"logits were asked for {self._asked} times, and no hook has seen the "
                "request: the model is compiled, or replayed from a CUDA graph, or "
                "the request has another name",
                hint="vLLM's --enforce-eager, SGLang's --disable-cuda-graph; "
                + LOGITS_ALONE,
            )
        return self.recorder.write(path, **named)

    # ---- what a server has of its own

    @abc.abstractmethod
    def _find(self, named: Mapping[str, Any]) -> Rows | None:
        """Where the request is in the call that begins; None: it is not."""

    def _blocks(self) -> frozenset[int]:
        """Blocks of all requests in the present call, as far as they are known."""
        return frozenset()

    @abc.abstractmethod
    def _slots(self, one: Mixer, rows: Rows, given: Mapping[str, Any]) -> Slots:
        """Where a mixer's cache holds the request's state."""

    @abc.abstractmethod
    def _cache(self, one: Mixer, given: Mapping[str, Any]) -> tuple[Any, Any]:
        """A mixer's windows (blocks, rows, channels) and states (blocks, ...)."""

    @abc.abstractmethod
    def _watch(self, one: Mixer) -> None:
        """Put the hooks on one mixer."""

    # ---- one call

    def _begin(self, module: Any, args: tuple, named: Mapping[str, Any]) -> None:
        del module
        order = ("input_ids", "positions", "forward_batch")
        named = dict(zip(order, args, strict=False)) | dict(named)
        self._behind = None
        self._rows = self._find(named)
        if self._rows is None:
            self.recorder.elsewhere(self._blocks())
            return
        first, stop, step, empty, _ = self._rows
        places = copied(named["positions"])[first:stop].astype(np.int64)
        start = int(places[0])
        if not np.array_equal(places, start + np.arange(stop - first)):
            raise DumpError(
                f"the request's rows stand at positions {places[:8].tolist()}, which "
                "do not follow one another",
                hint="is the batch in another order than the hook takes it to be?",
            )
        ids = named.get("input_ids")
        self.recorder.call(
            start,
            start + stop - first,
            step=step,
            empty=empty,
            ids=None if ids is None else copied(ids)[first:stop].astype(np.int64),
        )

    def _end(self, module: Any, args: tuple, output: Any) -> None:
        del module, args
        if self._rows is not None and hasattr(output, "shape"):
            self._behind = copied(output)[self._rows.first : self._rows.stop]

    def _norm(self, one: Mixer) -> None:
        """Watch the norm in front: the stream, and what is added to it."""

        def before(module, args, named):
            given = list(args) + list(named.values())
            if self._rows is None:
                return
            hidden = given[0]
            residual = given[1] if len(given) > 1 else None
            own = self._own(hidden)
            self.recorder.rows(
                one.layer, "residual", own if residual is None else self._own(residual)
            )
            nothing = np.zeros_like(own)
            self.recorder.rows(
                one.layer, "hidden", nothing if residual is None else own
            )

        def after(module, args, output):
            if self._rows is None:
                return
            parts = output if isinstance(output, tuple) else (output,)
            for site, tensor in zip(("norm", "residual"), parts, strict=False):
                self.recorder.rows(one.layer, f"stored.{site}", self._own(tensor))

        self._keep(one.norm.register_forward_pre_hook(before, with_kwargs=True))
        self._keep(one.norm.register_forward_hook(after))

    def _projection(self, one: Mixer, name: str, site: str, *, given: bool) -> None:
        """Watch what a module inside a mixer is given, or puts out."""
        module = getattr(one.mixer, name, None)
        if module is None or not hasattr(module, "register_forward_hook"):
            return

        def after(module, args, output):
            if self._rows is None:
                return
            output = output[0] if isinstance(output, tuple) else output
            tensor = args[0] if given else output
            # scratch rows behind the batch's tokens are nobody's
            if len(tensor) >= self._rows.stop:
                self.recorder.rows(one.layer, f"stored.{site}", self._own(tensor))

        self._keep(module.register_forward_hook(after))

    def _taken(self, one: Mixer, given: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        slots = self._slots(one, self._rows, given)
        call = self.recorder.calls[-1]
        if call.took_block is None:
            call.took_block, call.left_block = slots.took[0], slots.left[-1][0]
            call.others, call.sharing = slots.others, slots.sharing
        if call.empty and call.start == 0:
            return
        windows, states = self._cache(one, given)
        handed = self._handed(one, windows, states, slots.took, slots.window_block)
        if call.empty:  # a kernel that is told so begins from zeros
            handed = Handed(*(np.zeros_like(array) for array in handed))
        self.recorder.taken(one.layer, handed)

    def _left(self, one: Mixer, given: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        slots = self._slots(one, self._rows, given)
        call: Call = self.recorder.calls[-1]
        windows, states = self._cache(one, given)
        every = len(slots.left) > 1
        for i, place in enumerate(slots.left):
            count = call.start + i + 1 if every else call.stop
            handed = self._handed(one, windows, states, place, slots.window_block)
            self.recorder.left(one.layer, count, handed)

    def _handed(self, one: Mixer, windows, states, place, window_block) -> Handed:
        block, row = place
        width = one.mixer.conv1d.weight.shape[-1]
        window = windows[window_block][row : row + width - 1]
        return Handed(copied(states[block]), copied(window))

    def _own(self, tensor: Any) -> np.ndarray:
        assert self._rows is not None
        return copied(tensor[self._rows.first : self._rows.stop])

    def _logits(self, original: Callable, hidden: Any, *more: Any, **named: Any) -> Any:
        """Rows of logits, told by the rows that they are made of."""
        logits = original(hidden, *more, **named)
        self._asked += 1
        if self._rows is None or self._behind is None or logits is None:
            return logits
        start = self.recorder.calls[-1].start
        places = {row.tobytes(): i for i, row in enumerate(self._behind)}
        for i, row in enumerate(copied(hidden)):
            if row.tobytes() in places:
                token = start + places[row.tobytes()]
                self.recorder.logits(token, copied(logits[i]))
        return logits

    def _wrap(self, holder: Any, name: str, around: Callable) -> None:
        """Put a function around a method of one object, until `off`."""
        original = getattr(holder, name, None)
        if original is None:
            return
        own = name in vars(holder)
        object.__setattr__(
            holder, name, lambda *given, **named: around(original, *given, **named)
        )
        restore = (
            (lambda: object.__setattr__(holder, name, original))
            if own
            else (lambda: object.__delattr__(holder, name))
        )
        self._removals.append(restore)

    def _keep(self, handle: Any) -> None:
        self._removals.append(handle.remove)
