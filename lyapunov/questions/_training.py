"""Stability while a model is trained: by transformers' Trainer, Lightning's, a loop."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import choice, positive, shown, whole
from .._errors import ArgumentError, LyapunovError, MissingExtraError
from ..formats._table import PRECISIONS
from ..models._from_torch import from_torch
from ._check import check
from ._figures import figures_of
from ._request import chosen_tokens
from ._settings import checked_settings


try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError(
        f"StabilityCallback needs transformers ({error})",
        hint="pip install 'lyapunov-check[torch]'",
    ) from None


class StabilityCallback(TrainerCallback):
    """Log exponents, decays and predicted divergence every so many steps.

    At the start, and after every `every` optimiser steps, the weights are read as they
    are and checked on a few tokens, on the CPU. Nothing runs in the torch model: its
    mode, gradients and buffers and torch's random numbers stay as they are. Logged are

    - `lyapunov/max_exponent`, nats per token: below 0 a perturbation is forgotten;
    - `lyapunov/decay_min`, `lyapunov/decay_max`: of exp(dt A) over all layers;
    - `lyapunov/memory_tokens`: the longest of the layers' 90 % memories, in tokens;
    - `lyapunov/predicted_divergence`: of the logits under `precision`, relative, to
      first order (T3), with `lyapunov/measured_divergence` of the emulated execution
      beside it;
    - `lyapunov/findings`: how many; and `lyapunov/seconds`: what the check took.

    What a model does not have (a Transformer has no exponents) is not logged. Weights
    that cannot be checked any more (NaN) are a warning and `lyapunov/failed` = 1, and
    training goes on.

    Given to `trainer.add_callback` or as `callbacks=[callback]`, the figures go through
    `trainer.log`: to `state.log_history` and to all loggers (TensorBoard, W&B), in an
    entry of their own. Called by something that is no Trainer, they wait for its next
    log and go to the callbacks behind this one. A loop of one's own calls
    `callback.after_step(module, step)` and logs what comes; Lightning's Trainer takes
    `callback.for_lightning()`.

    **Arguments:**

    - `tokens`: (seq) or (batch, seq) integers; None is 64 seeded random ones. A check
      looks for no bounds (`effort="quick"`): it costs some eight forwards of them in
      fp64 on the CPU, and the first one the compilation (ten seconds on two cores).
    - `every`: optimiser steps from check to check.
    - `precision`: of the execution that divergence is predicted for, such as bf16.
    - `probes`: runs with random roundings behind the prediction.
    - `budget`: share of the time since training began that checks may take; one that
      would come too early is left out. The first check compiles and is always made.
    - `path`: a file that gets one JSON object a line for each check, findings
      included; None is none.
    - `seed`: of random tokens and probes.

    **Raises:** `UsageError` for arguments out of range; when training begins, a
    `LyapunovError` for a model that is not covered, or tokens that it does not know.
    """

    def __init__(
        self,
        tokens=None,
        *,
        every: int = 100,
        precision: str = "bf16",
        probes: int = 1,
        budget: float = 0.1,
        path: str | os.PathLike | None = None,
        seed: int = 0,
    ):
        self.every = whole(every, "every", 1)
        self.budget = positive(budget, "budget", most=1)
        self.probes = whole(probes, "probes", 0)
        self.precision = choice(precision, "precision", PRECISIONS)
        checked_settings({"seed": seed})
        if path is not None and not isinstance(path, str | os.PathLike):
            raise ArgumentError(f"path is {shown(path)}", hint='path="stability.jsonl"')
        self.tokens = tokens
        self.path = None if path is None else Path(path)
        self.seed = seed
        self.spent = 0.0
        """Seconds that checks took in this training, the first left out."""
        self.skipped = 0
        """Checks left out for the budget."""
        self._log: Any = None
        self._waiting: dict[str, float] = {}
        self._began: float | None = None
        self._checks = 0

    def attach(self, trainer) -> "StabilityCallback":
        """Add the callback to a Trainer, and log through it; returns itself."""
        trainer.add_callback(self)
        self._log = trainer.log
        return self

    def on_train_begin(self, args, state, control, **kwargs):
        """Check the model as training begins."""
        trainer = self._trainer()
        self._log = self._log if trainer is None else trainer.log
        if state.is_world_process_zero:
            self._begin(kwargs["model"])
            self._check(kwargs["model"], state, control)

    def on_step_end(self, args, state, control, **kwargs):
        """Check the model where a check is due."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self._check(kwargs["model"], state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add what waits to the Trainer's own figures."""
        if self._waiting and logs is not None:
            logs.update(self._waiting)
            if state.log_history:
                state.log_history[-1].update(self._waiting)
            self._waiting = {}

    def after_step(self, module, step: int) -> dict[str, float]:
        """Check the model of a loop of one's own where a check is due: at the first
        call, and at every step that `every` divides.

        **Arguments:**

        - `module`: a whole model, as `from_torch` takes it.
        - `step`: optimiser steps that were made.

        **Returns:**

        The figures to log by name (`wandb.log(figures, step=step)`, or
        `writer.add_scalar(name, value, step)` of each); none where no check was made.

        **Raises:** as when a Trainer begins.
        """
        step = whole(step, "step", 0)
        if self._began is None:
            self._begin(module)
        elif step % self.every:
            return {}
        return self._figures_at(module, step)

    def for_lightning(self, module_of: Callable[[Any], Any] = attrgetter("model")):
        """Make a callback for Lightning's Trainer, which logs to all its loggers.

        **Arguments:**

        - `module_of`: gives the whole model of a LightningModule.

        **Raises:** `MissingExtraError` where Lightning is not installed.
        """
        base = _lightning_callback()
        after_step = self.after_step

        class Stability(base):
            """Log after the steps of Lightning's Trainer."""

            def on_train_start(self, trainer, pl_module):
                self._log(trainer, pl_module)

            def on_train_batch_end(self, trainer, pl_module, *batch, **more):
                # of accumulated gradients several batches are one step
                if trainer.global_step != self.last:
                    self._log(trainer, pl_module)

            def _log(self, trainer, pl_module):
                self.last = trainer.global_step
                if not trainer.is_global_zero:
                    return
                figures = after_step(module_of(pl_module), trainer.global_step)
                for logger in trainer.loggers if figures else ():
                    logger.log_metrics(dict(figures), step=trainer.global_step)

        return Stability()

    def _begin(self, module) -> None:
        """**Raises:** `LyapunovError` for a model or tokens that cannot be checked."""
        self._began = time.perf_counter()
        self.spent, self.skipped, self._checks = 0.0, 0, 0
        model = from_torch(module)
        if self.tokens is None:
            drawn = np.random.default_rng(self.seed)
            self.tokens = drawn.integers(0, model.config.vocab_size, 64)
        chosen_tokens(model, self.tokens, self.seed)

    def _check(self, module, state, control) -> None:
        figures = self._figures_at(module, state.global_step)
        if figures:
            self._publish(figures, control)

    def _figures_at(self, module, step: int) -> dict[str, float]:
        """What a check finds, written where there is a file; nothing beyond the
        budget."""
        began = time.perf_counter()
        if self._checks > 1:
            expected = self.spent / (self._checks - 1)
            since = began - (self._began or began) + expected
            if self.spent + expected > self.budget * since:
                self.skipped += 1
                return {}
        codes: list[str] = []
        try:
            report = check(
                from_torch(module),
                self.tokens,
                precisions=(self.precision,),
                device="cpu",
                effort="quick",
                probes=self.probes,
                seed=self.seed,
            )
        except LyapunovError as error:
            warnings.warn(f"step {step}: no stability check: {error}", stacklevel=2)
            figures = {"failed": 1.0}
        else:
            figures, codes = figures_of(report), [f.code for f in report.findings]
        took = time.perf_counter() - began
        self.spent += took if self._checks else 0.0  # the first compiles
        self._checks += 1
        figures["seconds"] = took
        logged = {f"lyapunov/{name}": value for name, value in figures.items()}
        if self.path is not None:
            line = {"step": step, **logged, "findings": codes}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return logged

    def _trainer(self) -> Any:
        """The Trainer that is calling, which its callbacks are not told of.

        It is the `self` of a frame further up, and has this callback in its list.
        """
        frame: Any = sys._getframe(1)
        while frame is not None:
            found = frame.f_locals.get("self")
            handler = getattr(found, "callback_handler", None)
            if any(one is self for one in getattr(handler, "callbacks", ())):
                return found
            frame = frame.f_back
        return None

    def _publish(self, logged: dict[str, float], control) -> None:
        if self._log is None:
            self._waiting = logged
            control.should_log = True
            return
        due = control.should_log
        self._log(dict(logged))
        control.should_log = due  # which logging takes back


def _lightning_callback() -> Any:
    """The base of Lightning's callbacks, under either of its two names."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError(
        "Lightning is not installed here", hint="pip install lightning"
    )
