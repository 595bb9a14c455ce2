"""One check: what was asked for, the run through all layers, one report."""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from .._arguments import progress_or_none
from .._version import __version__
from .._xla import demand_flags
from ..exponents import gather_exponents
from ..findings import _rules as findings
from ..findings._semantics import semantic_findings
from ..implementations import Execution
from ..implementations._registry import measuring
from ..models._load import demand_head, model_of
from ..results._check import CheckpointFacts, Report, Summary
from ._changes import parameter_changes
from ._environment import environment
from ._layers import Effort, default_readouts, run_layers
from ._reference_loss import reference_loss
from ._request import (
    chosen_executions,
    chosen_layers,
    device_named,
    tokens_facts,
    tokens_to_check,
)
from ._settings import checked_settings
from ._weight_sets import chosen_changes


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
    floor: bool = True,
    probes: int = 1,
    readouts: int | None = None,
    ball: bool = True,
    growth: bool | None = None,
    seed: int = 0,
    progress=None,
    token_source: str = "given",
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
    - `tokens`: (seq) or (batch, seq) integers; None is English text where the
      checkpoint has a tokenizer, else seeded random tokens.
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
    - `token_source`: what the report says of where the tokens came from.
    - `tokens_are_text`: the tokens given are text, so that the reference's loss on
      them is judged (LYA016, LYA017); `token_bytes`: of all but the first token of
      each sequence, for the loss a byte.
    - `fail_on`, `select`, `ignore`, `allow_partial`, `exit_zero`: for the verdict.

    **Raises:** `LyapunovError` with a hint, for whatever cannot be checked.
    """
    began = time.perf_counter()
    settings = checked_settings(
        {
            "precisions": precisions,
            "state_precision": state_precision,
            "mode": mode,
            "layers": layers,
            "measure": measure,
            "constants": constants,
            "device": device,
            "against": against,
            "round_weights": round_weights,
            "floor": floor,
            "probes": probes,
            "readouts": readouts,
            "ball": ball,
            "growth": growth,
            "seed": seed,
            "tokens_are_text": tokens_are_text,
            "fail_on": fail_on,
            "select": select,
            "ignore": ignore,
            "allow_partial": allow_partial,
            "exit_zero": exit_zero,
        }
    )
    precisions, layers, select, ignore = (
        settings[name] for name in ("precisions", "layers", "select", "ignore")
    )
    round_weights, against = settings["round_weights"], settings["against"]
    progress = progress_or_none(progress)
    demand_flags()
    model = model_of(model)
    implementation = measuring(measure)
    headless = implementation is None or implementation.runs_without_head
    if against or round_weights or not headless:
        demand_head(model)
    if not model.has_head:
        # all of these are of the logits
        probes = readouts = settings["probes"] = settings["readouts"] = 0
        ball = settings["ball"] = False
    if readouts is None:
        readouts = default_readouts(model.layout.n_params)
        settings["readouts"] = readouts
    given = tokens_to_check(
        model,
        tokens,
        seed,
        token_source,
        are_text=tokens_are_text,
        n_bytes=token_bytes,
    )
    ids, token_source = given.ids, given.source
    chosen = chosen_layers(model, layers)
    with jax.enable_x64(True), jax.default_device(device_named(device)):
        executions = chosen_executions(
            model, precisions, state_precision, mode, measure, constants
        )
        changed = chosen_changes(model, against, round_weights)
        changes = parameter_changes(
            model,
            ids,
            changed,
            progress,
            layers=chosen,
            floor=floor,
        )
        effort = Effort(floor, probes, readouts, ball, seed, growth)
        rows, reports, clipped, bits = run_layers(
            model, ids, executions, chosen, measure, effort, progress
        )
        reference = None
        if model.has_head:
            reference = reference_loss(
                bits,
                ids,
                model.config.vocab_size,
                is_text=given.is_text,
                source=token_source,
                n_bytes=given.n_bytes,
            )
        exponents = gather_exponents(rows, ids.size)
        found = findings.find(exponents, reports, settings, changes, reference)
        found += semantic_findings(
            model,
            ids.shape[1],
            ids.shape[0],
            observed=clipped,
            adapter_targets=[name for one in changed for name in one.adapted],
        )
        found = findings.select_findings(found, select, ignore)
        bounded = findings.bounded_share(reports, changes)
        skipped = len(findings.unchecked(reports, changes))
        verdict, exit_code = findings.verdict(
            found,
            fail_on=fail_on,
            checked=len(chosen) - skipped,
            skipped=skipped,
            allow_partial=allow_partial,
            select=select,
            ignore=ignore,
            exit_zero=exit_zero,
            bounded=bounded,
        )
    return Report(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=settings,
        environment=environment(),
        assumptions=_assumptions(executions),
        checkpoint=CheckpointFacts(
            source=model.source,
            architecture=model.layout.architecture,
            n_layers=len(model.sublayers),
            n_params=model.layout.n_params,
            dtype=model.layout.dtype,
            files=[] if model.checkpoint is None else model.checkpoint.hashes(),
            n_blocks=model.layout.n_blocks,
        ),
        tokens=tokens_facts(ids, token_source),
        exponents=exponents,
        precisions=reports,
        findings=found,
        summary=Summary(
            verdict=verdict,
            checked=len(chosen) - skipped,
            skipped=skipped,
            left_out=len(model.sublayers) - len(chosen),
            seconds=time.perf_counter() - began,
            exit_code=exit_code,
            bounded_share=bounded,
            **findings.advice(exponents, reports, found, changes),
        ),
        parameter_changes=changes,
        reference=reference,
    )


# ---- what the report says of itself


def _assumptions(executions: Sequence[Execution]) -> list[str]:
    """What the certified bounds rest on, each once."""
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
    return list(dict.fromkeys(lines))
