"""Training: optimizer, schedule, and a loop that can be cut at any step."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from experiments.bundled.corpus import Corpus
from experiments.bundled.evaluation import evaluate
from studies.problems import Problem

from . import resume
from .data import Batch, Mixture
from .networks import Network, fresh
from .scores import task_scores
from .shapes import Shape


_AHEAD = 4  # batches made before they are needed
_SAY_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Settings:
    """All that a run's weights depend on, apart from text, device and versions."""

    kind: str
    width: int
    layers: int
    steps: int
    batch: int
    length: int
    share: float
    learning_rate: float
    weight_decay: float
    dropout: float
    clip: float
    seed: int
    every: int
    eval_bytes: int
    eval_windows: int

    @property
    def context(self) -> int:
        """Bytes before a scored one, at least.

        A window of twice that is no longer than in training: beyond it the rotary
        positions of attention are ones never seen.
        """
        return self.length // 2


@dataclass
class Outcome:
    """What a run has come to. `best`: its best weights, as the checkpoint has them."""

    step: int
    seconds: float
    history: list[dict[str, Any]]
    best: dict[str, torch.Tensor]
    best_score: float
    best_step: int


def rate(step: int, steps: int) -> float:
    """Of the peak: linear warm-up over 5 % of the steps, then a cosine to nothing."""
    warm = max(1, steps // 20)
    if step <= warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def optimizer(network: Network, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, decaying the projections' matrices alone.

    Not A_log, D, dt's projection and biases, norms, convolutions and the embedding,
    which is the head, too.
    """
    kept_out = ("dt_proj", "lm_head", "embed_out")
    decayed = [
        module.weight
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(kept_out)
    ]
    chosen = {id(parameter) for parameter in decayed}
    others = [p for p in network.parameters() if id(p) not in chosen]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=0.0,  # set at every step
        betas=(0.9, 0.95),
    )


def loss_of(
    network: Network, batch: Batch, share: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and its parts in nats: mean over text, mean over answers.

    The parts are weighed as the windows are, so that few answers in a window do not
    make a task count less.
    """
    ids = torch.from_numpy(batch.ids).to(device, non_blocking=True).long()
    logits = network(ids[:, :-1]).logits
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    parts = []
    for chosen in (batch.text, batch.answer):
        mask = torch.from_numpy(chosen).to(device, non_blocking=True).flatten()
        parts.append((nats * mask).sum() / max(1, int(chosen.sum())))
    text, answers = parts
    return (1 - share) * text + share * answers, text, answers


@contextmanager
def _batches(mixture: Mixture, first: int, last: int) -> Iterator[Iterator[Batch]]:
    """The batches of these steps, made in a thread a few steps ahead."""
    pool = ThreadPoolExecutor(1)
    waiting: deque[Future[Batch]] = deque()

    def each() -> Iterator[Batch]:
        for step in range(first, last + 1):
            while len(waiting) < _AHEAD and step + len(waiting) <= last:
                waiting.append(pool.submit(mixture.at, step + len(waiting)))
            yield waiting.popleft().result()

    try:
        yield each()
    finally:
        pool.shutdown(cancel_futures=True)


def train(
    corpus: Corpus,
    shape: Shape,
    settings: Settings,
    folder: Path,
    device: torch.device,
    leave: Callable[[int], bool],
    eval_batch: int = 8,
) -> Outcome | None:
    """Train from the beginning, or from where an earlier call was cut.

    **Arguments:**

    - `folder`: where the run's state is kept, at every validation and when it leaves.
    - `leave`: asked after each step, with its number, whether to save and go.

    **Returns:**

    The outcome, or None if it left before the last step.
    """
    torch.manual_seed(settings.seed)
    network = fresh(shape, settings.dropout, device)
    steps, adam = settings.steps, optimizer(network, settings.weight_decay)
    outcome = Outcome(0, 0.0, [], {}, math.inf, 0)
    state = resume.load(folder, asdict(settings))
    if state is not None:
        network.restore(state["weights"])
        adam.load_state_dict(state["optimizer"])
        resume.set_generators(state["generators"], device)
        outcome = Outcome(**state["outcome"])
    mixture = Mixture(
        corpus.training, settings.batch, settings.length, settings.share, settings.seed
    )
    before, begun = outcome.seconds, time.perf_counter()
    first, said, steady = outcome.step, begun, begun

    def store() -> None:
        outcome.seconds = before + time.perf_counter() - begun
        resume.save(
            folder,
            {
                "settings": asdict(settings),
                "weights": network.stored(),
                "optimizer": adam.state_dict(),
                "generators": resume.generators(device),
                "outcome": vars(outcome),
            },
        )

    with _batches(mixture, first + 1, steps) as batches:
        for batch in batches:
            step = outcome.step + 1
            network.train()
            for group in adam.param_groups:
                group["lr"] = settings.learning_rate * rate(step, steps)
            loss, text, answers = loss_of(network, batch, settings.share, device)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            adam.step()
            outcome.step = step
            if step in (first + 1, steps) or time.perf_counter() - said > _SAY_EVERY:
                parts = (text.item() / math.log(2), answers.item() / math.log(2))
                said = time.perf_counter()
                if step == first + 1:  # it compiled kernels: no measure of speed
                    steady = said
                _say(_progress(settings, step, step - first - 1, said - steady, parts))
            if step % settings.every == 0 or step == steps:
                parts = (text.item() / math.log(2), answers.item() / math.log(2))
                _validate(corpus, network, settings, outcome, parts, device, eval_batch)
                store()
            if step < steps and leave(step):
                store()
                return None
    outcome.seconds = before + time.perf_counter() - begun
    return outcome


def cut(settings: Settings, folder: Path) -> Outcome | None:
    """What a run that was cut has come to, if it was validated at all."""
    state = resume.load(folder, asdict(settings))
    if state is None or not state["outcome"]["history"]:
        return None
    return Outcome(**state["outcome"])


def _validate(
    corpus: Corpus,
    network: Network,
    settings: Settings,
    outcome: Outcome,
    training: tuple[float, float],
    device: torch.device,
    eval_batch: int,
) -> None:
    """Add to the history; keep the weights if none were better."""
    if not all(map(math.isfinite, training)):
        raise Problem(
            f"the loss is not finite at step {outcome.step}",
            "use a smaller --learning-rate, and another --out",
        )
    text, _, _ = evaluate(
        network,
        corpus.texts("validation", settings.eval_bytes),
        device,
        eval_batch,
        settings.context,
    )
    scores = task_scores(
        network,
        "validation",
        settings.eval_windows,
        settings.length,
        device,
        eval_batch,
    )
    answers = sum(one.bits_per_byte for one in scores.values()) / len(scores)
    score = (1 - settings.share) * text + settings.share * answers
    outcome.history.append(
        {
            "step": outcome.step,
            "training_bits_per_byte": round(training[0], 4),
            "training_bits_per_answer_byte": round(training[1], 4),
            "validation_bits_per_byte": round(text, 4),
            "validation_bits_per_answer_byte": round(answers, 4),
            "accuracy": {name: round(one.accuracy, 4) for name, one in scores.items()},
        }
    )
    if score < outcome.best_score:
        outcome.best_score, outcome.best_step = score, outcome.step
        outcome.best = network.stored()
    shares = "  ".join(f"{name} {one.accuracy:.3f}" for name, one in scores.items())
    _say(
        f"{settings.kind} step {outcome.step}: validation {text:.4f} bits/byte, "
        f"answers {answers:.4f}  {shares}"
    )


def _progress(
    settings: Settings,
    step: int,
    timed: int,
    seconds: float,
    training: tuple[float, float],
) -> str:
    """One line: the loss, and the speed over the last `timed` steps."""
    line = (
        f"{settings.kind} step {step}/{settings.steps}  text {training[0]:.3f}"
        f"  answers {training[1]:.3f} bits/byte"
    )
    if not timed:
        return line
    speed = timed * settings.batch * settings.length / seconds
    left = seconds / timed * (settings.steps - step)
    return f"{line}  {speed:,.0f} bytes/s  {left:.0f} s left"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
