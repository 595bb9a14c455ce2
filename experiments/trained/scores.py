"""What a network is worth: bits per byte of text, accuracy on tasks never seen."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from . import tasks
from .networks import Network


@dataclass(frozen=True)
class TaskScore:
    """Of one task, on answers of episodes never trained on.

    - `accuracy`: share of answers of which every byte is the most likely one, given
      those before it; the same as writing the answer out greedily.
    - `bits_per_byte`: of the answers' bytes.
    - `by_shots`: accuracy by the number of examples of the class before (classify).
    """

    accuracy: float
    bits_per_byte: float
    answers: int
    by_shots: dict[int, tuple[float, int]]

    def described(self) -> dict[str, Any]:
        """As in training.json."""
        found: dict[str, Any] = {
            "accuracy": round(self.accuracy, 4),
            "bits_per_answer_byte": round(self.bits_per_byte, 4),
            "answers": self.answers,
        }
        if set(self.by_shots) != {0}:
            found["by_shots"] = {
                str(shots): {"accuracy": round(share, 4), "answers": n}
                for shots, (share, n) in sorted(self.by_shots.items())
            }
        return found


@torch.no_grad()
def task_scores(
    network: Network,
    part: str,
    windows: int,
    length: int,
    device: torch.device,
    batch: int,
) -> dict[str, TaskScore]:
    """Every task's score on `windows` windows of `length` bytes of this part."""
    network.eval()
    found = {}
    for name in tasks.TASKS:
        right: dict[int, list[bool]] = defaultdict(list)
        bits, scored = 0.0, 0
        members = list(tasks.unseen(part, name, windows, length))
        for at in range(0, windows, batch):
            group = members[at : at + batch]
            data = bytearray(b"".join(window.text for window in group))
            ids = torch.frombuffer(data, dtype=torch.uint8).reshape(len(group), length)
            ids = ids.to(device).long()
            logits = network(ids).logits[:, :-1]
            nats = F.cross_entropy(
                logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none"
            )
            nats = nats.reshape(len(group), -1).cpu()
            hits = (logits.argmax(-1) == ids[:, 1:]).cpu()
            for row, window in enumerate(group):
                for answer in window.answers:
                    where = slice(answer.start - 1, answer.stop - 1)
                    right[answer.shots].append(bool(hits[row, where].all()))
                    bits += nats[row, where].sum().item() / math.log(2)
                    scored += answer.stop - answer.start
        every = [hit for hits in right.values() for hit in hits]
        if not every:
            raise ValueError(f"no whole answer of {name} in {length} bytes")
        found[name] = TaskScore(
            sum(every) / len(every),
            bits / scored,
            len(every),
            {shots: (sum(h) / len(h), len(h)) for shots, h in right.items()},
        )
    return found
