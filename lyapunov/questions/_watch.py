"""A check of whatever state-space blocks a torch module has, on what they read."""

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from .._arguments import choice, progress_or_none
from .._errors import UsageError
from .._version import __version__
from .._xla import demand_flags
from ..exponents import gather_exponents
from ..findings import _rules as findings
from ..mixers import Call, FoundMixer, find_mixers
from ..mixers._capture import Capture
from ..mixers._found import Describe
from ..mixers._scan_calls import known_scans
from ..results._check import (
    UNDECIDED,
    CheckpointFacts,
    Finding,
    LayerExponents,
    OutputDivergence,
    PrecisionReport,
    Report,
    TokensFacts,
)
from ._environment import environment
from ._layers import run_layers
from ._request import Request, device_named
from ._verified import Verified, renumbered, source_of, verified


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
    mixers: Mapping[Any, Describe] | None = None,
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
      `lyapunov.Mixer` of the module (`lyapunov.mixer`).
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
            found = self._verified()
            return _report(self._module, found, self._uncalled(), self._request, began)

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


def _report(
    module: Any,
    found: list[Verified],
    uncalled: list[str],
    request: Request,
    began: float,
) -> Report:
    """The rows of all calls as one report."""
    rows: list[LayerExponents] = []
    reports: list[list[PrecisionReport]] = []
    more: list[Finding] = []
    assumptions: list[str] = []
    for number, one in enumerate(found):
        own, precisions, assumed = _one_call(one, number, request)
        rows += own
        reports.append(precisions)
        assumptions += assumed
    merged = [_merged(list(same)) for same in zip(*reports, strict=True)]
    exponents = gather_exponents(rows, sum(one.ids.size for one in found))
    begun = _begun(module, found, request)
    told = findings.find(exponents, merged, begun.settings) + more
    told = request.verdict.kept(told)
    bounded = findings.bounded_share(merged, [])
    skipped = len(findings.unchecked(merged, []))
    verdict, exit_code = findings.verdict(
        told,
        checked=len(found) - skipped,
        skipped=skipped,
        bounded=bounded,
        bounds=request.effort.bounds,
        **vars(request.verdict),
    )
    return replace(
        begun,
        environment=environment(),
        assumptions=[*_assumptions(found, uncalled), *dict.fromkeys(assumptions)],
        exponents=exponents,
        precisions=merged,
        findings=told,
        summary=replace(
            UNDECIDED,
            verdict=verdict,
            checked=len(found) - skipped,
            skipped=skipped,
            seconds=time.perf_counter() - began,
            exit_code=exit_code,
            bounded_share=bounded,
            **findings.advice(exponents, merged, told),
        ),
    )


def _one_call(
    one: Verified, number: int, request: Request
) -> tuple[list[LayerExponents], list[PrecisionReport], list[str]]:
    """The rows of one call under its number, and what its executions assume."""
    if one.mixer.sizes.aside:  # a scan alone gives another width than it reads
        request = replace(request, effort=replace(request.effort, growth=False))
    executions = request.executions(one.model)
    rows, reports, _, _ = run_layers(one.model, one.ids, executions, (0,), request)
    title = one.call.title
    told = [f"{e.name}: {text}" for e in executions for text in e.assumptions]
    return (
        renumbered(rows, number, title),
        [
            replace(report, layers=renumbered(report.layers, number, title))
            for report in reports
        ],
        told,
    )


def _merged(reports: list[PrecisionReport]) -> PrecisionReport:
    """One execution's report of all calls."""
    causes = [one.output.cause for one in reports if one.output.cause is not None]
    names = list(dict.fromkeys(one.execution for one in reports))
    return replace(
        reports[0],
        execution="; ".join(names),
        layers=[row for one in reports for row in one.layers],
        output=OutputDivergence(cause=causes[0] if causes else None),
        state_stored_every=min(one.state_stored_every for one in reports),
    )


def _begun(module: Any, found: list[Verified], request: Request) -> Report:
    """What is known before anything has run."""
    by_block = {one.call.name: one for one in found}
    kinds = list(dict.fromkeys(one.mixer.kind for one in found))
    dtypes = list(dict.fromkeys(one.model.layout.dtype for one in found))
    digest = hashlib.sha256()
    for one in found:
        digest.update(np.ascontiguousarray(one.call.read).tobytes())
    lengths = sorted({one.ids.shape for one in found})
    batch, length = lengths[-1]
    what = "what its blocks read"
    if len(lengths) > 1:
        what += f" ({len(lengths)} shapes, the largest)"
    left_out = request.effort.left_out(has_head=False)
    return Report(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=request.settings(),
        environment={},
        assumptions=[],
        checkpoint=CheckpointFacts(
            source=source_of(module),
            architecture=", ".join(kinds),
            n_layers=len(found),
            n_params=sum(one.mixer.n_params for one in by_block.values()),
            dtype=", ".join(dtypes),
            files=[],
            n_blocks=len(by_block),
        ),
        tokens=TokensFacts(what, batch, length, digest.hexdigest()),
        exponents=gather_exponents([], 0),
        precisions=[],
        findings=[],
        summary=UNDECIDED,
        not_computed={
            name: NO_TOKENS if "no head" in why else why
            for name, why in left_out.items()
        },
    )


def _assumptions(found: list[Verified], uncalled: list[str]) -> list[str]:
    """What is said of every block, and of those that were never called."""
    lines = [
        f"{one.call.title} is {one.mixer.kind}{' behind its norm' * one.norm_front}: "
        f"what it gave in {one.call.dtype} on "
        f"{one.call.device} is {one.distance:.2g} of its size away from exact "
        f"arithmetic, {one.share:.2g} of the bound"
        for one in found
    ]
    lines += [f"{name} was never called, and is not checked" for name in uncalled]
    lines.append(
        "a bound holds for every execution of the declared kind on what the block "
        "read, not for the one run beside which it is shown"
    )
    return lines
