"""One fine-tuning run in one precision, and what it answers afterwards."""

import base64
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .items import SHOTS, TASKS, Data, Question
from .networks import Tuned


PRECISIONS = ("fp32", "fp16", "bf16")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SORTS = ("instructions", "instructions", "choices", "worked")  # of windows, in turn
_WARM_UP = 0.1  # of the steps
_VALIDATIONS = 4  # batches
_LENGTHS = 64  # what is read is a multiple of this: Triton compiles for few of them
_LARGE = 1024  # entries of a vocabulary from which fewer questions go at once


@dataclass(frozen=True)
class Recipe:
    """All that decides a run's weights, apart from data, device and versions."""

    learning_rate: float
    steps: int
    batch: int
    length: int
    rank: int
    alpha: int
    clip: float
    questions: int  # of each task, after each number of examples


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """torch's autocast of this precision; fp32 is none."""
    half = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if half else None, half)


def windows(
    network: Tuned, data: Data, part: str, rng: np.random.Generator, n: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of whole and cut items, and which tokens belong to a response.

    **Returns:**

    ids, n x (length + 1), and wanted, n x length: whether the token after each
    position is learnt: responses and the empty line that ends them.
    """
    sorts = SORTS if part == "training" else SORTS[:3]
    ids = np.zeros((n, length + 1), np.int64)
    wanted = np.zeros((n, length + 1), bool)
    for row in range(n):
        at = 0
        for item in data.drawn(rng, part, sorts[row % len(sorts)]):
            before = network.encode(item.prompt)
            answer = network.encode(item.response + "\n\n")
            both = (before + answer)[: length + 1 - at]
            ids[row, at : at + len(both)] = both
            wanted[row, at + len(before) : at + len(both)] = True
            at += len(both)
            if at > length:
                break
    return torch.from_numpy(ids), torch.from_numpy(wanted[:, 1:])


def loss_of(logits: torch.Tensor, ids: torch.Tensor, wanted: torch.Tensor) -> Any:
    """Mean nats of the wanted tokens, in fp32; logits of all tokens but the last."""
    told = F.cross_entropy(logits[wanted].float(), ids[:, 1:][wanted], reduction="sum")
    return told / wanted.sum().clamp(min=1)


@dataclass
class Trained:
    """How a run went. `skipped`: steps that GradScaler left out (fp16)."""

    losses: list[float]
    skipped: int
    seconds: float


def train(
    model: torch.nn.Module,
    network: Tuned,
    data: Data,
    recipe: Recipe,
    precision: str,
    seed: int,
    device: torch.device,
) -> Trained:
    """Fine-tune `model`, the network as `adapt` returned it, in place.

    Weights and AdamW's state are fp32, the forward is under torch's autocast, fp16 with
    its GradScaler: what "mixed precision" means in transformers' Trainer.
    """
    began = time.perf_counter()
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    model.train()
    losses, skipped = [], 0
    for step in range(1, recipe.steps + 1):
        rng = np.random.default_rng([seed, step, 5])
        batch = (recipe.batch, recipe.length)
        ids, wanted = windows(network, data, "training", rng, *batch)
        ids, wanted = ids.to(device), wanted.to(device)
        for group in adam.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe.steps)
        with autocast(device, precision):
            logits = model(ids[:, :-1])
        loss = loss_of(logits, ids, wanted)
        adam.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(adam)
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        scale = scaler.get_scale()
        scaler.step(adam)
        scaler.update()
        skipped += scaler.get_scale() < scale
        losses.append(loss.detach())
    model.eval()
    spent = time.perf_counter() - began
    return Trained(torch.stack(losses).tolist(), skipped, spent)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to nothing."""
    up = max(1, round(_WARM_UP * steps))
    if step <= up:
        return step / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module,
    network: Tuned,
    data: Data,
    recipe: Recipe,
    device: torch.device,
) -> float:
    """Mean nats of responses never learnt from, in fp32."""
    rng = np.random.default_rng([3, 20_262])
    total, tokens = 0.0, 0
    for _ in range(_VALIDATIONS):
        ids, wanted = windows(
            network, data, "validation", rng, recipe.batch, recipe.length
        )
        ids, wanted = ids.to(device), wanted.to(device)
        n = int(wanted.sum())
        total += n * loss_of(model(ids[:, :-1]), ids, wanted).item()
        tokens += n
    return total / tokens if tokens else math.nan


