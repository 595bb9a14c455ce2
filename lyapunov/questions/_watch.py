"""A check of whatever state-space blocks a torch module has, on what they read."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from .._arguments import choice, progress_or_none
from .._errors import UsageError
from .._xla import demand_flags
from ..mixers import Call, FoundMixer, find_mixers
from ..mixers._capture import Capture
from ..mixers._found import Mixers
from ..mixers._scan_calls import known_scans
from ..results import Report
from ._request import Request, device_named
from ._verified import Verified, source_of, verified
from ._watch_report import BlockCall, Subject, report_of_calls


NO_TOKENS = "blocks of a network in memory have no logits; output= looks at its output"

# What a check of blocks can be asked for; the others speak of tokens or of files.
SETTINGS = (
    *("precisions", "state_precision", "mode", "constants", "device", "effort"),
    *("bounds", "floor", "growth", "seed", "fail_on", "select", "ignore"),
    *("exit_zero", "measure"),
)
MEASURES = ("emulated", "none")
"""What measures blocks: nothing runs them alone but the emulator."""


def watch(
    module: Any,
    *,
    mixers: Mixers | None = None,
    options: Mapping[str, Any] | None = None,
    sequence_first: Sequence[str] = (),
    scans: Mapping[Any, str] | None = None,
    progress: Any = None,
    **settings: Any,
) -> "Watched":
    """Look at every state-space block of a torch module while it runs.

    `report = lyapunov.watch(model)(*inputs)` runs the module once, in the mode that it
    is in, without gradients, and leaves its buffers and torch's random numbers as they
    were. `with lyapunov.watch(model) as seen: ...` looks at every call inside, and
    `seen.report()` says what they show.

    **Arguments:**

    - `module`: any `torch.nn.Module` with blocks of Mamba-1, Mamba-2 or Mamba-3: of
      mamba_ssm, of transformers, or of classes whose parameters are named and shaped
      alike. Each is verified: what it gave has to lie within the bounds of our flow on
      what it read.
    - `mixers`: of a class, or of a module's name, a function that makes a
      `lyapunov.Mixer` of the module (`lyapunov.mixer`); None: it is no block, whatever
      its tensors look like.
    - `options`: what neither tensors nor attributes say, as `{"chunk": 256}`.
    - `sequence_first`: names of blocks that read (seq, batch, d_model).
    - `scans`: functions of one's own that are called like `selective_scan_fn` or
      `mamba_chunk_scan_combined` of mamba_ssm, by which of the two; those themselves
      are known. Calls that stand in no block are rows of their own.
    - `progress`: as for `check`.
    - `settings`: those of `check` that need neither logits nor files: `precisions`,
      `state_precision`, `effort`, `mode`, `growth`, `measure` (`emulated`, or `none`
      for the exponents alone), and so on.

    **Raises:** `UsageError` for what is no such module, or has no block; then it lists
    what comes nearest.
    """
    strange = sorted(set(settings) - set(SETTINGS))
    if strange:
        raise UsageError(
            f"watch takes no {strange[0]}", hint=f"one of {', '.join(SETTINGS)}"
        )
    choice(settings.get("measure", "emulated"), "measure", MEASURES)
    request = Request.of(**settings)
    functions = known_scans(scans)
    found = find_mixers(module, mixers, options, needed=not functions)
    unknown = sorted(set(sequence_first) - {one.name for one in found})
    if unknown:
        raise UsageError(
            f"sequence_first names {unknown[0]!r}, which is no block",
            hint=f"one of {', '.join(one.name for one in found)}",
        )
    capture = Capture(found, sequence_first, functions)
    return Watched(module, found, capture, request, progress)


class Watched:
    """The blocks of a module, and what was seen of them; `watch` makes one.

    **Attributes:**

    - `mixers`: the blocks that were found.
    - `calls`: what each of them read and gave, in the order of the calls.
    """

    def __init__(
        self,
        module: Any,
        found: list[FoundMixer],
        capture: Capture,
        request: Request,
        progress: Any,
    ):
        self._module = module
        self._request = request
        self._progress = progress
        self._capture = capture
        self.mixers = found

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{one.name or '(itself)'}: {one.kind}" for one in self.mixers
        )
        return f"Watched({source_of(self._module)}: {kinds})"

    @property
    def calls(self) -> list[Call]:
        """What was seen so far."""
        return self._capture.calls

    def __enter__(self) -> "Watched":
        self._capture.start(self._module)
        return self

    def __exit__(self, *raised: object) -> None:
        self._capture.stop()

    def __call__(self, *inputs: Any, **named: Any) -> Report:
        """Run the module once on these inputs, and report what its blocks did."""
        self.calls.clear()
        with self, _undisturbed(self._module):
            self._module(*inputs, **named)
        return self.report()

    def report(self) -> Report:
        """Check every call that was seen.

        **Raises:** `UsageError` where no block was called, or one is not the function
        that it looks like.
        """
        began = time.perf_counter()
        demand_flags()
        if not self.calls:
            raise UsageError(
                f"no block or scan of {source_of(self._module)} was called",
                hint="run the network between `with lyapunov.watch(...)` and the "
                "report: seen = lyapunov.watch(model); report = seen(*inputs)",
            )
        device = device_named(self._request.device)
        with jax.enable_x64(True), jax.default_device(device):
            found, uncalled = self._verified(), self._uncalled()
            subject = Subject(
                source_of(self._module),
                "what its blocks read",
                NO_TOKENS,
                [f"{name} was never called, and is not checked" for name in uncalled],
            )
            calls = [to_check(one) for one in found]
            return report_of_calls(calls, subject, self._request, began)

    def _verified(self) -> list[Verified]:
        source = source_of(self._module)
        progress = progress_or_none(self._progress)
        if progress is not None:
            progress.start(len(self.calls), "verifying")
        found = []
        for call in self.calls:
            found.append(verified(call, source))
            if progress is not None:
                progress.advance(1, call.title)
        return found

    def _uncalled(self) -> list[str]:
        called = {call.name for call in self.calls}
        return [one.name for one in self.mixers if one.name not in called]


@contextmanager
def _undisturbed(module: Any):
    """No gradients; buffers and random numbers as they were afterwards."""
    torch = sys.modules["torch"]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = {b.device for b in (*module.parameters(), *module.buffers())}
    indices = [d.index or 0 for d in devices if d.type == "cuda"]
    with torch.random.fork_rng(devices=indices), torch.no_grad():
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def to_check(one: Verified) -> BlockCall:
    """A verified call, and what is said of it."""
    where = f" on {one.call.device}" if one.call.device else ""
    told = (
        f"{one.call.title} is {one.mixer.kind}{' behind its norm' * one.norm_front}: "
        f"what it gave in {one.call.dtype}{where} is "
        f"{one.distance:.2g} of its size away from exact arithmetic, "
        f"{one.share:.2g} of the bound"
    )
    call = one.call
    return BlockCall(
        call.name, call.title, one.mixer, one.model, one.ids, call.read, told
    )
