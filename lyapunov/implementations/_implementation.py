"""What an implementation is: who runs a network, how, and what is known of it.

A new one is a folder with one final class, and its line in `_registry`. Neither this
module nor the one of such a class loads JAX, torch or the program it stands for before
a method is called: the command asks for names first.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from .._arguments import shown
from .._errors import LyapunovError, UsageError


if TYPE_CHECKING:
    from ..models import Model
    from ._execution import Execution, InnerConstants
    from ._segment import Segment
    from ._trace import Trace
    from ._ways import Variant


MODES = ("prefill", "decode")
"""How a check runs a text: the whole sequence at once, or step by step."""


class RefusedError(LyapunovError):
    """A program does not run a text in this way, and says so."""

    code = "refused"


class Flag(NamedTuple):
    """One thing to give to one stack."""

    stack: str
    flag: str
    why: str


class Defect(NamedTuple):
    """One defect of an implementation, seen in some of its versions.

    **Arguments:**

    - `families`: architectures whose code has it.
    - `since`, `until`: the first and the last version in which it was seen.
    - `ways`: kinds of `Variant` that meet it.
    - `tensor`: the first one, in the order of the flow, that it spoils.
    - `what`: goes wrong. `source`: where that is written.
    - `needs`: a field of sizes that some sublayer has to have set; None: none.
    """

    families: tuple[str, ...]
    since: tuple[int, int]
    until: tuple[int, int]
    ways: tuple[str, ...]
    tensor: str
    what: str
    source: str
    needs: str | None = None


class PassedOver(NamedTuple):
    """Modules whose weights are read without calling them, so that what PEFT wraps
    around them takes no part."""

    always: tuple[str, ...]
    """On every path."""
    fused: tuple[str, ...] = ()
    """On the fused path of training alone."""


class Reach(NamedTuple):
    """The longest sequence that a kernel's offsets address."""

    length: int
    kernel: str
    implementation: str


