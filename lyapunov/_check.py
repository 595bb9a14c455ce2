"""One check: traces beside the reference, bounds beside measurements, one report.

Everything goes layer by layer: the reference, each execution, their comparison and
the bounds of a sublayer are done before the next one is read.
"""

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _compare, findings
from ._changes import chosen_changes, parameter_changes
from ._divergence import SublayerDivergence
from ._load import load
from ._request import chosen_executions, chosen_layers, device_named, given_tokens
from ._results import (
    CheckpointFacts,
    LayerDivergence,
    LayerExponents,
    OutputDivergence,
    PrecisionReport,
    Report,
    Summary,
    TokensFacts,
)
from ._version import __version__
from .executions import Execution
from .exponents import gather_exponents, layer_exponents
from .formats import format_named
from .models import Model
from .runners import Emulated, Reference


# As many as a sublayer has bounds to find; JAX gives each what cores there are.
WORKERS = 3


class _Run(NamedTuple):
    """One execution under way."""

    execution: Execution
    trace: Any
    rows: list[LayerDivergence]
    measured_by: str


def check(
    model: Model | str | None = None,
    tokens=None,
    *,
    precisions: Sequence[str] = ("bf16", "fp16"),
    state_precision: str | None = None,
    mode: str = "prefill",
    layers: Sequence[int] | None = None,
    measure: str = "emulated",
    device: str | None = None,
    against: str | os.PathLike | None = None,
    round_weights: Sequence[str] = (),
    floor: bool = True,
    seed: int = 0,
    progress=None,
    token_source: str = "given",
    fail_on: str = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    allow_partial: bool = False,
    exit_zero: bool = False,
) -> Report:
    """Exponents, measured divergence and certified bounds of a checkpoint.

    **Arguments:**

    - `model`: what `load` returns, or a path or Hub id for it; None is the bundled
      model.
    - `tokens`: (seq) or (batch, seq) integers; None is English text where the
      checkpoint has a tokenizer, else seeded random tokens.
    - `precisions`: of the executions, such as `bf16`; `bf16-cast` casts A_log and D
      as well.
    - `state_precision`: hold the state in this format after every token.
    - `layers`: sublayers to bound and compare; None is all.
    - `measure`: `emulated` (mamba_ssm's flow), `transformers` (torch), `mamba_ssm`
      (its CUDA kernels) or `none`.
    - `against`: another checkpoint of the same network, or a folder with a LoRA
      adapter of it, whose weights are held against the model's.
    - `round_weights`: hold the model against itself with weights rounded, each
      FORMAT or FORMAT:GROUP, as `bf16:A_log`.
    - `floor`: search for what no bound on free roundings could beat (about five
      forwards a layer on 256 tokens).
    - `progress`: with `start(total, what)`, `advance()` and `close()`; None is silent.
    - `token_source`: what the report says of where the tokens came from.
    - `fail_on`, `select`, `ignore`, `allow_partial`, `exit_zero`: for the verdict.

    **Raises:** `LyapunovError` with a hint, for whatever cannot be checked.
    """
    began = time.perf_counter()
    settings = {
        "precisions": list(precisions),
        "state_precision": state_precision,
        "mode": mode,
        "layers": None if layers is None else list(layers),
        "measure": measure,
        "device": device,
        "against": None if against is None else os.fspath(against),
        "round_weights": list(round_weights),
        "floor": floor,
        "seed": seed,
        "fail_on": fail_on,
        "select": list(select),
        "ignore": list(ignore),
        "allow_partial": allow_partial,
        "exit_zero": exit_zero,
    }
    if not isinstance(model, Model):
        model = load(model)
    ids, token_source = given_tokens(model, tokens, seed, token_source)
    chosen = chosen_layers(model, layers)
    with jax.enable_x64(True), jax.default_device(device_named(device)):
        executions = chosen_executions(
            model, precisions, state_precision, mode, measure
        )
        changes = parameter_changes(
            model,
            ids,
            chosen_changes(model, against, round_weights),
            progress,
            layers=chosen,
            floor=floor,
        )
        rows, reports = _run(model, ids, executions, chosen, measure, floor, progress)
        exponents = gather_exponents(rows, ids.size)
        found = findings.select_findings(
            findings.find(exponents, reports, settings), select, ignore
        )
        skipped = len(model.sublayers) - len(chosen)
        verdict, exit_code = findings.verdict(
            found,
            fail_on=fail_on,
            checked=len(chosen),
            skipped=skipped,
            allow_partial=allow_partial,
            select=select,
            ignore=ignore,
            exit_zero=exit_zero,
        )
        environment = _environment()
    return Report(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=settings,
        environment=environment,
        assumptions=_assumptions(executions),
        checkpoint=CheckpointFacts(
            source=model.source,
            architecture=model.layout.architecture,
            n_layers=len(model.sublayers),
            n_params=model.layout.n_params,
            dtype=model.layout.dtype,
            files=[] if model.checkpoint is None else model.checkpoint.hashes(),
        ),
        tokens=TokensFacts(
            source=token_source,
            batch=ids.shape[0],
            length=ids.shape[1],
            sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        ),
        exponents=exponents,
        precisions=reports,
        findings=found,
        summary=Summary(
            verdict=verdict,
            recommendation=findings.recommendation(exponents, reports, found),
            checked=len(chosen),
            skipped=skipped,
            seconds=time.perf_counter() - began,
            exit_code=exit_code,
        ),
        parameter_changes=changes,
    )


