"""Networks that are asked, our own or the Hub's, and what they answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.finetuning.networks import load, shape
from experiments.finetuning.plan import settings_of, short
from experiments.trained.long_tasks import episodes
from experiments.trained.networks import fresh
from experiments.trained.tasks import Episode


_AT_ONCE = 2**17  # bytes read at a time; a sixteenth of it in large vocabularies
_SMALL = 1024  # entries of a vocabulary
_MULTIPLE = 64  # of lengths: Triton compiles for few of them


@dataclass(frozen=True)
class Reader:
    """A network that is asked.

    - `name`, `kind`: in the rows. Models of one kind are compared with those of
      another; one that `experiments.train` did not write is a kind of its own.
    - `logits`: ids, batch x length, to logits.
    - `encode`: text to ids.
    """

    name: str
    kind: str
    logits: Callable[[torch.Tensor], torch.Tensor]
    encode: Callable[[str], Sequence[int]]


def named(name: str) -> tuple[str, str]:
    """A model's name and kind, without loading it."""
    settings = settings_of(name)
    own = short(name)
    return own, own if settings is None else shape(settings).kind


def reader(name: str, device: torch.device) -> Reader:
    """A folder of experiments.train, or a checkpoint that transformers knows, loaded.

    **Raises:**

    Problem if there is no such model, or its tokenizer is not there.
    """
    own, kind = named(name)
    settings = settings_of(name)
    if settings is not None:
        from safetensors.torch import load_file

        network = fresh(shape(settings), 0.0, device)
        network.restore(load_file(Path(name) / "model.safetensors"))
        network.eval()
        return Reader(own, kind, lambda ids: network(ids).logits, _bytes)
    tuned = load(name, device)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        cuda = ids.device.type == "cuda"
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=cuda):
            return tuned(ids)

    return Reader(own, kind, logits, tuned.encode)


def _bytes(text: str) -> list[int]:
    return list(text.encode("latin-1"))


def tokens_of(
    episode: Episode, encode: Callable[[str], Sequence[int]]
) -> tuple[list[int], list[slice]]:
    """An episode's ids, and where the answers are among them.

    Questions and answers are encoded apart, so that an answer begins with a token.
    Answers that follow one another without a question between them (all of copying)
    are encoded as one, and each of its tokens is an answer: with bytes, the same ones.
    """
    runs: list[list[int]] = []  # first byte, last byte, answers
    for one in episode.answers:
        if runs and runs[-1][1] == one.start:
            runs[-1][1:] = [one.stop, runs[-1][2] + 1]
        else:
            runs.append([one.start, one.stop, 1])
    ids: list[int] = []
    answers: list[slice] = []
    at = 0
    for start, stop, several in runs:
        ids += encode(episode.text[at:start].decode("latin-1"))
        told = list(encode(episode.text[start:stop].decode("latin-1")))
        first, last = len(ids), len(ids) + len(told)
        each = [slice(i, i + 1) for i in range(first, last)]
        answers += each if several > 1 else [slice(first, last)]
        ids += told
        at = stop
    return ids, answers


def answered(
    asked: Reader, task: str, context: int, n: int, device: torch.device
) -> tuple[list[float], int]:
    """The share of right answers in each episode, and the longest episode's tokens.

    An answer is right if all its tokens are the likeliest, given those before it.
    """
    members = [tokens_of(one, asked.encode) for one in episodes(task, context, n)]
    shares: list[float] = []
    most = max(len(ids) for ids, _ in members)
    length = most + -most % _MULTIPLE
    rows, at = 1, 0  # one first: it tells how large the vocabulary is
    while at < n:
        group = members[at : at + rows]
        ids = torch.zeros(len(group), length, dtype=torch.long)
        for row, (own, _) in enumerate(group):
            ids[row, : len(own)] = torch.tensor(own)
        with torch.no_grad():
            found = asked.logits(ids.to(device))
        told = found.argmax(-1).cpu()
        at_once = _AT_ONCE if found.shape[-1] <= _SMALL else _AT_ONCE // 16
        del found
        for row, (_, answers) in enumerate(group):
            hits = (told[row, :-1] == ids[row, 1:]).numpy()
            right = [hits[a.start - 1 : a.stop - 1].all() for a in answers]
            shares.append(float(np.mean(right)))
        at += len(group)
        rows = max(1, at_once // length)
    return shares, most
