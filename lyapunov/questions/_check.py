"""One check: what was asked for, the run through all layers, one report."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax

from .._arguments import progress_or_none
from .._version import __version__
from .._xla import demand_flags
from ..exponents import gather_exponents
from ..findings import _rules as findings
from ..findings._semantics import semantic_findings
from ..implementations import Execution
from ..implementations._stacks import asked_of
from ..models import Model
from ..models._load import model_of
from ..models._tokens import Tokens
from ..results._check import UNDECIDED, Report
from ._changes import parameter_changes
from ._environment import environment
from ._layers import run_layers
from ._plan import programs_of
from ._quantisation import quantisation_assumptions, quantisation_findings
from ._reference_loss import reference_loss
from ._request import (
    AS_EFFORT,
    AsEffort,
    Request,
    checkpoint_facts,
    chosen_tokens,
    demand_logits,
    device_named,
    tokens_facts,
)


def check(
    model: Any = None,
    tokens=None,
    *,
    precisions: str | Sequence[str] = ("bf16", "fp16"),
    state_precision: str | None = None,
    mode: str = "prefill",
    layers: Sequence[int] | None = None,
    measure: str = "emulated",
    constants: str = "documented",
    device: str | None = None,
    against: str | os.PathLike | None = None,
    round_weights: str | Sequence[str] = (),
    quantise_activations: str | None = None,
    effort: str = "standard",
    bounds: bool | AsEffort = AS_EFFORT,
    floor: bool | AsEffort = AS_EFFORT,
    probes: int | AsEffort = AS_EFFORT,
    readouts: int | AsEffort | None = AS_EFFORT,
    ball: bool | AsEffort = AS_EFFORT,
    growth: bool | AsEffort | None = AS_EFFORT,
    seed: int = 0,
    progress=None,
    tokens_are_text: bool = False,
    token_bytes: int | None = None,
    fail_on: str = "error",
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    allow_partial: bool = False,
    exit_zero: bool = False,
) -> Report:
    """Exponents, measured divergence and certified bounds of a checkpoint.

    **Arguments:**

    - `model`: what `load` returns, or a path or Hub id for it; or a torch module, as
      `from_torch` takes it; None is the bundled model. Without a head sublayers are
      compared and bounded, and nothing is said of logits (T2, T3 and T4 are left out).
    - `tokens`: (seq) or (batch, seq) integers, or `models.Tokens`, which say where they
      came from; None is English text where the checkpoint has a tokenizer, else seeded
      random tokens.
    - `precisions`: of the executions, such as `bf16`; `bf16-cast` casts A_log and D
      as well. Here and below, one string stands for a sequence of it alone.
    - `state_precision`: hold the state in this format after every token.
    - `layers`: sublayers to bound and compare; None is all.
    - `measure`: `emulated` (mamba_ssm's flow), another name of
      `lyapunov.implementations.IMPLEMENTATIONS`, as `transformers`, or `none`.
    - `constants`: of the arithmetic between stores, `documented` for every GPU, or
      `measured` over all fp32 arguments on one (`analysis.kernel_constants`).
    - `against`: another checkpoint of the same network, or a folder with a LoRA
      adapter of it, whose weights are held against the model's.
    - `round_weights`: hold the model against itself with weights rounded, each
      FORMAT or FORMAT:GROUP, as `bf16:A_log`; `fp8_e4m3` and other formats with
      scales round matrices as quantisers do.
    - `quantise_activations`: of `measure="emulated"`: what products of matrices read is
      quantised, as W8A8 has it: `fp8_e4m3-token`, `int8-token`, `fp8_e4m3-group128`, or
      under a fixed scale, `fp8_e4m3-static=0.05`, `nvfp4=300`. None: as a quantised
      checkpoint's configuration has it, module by module, as far as that is declared;
      `config`: the same, or an error; `none`: not at all.
    - `effort`: where the next six are not given. `quick` is exponents, what was
      measured, T3 with one probe, and advice, without any bound: its verdict is
      `measured`; `standard` adds T0 and T1; `full` adds the floor, T2 and T4, takes
      four probes and read-outs, and follows perturbations through all sublayers. The
      report says what it lacks.
    - `bounds`: bound what is measured of sublayers (T0, T1) and of changed weights.
    - `floor`: search for what no bound on free roundings could beat (about five
      forwards a layer on 256 tokens).
    - `probes`: runs with random roundings behind T3, the predicted divergence of the
      logits; 0 leaves T2 and T3 out. `readouts`: read-outs behind T2
      and the shares; None is 4, or 1 beyond 20 million parameters, since each costs a
      reverse pass; 0 is none.
    - `ball`: follow T4, the certified ball around a whole run, while it says something.
    - `growth`: find how perturbations grow through each sublayer (four tangents of one
      sequence); None: where some sublayer has no exponent.
    - `seed`: of random tokens, probes and read-outs.
    - `progress`: with `start(total, what)`, `advance()` and `close()`; None is silent.
      Where it has `known(report)`, it is told what is known whenever there is more: a
      report without verdict, of the sublayers so far; where it has `compiles(n)`, about
      how many programs there will be.
    - `tokens_are_text`: the tokens given are text, so that the reference's loss on
      them is judged (LYA016, LYA017); `token_bytes`: of all but the first token of
      each sequence, for the loss a byte.
    - `fail_on`, `select`, `ignore`, `allow_partial`, `exit_zero`: for the verdict.

    **Raises:** `LyapunovError` with a hint, for whatever cannot be checked.
    """
    named = dict(locals())  # the front is flat; behind it there is one request
    for beside in ("model", "tokens", "progress", "token_bytes"):
        del named[beside]
    began = time.perf_counter()
    request = Request.of(**named)
    progress = progress_or_none(progress)
    demand_flags()
    model = model_of(model)
    demand_logits(model, request)
    given = chosen_tokens(
        model, tokens, seed, are_text=tokens_are_text, n_bytes=token_bytes
    )
    return _answer(model, given, request.on(model, given), progress, began)


def _answer(
    model: Model, given: Tokens, request: Request, progress, began: float
) -> Report:
    """One check as it was asked for; `began` is when, in seconds."""
    ids, chosen = given.ids, request.sublayers(model)
    effort, counts = request.effort, request.verdict
    begun = _begun(model, given, request)
    # every byte is read once more, beside the work
    facts = ThreadPoolExecutor(1).submit(checkpoint_facts, model, request)
    known = _telling(progress, begun, ids.size)
    if hasattr(progress, "compiles"):
        progress.compiles(programs_of(model, request))
    with jax.enable_x64(True), jax.default_device(device_named(request.device)):
        executions = request.executions(model)
        changed = request.changes(model)
        changes = parameter_changes(
            model,
            ids,
            changed,
            progress,
            layers=chosen,
            bounds=effort.bounds,
            floor=effort.floor,
        )
        rows, reports, clipped, bits = run_layers(
            model, ids, executions, chosen, request, progress, known
        )
        reference = None
        if model.has_head:
            reference = reference_loss(
                bits,
                ids,
                model.config.vocab_size,
                is_text=given.is_text,
                source=given.source,
                n_bytes=given.n_bytes,
            )
        exponents = gather_exponents(rows, ids.size)
        found = findings.find(exponents, reports, begun.settings, changes, reference)
        found += semantic_findings(
            model,
            ids.shape[1],
            ids.shape[0],
            observed=clipped,
            adapter_targets=[name for one in changed for name in one.adapted],
        )
        found += quantisation_findings(model.layout)
        found = counts.kept(found)
        bounded = findings.bounded_share(reports, changes)
        skipped = len(findings.unchecked(reports, changes))
        checked = len(chosen) - skipped
        total = {"checked": checked, "skipped": skipped, "bounded": bounded}
        total["bounds"] = effort.bounds
        verdict, exit_code = findings.verdict(found, **total, **vars(counts))
    return replace(
        begun,
        environment=environment(),
        assumptions=_assumptions(executions, model, request),
        checkpoint=facts.result(),
        exponents=exponents,
        precisions=reports,
        findings=found,
        summary=replace(
            UNDECIDED,
            verdict=verdict,
            checked=checked,
            skipped=skipped,
            left_out=len(model.sublayers) - len(chosen),
            seconds=time.perf_counter() - began,
            exit_code=exit_code,
            bounded_share=bounded,
            **findings.advice(
                exponents, reports, found, changes, asked_of(model.layout)
            ),
        ),
        parameter_changes=changes,
        reference=reference,
    )


def _telling(progress: Any, begun: Report, size: int) -> Any:
    """Tells whoever listens what is known before the end; None where nobody does."""
    tell = getattr(progress, "known", None)
    if tell is None:
        return None
    tell(begun)

    def known(rows: Sequence[Any], reports: Sequence[Any]) -> None:
        exponents = gather_exponents(rows, size)
        tell(replace(begun, exponents=exponents, precisions=list(reports)))

    return known


# ---- what the report says of itself


def _begun(model: Model, given: Tokens, request: Request) -> Report:
    """What is known before anything has run."""
    return Report(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=request.settings(),
        environment={},
        assumptions=[],
        checkpoint=checkpoint_facts(model, request, hashed=False),
        tokens=tokens_facts(given),
        exponents=gather_exponents([], given.ids.size),
        precisions=[],
        findings=[],
        summary=UNDECIDED,
        not_computed=request.effort.left_out(has_head=model.has_head),
    )


def _assumptions(
    executions: Sequence[Execution], model: Model, request: Request
) -> list[str]:
    """What the certified bounds rest on, each once."""
    asked = request.measure, request.quantise_activations
    lines = [
        "a bound holds for every execution of the declared kind, not for the one run "
        "beside which it is shown",
        "the reference is exact arithmetic, computed in fp64; 2^-24 of a token's norm "
        "is added to every T1 bound for its own error",
        "T1 is the computed distance of the middle of what executions may store, plus "
        "a certified radius for orders of sums, last bits of elementary functions and "
        "values near a rounding tie",
    ]
    for execution in executions:
        lines += [f"{execution.name}: {text}" for text in execution.assumptions]
    stored = quantisation_assumptions(model.layout, executions, *asked)
    return [*dict.fromkeys(lines), *stored]
