r"""Tasks that are solved from the context, generated and written as bytes.

An episode is one line. The bytes that follow from those before them are its answers;
everything else in it is drawn at random. Every answer can be derived from the episode
alone, apart from what is fixed for all episodes and must be learnt (`GROUPS`).

- `induction`: `~` 24 to 40 random letters, then cues: `|`, three of these letters in a
  row, and the five that came after them there. The three stand in one place only.
- `recall`: `{` 4 to 12 pairs `key:digit`, `}`, then queries `?key:digit`; keys are two
  letters, all different. Associative recall as in Arora et al., "Zoology"
  (arXiv:2312.04927), in bytes.
- `classify`: `[` labels `]`, then examples `word=label`. Hidden structure: the letters
  a to x are in eight fixed groups of three (`GROUPS`); a word is four letters of one
  group, and an episode gives two to four of the groups a label each, drawn anew. A
  label is an answer if its group has been shown before in the episode; `shots` says how
  often.
- `copy`: `"` 8 to 32 letters and digits, `"=`, and the same again.
- `phonebook`: `#` 3 to 8 entries `name:number;`, then queries `?name:number` of four
  digits each (Jelassi et al., "Repeat After Me", arXiv:2402.01032). Names are four
  syllables, all different within an episode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
LETTERS_AND_DIGITS = np.frombuffer(
    b"abcdefghijklmnopqrstuvwxyz0123456789", dtype=np.uint8
)
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Interleaved, so that neighbours in the alphabet are in different groups.
GROUPS = tuple("abcdefghijklmnopqrstuvwx"[i::8] for i in range(8))
SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se",
             "ti", "vo", "wu", "za")  # fmt: skip
CUE, CONTINUATION = 3, 5


@dataclass(frozen=True)
class Answer:
    """Bytes `start` to `stop` of an episode follow from those before `start`.

    `shots`: how many examples of the same class came before (classify), else 0.
    """

    start: int
    stop: int
    shots: int = 0


@dataclass
class Episode:
    """One line of a task, with its answers."""

    text: bytearray = field(default_factory=bytearray)
    answers: list[Answer] = field(default_factory=list)

    def add(self, text: str | bytes) -> None:
        """Append bytes that are given, not asked for."""
        self.text += text.encode() if isinstance(text, str) else text

    def ask(self, answer: str | bytes, shots: int = 0) -> None:
        """Append an answer."""
        start = len(self.text)
        self.add(answer)
        self.answers.append(Answer(start, len(self.text), shots))


def induction(rng: np.random.Generator) -> Episode:
    """Random letters; then three of them in a row, and what followed these."""
    episode = Episode()
    n = int(rng.integers(24, 41))
    while True:
        text = LETTERS[rng.integers(26, size=n)].tobytes()
        places = [
            i
            for i in rng.permutation(n - CUE - CONTINUATION + 1).tolist()
            if text.find(cue := text[i : i + CUE]) == i and text.find(cue, i + 1) < 0
        ]
        if len(places) >= 3:
            break
    episode.add(b"~" + text)
    for i in places[:3]:
        episode.add(b"|" + text[i : i + CUE])
        episode.ask(text[i + CUE : i + CUE + CONTINUATION])
    episode.add("\n")
    return episode


def recall(rng: np.random.Generator) -> Episode:
    """Keys with a digit each; then some of the keys."""
    episode = Episode()
    n = int(rng.integers(4, 13))
    numbers = rng.permutation(26 * 26)[:n].tolist()
    keys = [chr(97 + i // 26) + chr(97 + i % 26) for i in numbers]
    values = rng.integers(10, size=n).tolist()
    pairs = zip(keys, values, strict=True)
    episode.add("{" + " ".join(f"{key}:{value}" for key, value in pairs) + "}")
    for i in rng.permutation(n)[:4].tolist():
        episode.add(f"?{keys[i]}:")
        episode.ask(str(values[i]))
    episode.add("\n")
    return episode


def classify(rng: np.random.Generator) -> Episode:
    """Words with labels; the label of a group is drawn for this episode alone."""
    episode = Episode()
    classes = int(rng.integers(2, 5))
    groups = rng.permutation(len(GROUPS))[:classes].tolist()
    labels = [CAPITALS[i] for i in rng.permutation(26)[:classes].tolist()]
    episode.add("[" + "".join(sorted(labels)) + "]")
    seen = [0] * classes
    order = rng.integers(classes, size=int(rng.integers(4, 7)) * classes).tolist()
    places = rng.integers(3, size=(len(order), 4)).tolist()
    for which, letters in zip(order, places, strict=True):
        group = GROUPS[groups[which]]
        episode.add(" " + "".join(group[i] for i in letters) + "=")
        if seen[which]:
            episode.ask(labels[which], shots=seen[which])
        else:
            episode.add(labels[which])
        seen[which] += 1
    episode.add("\n")
    return episode


def copy(rng: np.random.Generator) -> Episode:
    """A random string, then the same again."""
    episode = Episode()
    n = int(rng.integers(8, 33))
    text = LETTERS_AND_DIGITS[rng.integers(36, size=n)].tobytes()
    episode.add(b'"' + text + b'"=')
    episode.ask(text)
    episode.add("\n")
    return episode


def phonebook(rng: np.random.Generator) -> Episode:
    """Names with numbers; then some of the names."""
    episode = Episode()
    n = int(rng.integers(3, 9))
    while True:
        drawn = rng.integers(len(SYLLABLES), size=(n, 4)).tolist()
        names = ["".join(SYLLABLES[i] for i in name) for name in drawn]
        if len(set(names)) == n:
            break
    numbers = [f"{i:04d}" for i in rng.integers(10_000, size=n).tolist()]
    episode.add("#")
    for name, number in zip(names, numbers, strict=True):
        episode.add(f"{name}:{number};")
    for i in rng.permutation(n)[:3].tolist():
        episode.add(f"?{names[i]}:")
        episode.ask(numbers[i])
    episode.add("\n")
    return episode


TASKS: dict[str, Callable[[np.random.Generator], Episode]] = {
    "induction": induction,
    "recall": recall,
    "classify": classify,
    "copy": copy,
    "phonebook": phonebook,
}
# Chance of a whole answer being right for who knows the format and guesses. Of
# classify: one label in two to four, drawn uniformly.
CHANCE = {
    "induction": 26.0**-CONTINUATION,
    "recall": 1 / 10,
    "classify": (1 / 2 + 1 / 3 + 1 / 4) / 3,
    "copy": 36.0**-8,
    "phonebook": 1e-4,
}


@dataclass(frozen=True)
class Window:
    """Episodes one after the other, cut to a length; answers that are whole in it."""

    text: bytes
    answers: tuple[Answer, ...]


def window(
    rng: np.random.Generator, length: int, names: Sequence[str] = tuple(TASKS)
) -> Window:
    """`length` bytes of episodes of these tasks, in random order."""
    text, answers = bytearray(), []
    while len(text) < length:
        name = names[int(rng.integers(len(names)))] if len(names) > 1 else names[0]
        episode = TASKS[name](rng)
        at = len(text)
        answers += [Answer(at + a.start, at + a.stop, a.shots) for a in episode.answers]
        text += episode.text
    whole = tuple(a for a in answers if a.stop <= length)
    return Window(bytes(text[:length]), whole)


# A list of another length than those of training: no two seeds can be the same.
_PARTS = {"validation": (1, 20_261), "held_out": (2, 20_261)}


def unseen(part: str, name: str, windows: int, length: int) -> Iterator[Window]:
    """Windows of one task that no training run is given, the same at every call."""
    which = list(TASKS).index(name)
    for i in range(windows):
        rng = np.random.default_rng([*_PARTS[part], which, i, 0])
        yield window(rng, length, (name,))
