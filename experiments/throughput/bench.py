"""Training steps of one network, timed, with the memory that they take."""

import gc
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from experiments.finetuning.networks import adapt
from experiments.finetuning.training import autocast

from .shapes import Case, network


WARM_UP = 2  # steps; the first compiles, and LoRA's A has no gradient before the second
_FEWEST = 3  # timed steps
_ALPHA = 16
_RATE = 1e-5
_CLIP = 1.0


class Refused(RuntimeError):
    """A step that trains less than it says: its time would be a lie."""


@dataclass(frozen=True)
class Load:
    """What a step is given, and how many are timed.

    - `batch`, `length`: windows, and tokens in one.
    - `steps`: timed ones, at most.
    - `most`: seconds of timed steps after which there are no more, once there are 3.
    """

    batch: int
    length: int
    steps: int
    most: float


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))


class Bench:
    """A network and its optimizer, as in experiments.finetune.

    fp32 weights and AdamW states, the forward under torch's autocast, fp16 with its
    GradScaler, clipped gradients; these are freed before the next forward.
    """

    def __init__(self, case: Case, device: torch.device, rank: int) -> None:
        torch.manual_seed(0)
        # what was there before is in the peak, too: next to nothing, or it shows
        cuda = device.type == "cuda"
        self.before = torch.cuda.memory_allocated() if cuda else None
        self.case = case
        self.device = device
        self.network = network(case, device)
        self.model = adapt(self.network, case.method, rank, _ALPHA).train()
        named = self.model.named_parameters()
        self.trained = {name: p for name, p in named if p.requires_grad}
        self.adam = torch.optim.AdamW(self.trained.values(), lr=_RATE, weight_decay=0.0)
        half = case.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.checked = False

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """One step; ids: batch x (length + 1). Returns the loss."""
        self.adam.zero_grad(set_to_none=True)
        with autocast(self.device, self.case.precision):
            logits = self.model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.adam)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), _CLIP)
        self.scaler.step(self.adam)
        self.scaler.update()
        return loss.detach()

    def measure(self, load: Load) -> dict[str, Any]:
        """Values of a row.

        **Raises:**

        Refused if something that is to be trained gets no gradient.
        """
        tokens = load.batch * load.length
        ids = torch.randint(
            self.case.vocabulary, (load.batch, load.length + 1), device=self.device
        )
        began = time.perf_counter()
        for _ in range(WARM_UP):
            self.step(ids)
            self._check()
        self._synchronize()
        warm_up = time.perf_counter() - began
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        loss, skipped = torch.zeros(()), 0
        while len(seconds) < load.steps and not (
            len(seconds) >= _FEWEST and sum(seconds) >= load.most
        ):
            scale = self.scaler.get_scale()
            self._synchronize()
            start = time.perf_counter()
            loss = self.step(ids)
            self._synchronize()
            seconds.append(time.perf_counter() - start)
            skipped += self.scaler.get_scale() < scale
        median = statistics.median(seconds)
        return {
            "step_seconds": [round(one, 6) for one in seconds],
            "tokens_per_second": tokens / median,
            "warm_up_seconds": round(warm_up, 3),
            "skipped": skipped,
            "loss": loss.item(),
            "library": type(self.network.inner).__module__.split(".")[0],
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "out_of_memory": False,
            **self._memory(torch.cuda.max_memory_allocated() if cuda else None, tokens),
            **self._gradients(),
        }

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _check(self) -> None:
        """Once, after the first step: whether all that is to be trained is reached."""
        if self.checked:
            return
        lost = [name for name, p in self.trained.items() if p.grad is None]
        if lost:
            raise Refused(
                f"{len(lost)} of {len(self.trained)} trained tensors get no gradient, "
                f"such as {lost[0]}"
            )
        self.checked = True

    def _gradients(self) -> dict[str, int]:
        """Of the last step: tensors trained, and those that no gradient reaches."""
        of = [p.grad for p in self.trained.values()]
        sizes = [torch.linalg.vector_norm(g, torch.inf) for g in of if g is not None]
        zero = int((torch.stack(sizes) == 0).sum())
        return {
            "trained_tensors": len(of),
            "without_gradient": sum(one is None for one in of),
            "zero_gradient": zero,
        }

    def _memory(self, peak: int | None, tokens: int) -> dict[str, Any]:
        """Parameters, and the peak in bytes (None: unknown) with its parts.

        `rest`: what the counted tensors leave of the peak: activations, logits, copies
        of weights in half precision, temporaries.
        """
        parameters = list(self.model.parameters())
        states = [t for state in self.adam.state.values() for t in state.values()]
        parts = {
            "weights": _bytes(parameters) + _bytes(self.model.buffers()),
            "gradients": _bytes(p.grad for p in self.trained.values()),
            "optimizer": _bytes(states),
        }
        return {
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in self.trained.values()),
            "before_bytes": self.before,
            "peak_bytes": peak,
            "bytes_per_token": None if peak is None else peak / tokens,
            "parts": parts
            | {"rest": None if peak is None else peak - sum(parts.values())},
        }


def out_of_memory() -> dict[str, Any]:
    """Values of a row whose step does not fit."""
    return {"out_of_memory": True, "tokens_per_second": None, "bytes_per_token": None}


def release(device: torch.device) -> None:
    """Give back what dropped networks held."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