@dataclass
class Answers:
    """What a model says to every question, in order.

    - `right`: whether it is right: the letter that is likeliest, or every token of the
      response the likeliest one after those before.
    - `said`: a short hash of what it says.
    - `logits`: questions x vocabulary, fp32: where the answer begins to be decided.
    """

    right: np.ndarray
    said: list[str]
    logits: np.ndarray

    @property
    def name(self) -> str:
        """One name for these answers to the last bit."""
        return hashlib.sha256(self.logits.tobytes()).hexdigest()[:16]


def ask_all(data: Data, n: int, seed: int = 0) -> list[Question]:
    """`n` questions of each task after each number of examples."""
    return [
        question
        for task in TASKS
        for shots in SHOTS
        for question in data.questions(task, shots, n, seed)
    ]


@torch.no_grad()
def answer(
    model: torch.nn.Module,
    network: Tuned,
    questions: Sequence[Question],
    precision: str,
    device: torch.device,
) -> Answers:
    """Ask every question. `precision`: of the autocast."""
    model.eval()
    encode = network.encode
    read = [encode(q.before + q.item.prompt) for q in questions]
    told = [encode(q.item.response) for q in questions]
    order = sorted(range(len(questions)), key=lambda i: len(read[i]) + len(told[i]))
    right = np.zeros(len(questions), bool)
    said = [""] * len(questions)
    logits: list[Any] = [None] * len(questions)
    at, size = 0, 64
    while at < len(order):
        group = order[at : at + size]
        at += len(group)
        longest = max(len(read[i]) + len(told[i]) for i in group)
        longest += -longest % _LENGTHS
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        for row, i in enumerate(group):
            ids[row, : len(read[i]) + len(told[i])] = torch.tensor(read[i] + told[i])
        with autocast(device, precision):
            found = model(ids.to(device))
        size = 64 if found.shape[-1] < _LARGE else 8
        for row, i in enumerate(group):
            first = len(read[i]) - 1
            of = found[row, first : first + len(told[i])].float().cpu()
            right[i], words, logits[i] = _judge(network, questions[i], told[i], of)
            digest = hashlib.sha256(repr(words).encode()).digest()
            said[i] = base64.urlsafe_b64encode(digest)[:2].decode()
    return Answers(right, said, np.stack(logits))


def _judge(
    network: Tuned, question: Question, told: list[int], logits: torch.Tensor
) -> tuple[bool, list[int], np.ndarray]:
    """Whether the answer is right, what it is, and the logits that decide it."""
    choices = [network.encode(one) for one in question.item.choices]
    if not choices:
        words = logits.argmax(-1).tolist()
        return words == told, words, logits[0].numpy()
    # the first token in which the choices differ decides
    at = next(t for t in range(len(told)) if len({one[t] for one in choices}) > 1)
    letters = [one[at] for one in choices]
    chosen = int(logits[at, letters].argmax())
    return letters[chosen] == told[at], [chosen], logits[at].numpy()


def described(one: Answers, questions: Sequence[Question]) -> dict[str, Any]:
    """Accuracies by task and shots, and every single answer, for a results file."""
    places = _places(questions)
    return {
        "accuracy": {name: float(one.right[at].mean()) for name, at in places.items()},
        "right": np.packbits(one.right).tobytes().hex(),
        "said": "".join(one.said),
        "answers": one.name,
    }


def against(
    one: Answers, reference: Answers, questions: Sequence[Question]
) -> dict[str, Any]:
    """How answers differ from the reference's, by task.

    - `flips`: share of questions answered otherwise, rightly or not.
    - `kl`: mean of KL(reference || this), nats; `rel_l2`: of the logits, all questions'
      together.
    """
    found: dict[str, Any] = {"reference": reference.name}
    for task in TASKS:
        at = [i for i, question in enumerate(questions) if question.task == task]
        mine, theirs = one.logits[at], reference.logits[at]
        p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (theirs, mine))
        kl = (p.exp() * (p - q)).sum(-1)
        found[task] = {
            "flips": float(np.mean([one.said[i] != reference.said[i] for i in at])),
            "kl": float(kl.mean()),
            "kl_max": float(kl.max()),
            "rel_l2": float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)),
        }
    return found


def _places(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Indices of the questions by "task shots"."""
    found: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        found.setdefault(f"{question.task} {question.shots}", []).append(i)
    return found
