"""Copying, recall and phonebook look-up at any length, one episode a window.

The formats are those of `tasks.py`, with as many letters, pairs or entries as fill the
context asked for. Training had up to 32 letters, 12 pairs and 8 entries an episode.
"""

import numpy as np

from .tasks import LETTERS_AND_DIGITS, SYLLABLES, Episode


QUERIES = 8  # of recall and phonebook
KEYS = 26 * 26
_PAIR, _ENTRY = 5, 14  # bytes of a pair and of an entry; queries are as long


def copy(rng: np.random.Generator, context: int) -> Episode:
    """A random string, then the same again; every byte of it is an answer."""
    n = (context - 4) // 2
    text = LETTERS_AND_DIGITS[rng.integers(36, size=n)].tobytes()
    episode = Episode()
    episode.add(b'"' + text + b'"=')
    for i in range(n):
        episode.ask(text[i : i + 1])
    episode.add("\n")
    return episode


def recall(rng: np.random.Generator, context: int) -> Episode:
    """Keys of two letters with a digit each; then some of the keys."""
    n = min(KEYS, (context - QUERIES * _PAIR - 2) // _PAIR)
    numbers = rng.permutation(KEYS)[:n].tolist()
    keys = [chr(97 + i // 26) + chr(97 + i % 26) for i in numbers]
    values = rng.integers(10, size=n).tolist()
    pairs = zip(keys, values, strict=True)
    episode = Episode()
    episode.add("{" + " ".join(f"{key}:{value}" for key, value in pairs) + "}")
    for i in rng.permutation(n)[:QUERIES].tolist():
        episode.add(f"?{keys[i]}:")
        episode.ask(str(values[i]))
    episode.add("\n")
    return episode


def phonebook(rng: np.random.Generator, context: int) -> Episode:
    """Names with numbers of four digits; then some of the names."""
    n = (context - QUERIES * _ENTRY - 2) // _ENTRY
    drawn = rng.permutation(len(SYLLABLES) ** 4)[:n].tolist()
    names = ["".join(SYLLABLES[i >> s & 15] for s in (12, 8, 4, 0)) for i in drawn]
    numbers = [f"{i:04d}" for i in rng.integers(10_000, size=n).tolist()]
    episode = Episode()
    episode.add("#")
    for name, number in zip(names, numbers, strict=True):
        episode.add(f"{name}:{number};")
    for i in rng.permutation(n)[:QUERIES].tolist():
        episode.add(f"?{names[i]}:")
        episode.ask(numbers[i])
    episode.add("\n")
    return episode


TASKS = {"copy": copy, "recall": recall, "phonebook": phonebook}
# Beyond it an episode of recall cannot grow: it has no more keys.
LONGEST = {"recall": KEYS * _PAIR + QUERIES * _PAIR + 2}


def episodes(name: str, context: int, n: int) -> list[Episode]:
    """`n` episodes of at most `context` bytes, the same at every call."""
    which = list(TASKS).index(name)
    return [
        TASKS[name](np.random.default_rng([4, 20_261, which, context, i]), context)
        for i in range(n)
    ]