@runtime_checkable
class Runner(Protocol):
    """Who runs texts by one execution. What it needs of a network is made for the first
    text and kept for the others."""

    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:**

        - `tokens`: (batch, seq).
        - `variant`: the way; None: whole, or by steps if the execution decodes.
        - `segments`: its calls, and what is declared of each; none: one call of the
          execution.

        **Raises:** `RefusedError` where the program refuses the way; `LyapunovError`
        for what this machine or the program cannot run.
        """
        ...


class AbstractImplementation(ABC):
    """Who runs a network: what it promises, how it is run, what is known of it.

    Subclasses are final. What has no default here each of them has to say.
    """

    name: ClassVar[str]
    """As users write it."""
    measures: ClassVar[bool]
    """Whether a check can measure with it."""
    needs_gpu: ClassVar[bool]
    installed_by: ClassVar[str | None]
    """What `pip install` is given for what it needs; None: nothing more."""
    ways: ClassVar[tuple[str, ...]]
    """Kinds of `Variant` that an audit can run with it; none: it is not audited."""
    refused_ways: ClassVar[Mapping[str, str]]
    """Why it has none of the other kinds."""
    libraries: ClassVar[Mapping[str, str]] = {}
    """What decides what it computes: modules, and the distributions that have them, its
    own first. A report names their versions."""
    runs_without_head: ClassVar[bool] = False
    entry_bytes: ClassVar[int | None] = 8
    """Bytes of an entry of what its trace hands on; None: as wide as it computes."""
    first_is_step: ClassVar[bool] = False
    """Whether decoding makes a step of the first token, too."""
    rest_is_step: ClassVar[bool] = True
    """Whether a prompt's rest of a single token is a step; else it is a prefill."""
    follows: ClassVar[str | None] = None
    """The server whose flow it runs, as `_stacks` calls it."""
    launch_flags: ClassVar[Mapping[str, Any]] = {}
    """Of a server: the flags that `launched` reads, and how."""
    launch: Any = None
    """Of a server: how it was started."""
    caches_in_calls: ClassVar[bool] = False
    """Whether the format of the cached state changes a call over several tokens."""
    followed_by_dumps: ClassVar[bool] = False
    """Whether a dump may say that it follows this one's flow."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files that hold its runs, where they were made elsewhere."""
    reproducible: ClassVar[bool] = False
    """Whether the script of `report._reproduce`, which runs a text through
    transformers, can show what an audit of it finds."""

    defects: ClassVar[tuple[Defect, ...]] = ()
    ignores_dt_limits: ClassVar[bool] = False
    """Whether steps that generate do not limit dt where the model does."""
    trains_otherwise: ClassVar[Mapping[str, str]] = {}
    """By family: what training computes that nothing else does."""
    passed_over: ClassVar[Mapping[str, PassedOver]] = {}
    """By family."""

    def execution(
        self,
        config: Any,
        precision: str,
        *,
        architecture: str = "mamba1",
        mode: str = "prefill",
        state_precision: str | None = None,
    ) -> Execution:
        """What it promises of a network: a format for every stored tensor, constants.

        **Arguments:**

        - `config`, `architecture`: of the checkpoint's layout.
        - `precision`: such as `bf16` or `bf16-amp`.
        - `mode`: `prefill` or `decode`.
        - `state_precision`: of the cached state; None is its own.

        **Raises:** `UsageError` with a reason and a hint for what it does not run.
        """
        refuse_unknown(mode, state_precision)
        kept = self.state_precisions(mode)
        if state_precision and kept is not None and state_precision not in kept:
            raise UsageError(
                f"in {mode} {self.name} keeps the state in {_listed(kept, 'or')}, not "
                f"{state_precision}",
                hint="leave --state-precision out, or --measure emulated",
            )
        found = self.promised(config, precision, architecture, mode, state_precision)
        for kind in dict.fromkeys(sizes.kind for sizes in config.sublayers):
            found.of(kind)
        return found

    @abstractmethod
    def promised(
        self,
        config: Any,
        precision: str,
        architecture: str,
        mode: str,
        state_precision: str | None,
    ) -> Execution:
        """The same, once mode and state were found to be among those that it has."""

    @abstractmethod
    def state_precisions(self, mode: str) -> tuple[str, ...] | None:
        """Formats in which it can keep the state; None: all there are."""

    @abstractmethod
    def runner(self, execution: Execution) -> Runner:
        """Make who runs texts whole or by steps, as the execution says, and in the
        kinds of `ways`.

        **Arguments:**

        - `execution`: of a call over several tokens, where a way has several calls.

        **Raises:** `LyapunovError` for what it cannot run.
        """

    @classmethod
    def install_hint(cls) -> str:
        """What to type where something that it needs is not installed."""
        return f"pip install {cls.installed_by}"

    def launched(self, flags: str) -> AbstractImplementation:
        """The same as a server that is started with these flags.

        **Raises:** `UsageError` for what is no server, and for flags that are not read.
        """
        if self.follows is None:
            raise UsageError(
                f"{self.name} is no server: it takes no {shown(flags)}",
                hint=f"{self.name} alone",
            )
        from ._launch import launched

        found = copy.copy(self)
        found.launch = launched(flags, self.launch_flags, self.follows)
        return found

    def version(self) -> tuple[int, ...] | None:
        """The version that is installed, as (5, 24, 0), without importing it."""
        for distribution in self.libraries.values():
            return installed(distribution)
        return None

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a `config.json` is of its own layout."""
        del config
        return False

    def flags(self, state: str | None, weights: str | None) -> list[Flag]:
        """What to give it so that it keeps the state, or the weights, so.

        **Arguments:**

        - `state`: a format that serving stacks keep states in; None: not asked.
        - `weights`: the format of weights and activations; None: not asked.
        """
        del state, weights
        return []

    def reach(self, sizes: Any, batch: int) -> Iterator[Reach]:
        """How long sequences its kernels address, each of a sublayer's kernels.

        **Arguments:**

        - `sizes`: of the sublayer. `batch`: sequences at once.
        """
        del sizes, batch
        yield from ()

    def documented_constants(self) -> Mapping[str, InnerConstants]:
        """Sets of constants that `analysis.kernel_constants` measures, by name."""
        return {}


def refuse_unknown(mode: str, state_precision: str | None) -> None:
    """Refuse a mode and a format of states that there are not, whoever runs them.

    **Raises:** `UsageError` that says which there are.
    """
    if mode not in MODES:
        raise UsageError(
            f"cannot run in mode {mode!r}", hint=f"one of {', '.join(MODES)}"
        )
    if state_precision is not None:
        from ..formats import state_format_named

        state_format_named(state_precision)


def installed(distribution: str) -> tuple[int, ...] | None:
    """The version of an installed package, without importing it; None for none."""
    try:
        parts = metadata.version(distribution).split(".")
    except metadata.PackageNotFoundError:
        return None
    numbers = []
    for part in parts:
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _listed(names: tuple[str, ...], word: str) -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last
