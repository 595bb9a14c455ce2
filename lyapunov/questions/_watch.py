"""A check of whatever state-space blocks a torch module has, on what they read."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from ._network_output import network_outputs
from ._network_runs import NetworkRuns
from ._output_of import OutputOf
from ._request import Request, device_named
from ._undisturbed import undisturbed
from ._verified import Verified, source_of, verified
from ._watch_report import BlockCall, Subject, report_of_calls


NO_TOKENS = "blocks of a network in memory have no logits; output= looks at its output"

# What a check of blocks can be asked for; the others speak of tokens or of files.
SETTINGS = (
    *("precisions", "state_precision", "mode", "constants", "device", "effort"),
    *("bounds", "floor", "growth", "seed", "fail_on", "select", "ignore"),
    *("exit_zero", "measure"),
)
OF_OUTPUT = ("probes",)
"""Beside these where a network's output is looked at."""
MEASURES = ("emulated", "none")
"""What measures blocks: nothing runs them alone but the emulator."""


def watch(
    module: Any,
    *,
    mixers: Mixers | None = None,
    options: Mapping[str, Any] | None = None,
    sequence_first: Sequence[str] = (),
    scans: Mapping[Any, str] | None = None,
    output: Any = None,
    metric: Any = None,
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
    - `output`: what of the network's own output is looked at as well, with all blocks
      in each precision and everything around them as it is: a string names an attribute
      or a key (`"logits"`), an integer an index, True the tensor that the module gives;
      a function of what it gives makes a tensor. Of `report = lyapunov.watch(...)(...)`
      alone, since the network runs again: it has to give the same twice.
    - `metric`: a function of that tensor that gives decisions (whole numbers or truth
      values) or a number; None is the argmax of the last axis, False nothing.
    - `progress`: as for `check`.
    - `settings`: those of `check` that need neither logits nor files: `precisions`,
      `state_precision`, `effort`, `mode`, `growth`, `probes` (behind sigma of the
      output), `measure` (`emulated`, or `none`
      for the exponents alone), and so on.

    **Raises:** `UsageError` for what is no such module, or has no block; then it lists
    what comes nearest.
    """
    known = (*SETTINGS, *OF_OUTPUT * (output is not None))
    strange = sorted(set(settings) - set(known))
    if strange:
        raise UsageError(
            f"watch takes no {strange[0]}", hint=f"one of {', '.join(known)}"
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
    looked_at = _chosen_output(output, metric, request)
    how = module, found, capture, request, progress
    return Watched(*how, looked_at, tuple(sequence_first))


def _chosen_output(output: Any, metric: Any, request: Request) -> OutputOf | None:
    """**Raises:** `UsageError` for what cannot go together."""
    if output is None:
        if metric is not None:
            raise UsageError("metric= without output=", hint='output="logits", say')
        return None
    if request.measure == "none":
        raise UsageError(
            "output= with measure='none', which runs nothing in lower precision",
            hint="leave measure= out",
        )
    return OutputOf(output, metric)


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
        output: OutputOf | None = None,
        sequence_first: tuple[str, ...] = (),
    ):
        self._output = output
        self._sequence_first = sequence_first
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
        """Run the module on these inputs, and report what its blocks did; once, unless
        its output is looked at."""
        self.calls.clear()
        runs = None
        if self._output is not None:
            own = self._module, self.mixers, self._sequence_first
            runs = NetworkRuns(*own, inputs, named, self._output)
        with undisturbed(self._module):
            with self:
                result = self._module(*inputs, **named)
            if runs is not None and self.calls:
                runs.begin(result, self.calls)
        return self._report(runs)

    def report(self) -> Report:
        """Check every call that was seen.

        **Raises:** `UsageError` where no block was called, or one is not the function
        that it looks like; and for `output=`, which needs the inputs.
        """
        if self._output is not None:
            raise UsageError(
                "output= needs the inputs, since the network runs again",
                hint="report = lyapunov.watch(model, output=...)(*inputs)",
            )
        return self._report(None)

    def _report(self, runs: NetworkRuns | None) -> Report:
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
            report = report_of_calls(calls, subject, self._request, began)
            if runs is None or self._output is None:
                return report
            rows, told = network_outputs(
                runs, found, self._request, self._output, subject.source
            )
            pairs = zip(report.precisions, rows, strict=True)
            return replace(
                report,
                precisions=[replace(one, network=row) for one, row in pairs],
                assumptions=[*report.assumptions, *told],
                summary=replace(report.summary, seconds=time.perf_counter() - began),
            )

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


def to_check(one: Verified) -> BlockCall:
    """A verified call, and what is said of it."""
    where = f" on {one.call.device}" if one.call.device else ""
    told = (
        f"{one.call.title} is {one.mixer.kind}{' behind its norm' * one.norm_front}: "
        f"what it gave in {one.call.dtype}{where} is "
        f"{one.distance:.2g} of its size away from exact arithmetic, "
        f"{one.share:.2g} of the bound and {one.z:.2g} times what roundings make of it"
    )
    call = one.call
    return BlockCall(
        call.name, call.title, one.mixer, one.model, one.ids, call.read, told
    )
