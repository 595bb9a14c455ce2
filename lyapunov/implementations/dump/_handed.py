"""What a dump holds of the places where one call goes on from what another left."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from ..._errors import DumpError
from ...models import Model
from ._arrays import AbstractArrays
from ._complete import is_index
from ._keys import BF16


WHEN, WHAT = ("left", "taken"), ("state", "window")
HINT = "lyapunov.serving writes them; lyapunov.implementations.dump.file says which"
FLOATS = ("f2", "f4", "f8")


@dataclasses.dataclass
class HandOver:
    """One of them.

    **Arguments:**

    - `call`: the number of the call that goes on, from 0.
    - `names`: of arrays, by sublayer, `left` or `taken`, and `state` or `window`.
    """

    arrays: AbstractArrays
    call: int
    words: dict[str, str] = dataclasses.field(default_factory=dict)
    names: dict[tuple[int, str, str], str] = dataclasses.field(default_factory=dict)

    @property
    def how(self) -> str:
        """What kind it is, such as `prefill to decode`."""
        return self._text("how") or "one call to the next"

    @property
    def note(self) -> str | None:
        """What whoever wrote the dump knew besides."""
        return self._text("note")

    @property
    def at(self) -> int:
        """How many of the dump's tokens stand in front of it."""
        return self._whole("at", None)

    @property
    def source(self) -> int | None:
        """The number of the call that left what is needed, from 0; None: not seen."""
        found = self._whole("source", -1)
        return None if found < 0 else found

    @property
    def sharing(self) -> int:
        """Other requests whose blocks of the cache are among this one's."""
        return self._whole("sharing", 0)

    @property
    def counts(self) -> bool:
        """Whether the tokens around it are those of the dump, and were not computed
        again later."""
        return bool(self._whole("counts", 1))

    @property
    def layers(self) -> list[int]:
        """Sublayers of which anything was seen there."""
        return sorted({layer for layer, _, _ in self.names})

    def array(self, layer: int, when: str, what: str) -> np.ndarray | None:
        """What was left or taken, in the format that it was in; None: not seen."""
        name = self.names.get((layer, when, what))
        if name is None:
            return None
        array = self.arrays.read(name)
        return array.view(BF16) if array.dtype.kind == "u" else array

    def check(self, model: Model, seq: int) -> None:
        """Hold places, shapes and dtypes to a model.

        **Raises:** `DumpError`.
        """
        if "at" not in self.words or not 0 <= self.at <= seq:
            raise DumpError(
                f"hand-over {self.call} has no place among {seq} tokens", hint=HINT
            )
        for (layer, _, what), name in self.names.items():
            if layer >= model.config.n_layers:
                raise DumpError(
                    f"{name}: this model has {model.config.n_layers} sublayers",
                    hint="they count from 0; is the dump of another checkpoint?",
                )
            layout = layout_of(model.config.sublayers[layer], name)
            wanted = layout.state if what == "state" else layout.window
            shape, dtype = self.arrays.shape_and_dtype(name)
            if shape != wanted:
                raise DumpError(
                    f"{name} has shape {shape}, not {wanted}",
                    hint="as the cache has it; is the dump of another checkpoint?",
                )
            if dtype != BF16 and dtype.str[1:] not in (*FLOATS, "u2"):
                raise DumpError(f"{name} is of dtype {dtype}", hint="floats")

    def _text(self, key: str) -> str | None:
        if key not in self.words:
            return None
        text = self.arrays.text(self.words[key], HINT)
        # it is shown: nothing in it may move a cursor
        return "".join(sign for sign in text if sign.isprintable())[:400]

    def _whole(self, key: str, default: int | None) -> int:
        if key not in self.words and default is not None:
            return default
        array = self.arrays.read(self.words[key], kinds="biu", most=1, hint=HINT)
        if array.size != 1:
            raise DumpError(f"{self.words[key]} has shape {array.shape}", hint=HINT)
        return int(array.reshape(-1)[0])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How caches of servers hold what a sublayer hands on."""

    state: tuple[int, ...]
    window: tuple[int, int]
    inputs: Callable[[dict[str, Any]], Float[np.ndarray, "*batch seq channels"] | None]
    """What the window holds rows of, from stored tensors; None: not seen."""

    def start(self, like: Any, state: np.ndarray, window: np.ndarray) -> Any:
        """What the flow starts from, in fp64: (d_state, d_inner) and the window."""
        rows = np.asarray(state, np.float64).reshape(-1, self.state[-1]).T
        return dataclasses.replace(
            like, state=rows, window=np.asarray(window, np.float64)
        )


def layout_of(sizes: Any, name: str) -> Layout:
    """The layout of a kind of sublayer.

    **Raises:** `DumpError` for a kind whose caches nobody has described.
    """
    if sizes.kind == "mamba1":
        channels = sizes.d_inner
        state = (channels, sizes.d_state)
        site, columns = "xz", slice(0, channels)
    elif sizes.kind == "mamba2":
        channels = sizes.d_inner + 2 * sizes.groups * sizes.d_state
        state = (sizes.heads, sizes.d_inner // sizes.heads, sizes.d_state)
        site = "xz" if sizes.row_multipliers is None else "xz_scaled"
        columns = slice(sizes.d_inner, sizes.d_inner + channels)
    else:
        raise DumpError(
            f"{name} is of a sublayer of kind {sizes.kind}",
            hint="what is handed on is held of mamba1 and mamba2 alone; leave it out",
        )

    def inputs(stored: dict[str, Any]) -> Any:
        return stored[site][..., columns] if site in stored else None

    return Layout(state, (sizes.d_conv - 1, channels), inputs)


class Handed:
    """All of them in a file, by run."""

    def __init__(self, arrays: AbstractArrays):
        self._arrays = arrays
        self._found: dict[str, dict[int, HandOver]] = {}
        self._alike: dict[str, str] = {}

    def takes(self, run: str, rest: str, name: str) -> bool:
        """Whether the key is one of theirs, which is kept then."""
        parts = rest.split(".")
        if parts == ["handed", "alike"]:
            self._alike[run] = name
            return True
        words = ("how", "note", "at", "source", "sharing", "counts")
        if len(parts) == 3 and parts[0] == "handed" and parts[2] in words:
            if not is_index(parts[1]):
                return False
            self._one(run, int(parts[1])).words[parts[2]] = name
            return True
        layered = len(parts) == 6 and parts[0] == "layer" and parts[2] == "handed"
        if not layered or parts[4] not in WHEN or parts[5] not in WHAT:
            return False
        if not (is_index(parts[1]) and is_index(parts[3])):
            return False
        key = int(parts[1]), parts[4], parts[5]
        self._one(run, int(parts[3])).names[key] = name
        return True

    def of(self, run: str) -> list[HandOver]:
        """Those of a run, in the order of its calls."""
        return [one for _, one in sorted(self._found.get(run, {}).items())]

    def alike(self, run: str) -> int:
        """How many more were compared on the server, and agreed in every bit."""
        if run not in self._alike:
            return 0
        array = self._arrays.read(self._alike[run], kinds="iu", most=1, hint=HINT)
        return max(0, int(array.reshape(-1)[0])) if array.size == 1 else 0

    def check(self, model: Model, tokens: np.ndarray) -> None:
        """**Raises:** `DumpError` for what a model cannot have handed on."""
        for of_run in self._found.values():
            if len(tokens) != 1:
                raise DumpError(
                    f"hand-overs of {len(tokens)} texts at once", hint="one a file"
                )
            for one in of_run.values():
                one.check(model, tokens.shape[1])

    def start(self, model: Model, run: str, layer: int, like: Any) -> Any:
        """What a run that does not begin with the text starts from in a sublayer.

        **Raises:** `DumpError` where the dump does not have it.
        """
        sizes: Any = model.config.sublayers[layer]
        if not sizes.hand_over:
            return like
        layout = layout_of(sizes, f"layer {layer}")
        for one in self.of(run):
            state, window = (one.array(layer, "taken", what) for what in WHAT)
            if one.at == 0 and state is not None and window is not None:
                return layout.start(like, state, window)
        raise DumpError(
            f"the run {run[:60]!r} begins behind tokens that were never computed, and "
            f"what sublayer {layer} took there is not in the dump",
            hint=f"layer.{layer}.handed.0.taken.state and .window, handed.0.at 0",
        )

    def _one(self, run: str, call: int) -> HandOver:
        of_run = self._found.setdefault(run, {})
        return of_run.setdefault(call, HandOver(self._arrays, call))
