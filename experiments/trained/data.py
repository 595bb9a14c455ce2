"""Batches: a function of seed and step alone, so that any step can be had again."""

from dataclasses import dataclass

import numpy as np

from . import tasks


@dataclass(frozen=True)
class Batch:
    """Windows of bytes, one longer than what is read; which of their bytes count.

    - `ids`: batch x (length + 1), uint8.
    - `text`, `answer`: batch x length, whether the byte that follows position t counts,
      as text or as part of a task's answer.
    """

    ids: np.ndarray
    text: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """Text and tasks, `share` of the windows being tasks.

    Only answers count in the windows of tasks. What is not an answer there is drawn
    uniformly: nothing about it can be learnt, and its bits would drown those of the
    answers. Text counts whole.
    """

    text: bytes
    batch: int
    length: int
    share: float
    seed: int

    @property
    def task_windows(self) -> int:
        """Windows of tasks in a batch."""
        return round(self.batch * self.share)

    def at(self, step: int) -> Batch:
        """The batch of this step, from 1 on."""
        rng = np.random.default_rng([self.seed, step])
        taken, width = self.task_windows, self.length + 1
        ids = np.zeros((self.batch, width), np.uint8)
        text = np.zeros((self.batch, self.length), bool)
        answer = np.zeros((self.batch, self.length), bool)
        text[taken:] = True
        data = np.frombuffer(self.text, np.uint8)
        starts = rng.integers(len(data) - width + 1, size=self.batch - taken)
        ids[taken:] = data[starts[:, None] + np.arange(width)]
        for row in range(taken):
            window = tasks.window(rng, width)
            ids[row] = np.frombuffer(window.text, np.uint8)
            for a in window.answers:
                answer[row, a.start - 1 : a.stop - 1] = True
        return Batch(ids, text, answer)