# ---- the run


def _runner(execution: Execution, measure: str):
    if measure == "transformers":
        from .runners import Transformers

        return Transformers(execution)
    if measure == "mamba_ssm":
        from .runners import MambaSsm

        return MambaSsm(execution)
    return Emulated(execution)


def _run(model, ids, executions, chosen, measure, floor, progress):
    """Layer by layer through the reference and all executions."""
    units = [
        format_named(e.state_precision).unit_roundoff
        for e in executions
        if e.state_precision != "fp32"
    ]
    reference = Reference(tuple(units[:1])).trace(model, ids)
    runs = [
        _Run(e, _runner(e, measure).trace(model, ids), [], measure) for e in executions
    ]
    steps = len(model.sublayers) + 1
    if progress is not None:
        progress.start(steps, "checking")
    rows: list[LayerExponents] = []
    # While the bounds of one sublayer are at work the next one runs: bounds are
    # elementwise, forwards are matrix products. One sublayer ahead and no more, so
    # that memory does not grow with depth.
    with ThreadPoolExecutor(WORKERS) as workers:
        pending: list[tuple[_Run, SublayerDivergence]] = []
        for sublayer in model.sublayers:
            record = next(reference)
            started = []
            for run in runs:
                other = next(run.trace)
                if sublayer.layer in chosen:
                    work = SublayerDivergence(
                        model, sublayer, run.execution, record, other, floor, workers
                    )
                    started.append((run, work))
            rows.append(_exponents(model, record))
            _collect(pending)
            pending = started
            if progress is not None:
                progress.advance(1, f"layer {sublayer.layer}")
        _collect(pending)
    head = next(reference)
    outputs = _outputs(model, head, [next(run.trace) for run in runs], ids.shape)
    if progress is not None:
        progress.advance(1, "logits")
    return rows, [
        PrecisionReport(
            precision=run.execution.precision,
            state_precision=run.execution.state_precision,
            execution=run.execution.name,
            mode=run.execution.mode,
            measured_by=run.measured_by,
            layers=run.rows,
            output=output,
        )
        for run, output in zip(runs, outputs, strict=True)
    ]


def _collect(pending: list) -> None:
    for run, work in pending:
        run.rows.append(work.row())


def _exponents(model: Model, record) -> LayerExponents:
    raw = model.raw_parameters(record.layer)
    A = -np.exp(raw["A_log"].astype(np.float64))
    return layer_exponents(
        record.layer,
        record.kind,
        record.observed["dt"],
        A,
        max_abs_state=float(jnp.max(record.observed["state"])),
        max_abs_output=float(jnp.max(jnp.abs(record.output))),
        dt_bias=raw["dt_bias"].astype(np.float64),
        A_log=raw["A_log"].astype(np.float64),
        D=raw["D"].astype(np.float64),
        stored_dtype=model.layout.dtype,
    )


def _outputs(model: Model, head, others, shape) -> list[OutputDivergence]:
    sums = [_compare.no_logits(*shape) for _ in others]
    if others:
        for start, stop in model.vocabulary_slices():
            reference = head.logits(start, stop)
            for i, other in enumerate(others):
                sums[i] = _compare.add_logits(
                    sums[i], reference, other.logits(start, stop), start
                )
    return [_compare.output_divergence(s, model.config.vocab_size) for s in sums]


# ---- what the report says of itself


def _environment() -> dict[str, Any]:
    device = jnp.zeros(()).devices().pop()
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": str(getattr(device, "device_kind", device)),
        "platform": platform.platform(),
    }


def _assumptions(executions: Sequence[Execution]) -> list[str]:
    """What the certified bounds rest on, each once."""
    lines = [
        "a bound holds for every execution of the declared kind, not for the one run "
        "beside which it is shown",
        "the reference is exact arithmetic, computed in fp64; 2^-24 of a token's norm "
        "is added to every T1 bound for its own error",
        "T1 is the computed distance of the execution that rounds only its stored "
        "tensors, plus a certified radius for orders of sums, last bits of "
        "elementary functions and values near a rounding tie",
    ]
    for execution in executions:
        lines += [f"{execution.name}: {text}" for text in execution.assumptions]
    return list(dict.fromkeys(lines))
