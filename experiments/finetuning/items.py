r"""What is fine-tuned on and asked: instructions with responses, as text.

Three sorts of items, of which only the response is learnt:

- `instructions`: five generated tasks in a format that the models were never trained
  on, `### Instruction: ... ### Input: ... ### Response: ...`, as Alpaca has it. What
  the response is follows from the instruction and the input.
- `choices`: questions of GSM8K with four numbers to choose from, of which the letter is
  asked, as MMLU has it. Models of this size answer them by chance.
- `worked`: questions of GSM8K with their worked answers; trained on, not asked.

Questions are asked after 0, 1, 3 and 5 examples of the same sort.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


SHOTS = (0, 1, 3, 5)
TASKS = ("instructions", "choices")
CHOICES = "ABCD"
FILES = ("gsm8k_train.jsonl", "gsm8k_test.jsonl")
# Bytes of a question asked, and of one shown: five of these and one of those are about
# as long as what the models were trained on.
_LONGEST, _LONGEST_SHOWN = 150, 100
_VALIDATION = 300  # the last questions of the training file
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Item:
    """What is given, and what is to be answered."""

    prompt: str
    response: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Both, and the empty line between items."""
        return self.prompt + self.response + "\n\n"


@dataclass(frozen=True)
class Question:
    """A task's item after `shots` others of its sort."""

    task: str
    shots: int
    before: str
    item: Item


def _word(rng: np.random.Generator, least: int, most: int) -> str:
    n = int(rng.integers(least, most + 1))
    return "".join(_LETTERS[i] for i in rng.integers(26, size=n).tolist())


def _repeat(rng: np.random.Generator) -> tuple[str, str, str]:
    word = _word(rng, 5, 10)
    return "Repeat the word.", word, word


def _reverse(rng: np.random.Generator) -> tuple[str, str, str]:
    word = _word(rng, 3, 5)
    return "Write the word backwards.", word, word[::-1]


def _find(rng: np.random.Generator) -> tuple[str, str, str]:
    n = int(rng.integers(3, 7))
    names = [_LETTERS[i] for i in rng.permutation(26)[:n].tolist()]
    values = rng.integers(10, size=n).tolist()
    which = int(rng.integers(n))
    pairs = " ".join(f"{a}={b}" for a, b in zip(names, values, strict=True))
    return "Give the value.", f"{pairs}; {names[which]}", str(values[which])


def _after(rng: np.random.Generator) -> tuple[str, str, str]:
    n = int(rng.integers(4, 9))
    letters = [_LETTERS[i] for i in rng.permutation(26)[:n].tolist()]
    which = int(rng.integers(n - 1))
    given = f"{' '.join(letters)}; {letters[which]}"
    return "Which letter comes after?", given, letters[which + 1]


def _larger(rng: np.random.Generator) -> tuple[str, str, str]:
    one, other = (int(i) for i in rng.permutation(90)[:2] + 10)
    return "Which number is larger?", f"{one} or {other}", str(max(one, other))


_KINDS: tuple[Callable[[np.random.Generator], tuple[str, str, str]], ...] = (
    _repeat,
    _reverse,
    _find,
    _after,
    _larger,
)


def instruction(rng: np.random.Generator, kind: int) -> Item:
    """One item of one of the generated tasks."""
    asked, given, answer = _KINDS[kind](rng)
    prompt = f"### Instruction:\n{asked}\n### Input:\n{given}\n### Response:\n"
    return Item(prompt, answer)


def choice(rng: np.random.Generator, question: str, answer: int) -> Item:
    """A question with four numbers to choose from, in random order.

    The wrong ones are the answer times or plus something, so that neither size nor
    last digit gives the right one away.
    """
    near = {answer + 1, answer - 1, answer + 10, answer * 2, answer * 3}
    near |= {answer // 2, answer + 5, abs(answer - 10), answer + 2}
    wrong = sorted(near - {answer})
    numbers = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:3].tolist())]
    order = rng.permutation(4).tolist()
    lines = "".join(
        f"{letter}. {numbers[i]}\n" for letter, i in zip(CHOICES, order, strict=True)
    )
    right = CHOICES[order.index(0)]
    options = tuple(f" {letter}" for letter in CHOICES)
    return Item(f"Question: {question}\n{lines}Answer:", f" {right}", options)


@dataclass(frozen=True)
class Data:
    """Items to learn from, to validate with and to ask.

    - `choices`: by part ("training", "validation", "held_out"), question and number.
    - `worked`: items of the training part.
    """

    choices: dict[str, list[tuple[str, int]]]
    worked: list[Item]

    @classmethod
    def read(cls, folder: Path) -> "Data":
        """Read GSM8K's two files from `folder`."""
        try:
            train, test = (_lines(folder / name) for name in FILES)
        except OSError as error:
            raise SystemExit(
                f"error: {error}\nhint: --corpus needs {', '.join(FILES)}"
            ) from error
        training, validation = train[:-_VALIDATION], train[-_VALIDATION:]
        parts = {"training": training, "validation": validation, "held_out": test}
        return cls(
            {part: list(_short(rows)) for part, rows in parts.items()},
            [
                Item(f"Question: {one['question']}\nAnswer: ", one["answer"])
                for one in training
            ],
        )

    @classmethod
    def of_instructions(cls, folder: Path, file: Path) -> "Data":
        """The same with the items of a file to learn from: Alpaca's fields, or others.

        A JSON list or a line an item; `instruction`, `input` and `output`, or
        `question` and `answer`.
        """
        return cls(cls.read(folder).choices, [_told(one) for one in _lines(file)])

    def drawn(self, rng: np.random.Generator, part: str, sort: str) -> Iterator[Item]:
        """Items of one sort without end; of instructions, some of a kind in a row."""
        while True:
            if sort == "instructions":
                kind = int(rng.integers(len(_KINDS)))
                for _ in range(int(rng.integers(1, 7))):
                    yield instruction(rng, kind)
            elif sort == "choices":
                pool = self.choices[part]
                yield choice(rng, *pool[int(rng.integers(len(pool)))])
            else:
                yield self.worked[int(rng.integers(len(self.worked)))]

    def questions(self, task: str, shots: int, n: int, seed: int) -> list[Question]:
        """`n` questions that no run learns from, the same at every call.

        The same questions are asked after every number of examples.
        """
        found = []
        pool = self.choices["held_out"]
        shown = [
            one for one in self.choices["training"] if len(one[0]) <= _LONGEST_SHOWN
        ]
        for i in range(n):
            rng = np.random.default_rng([7, seed, TASKS.index(task), i])
            if task == "instructions":
                kind = i % len(_KINDS)
                item = instruction(rng, kind)
                examples = [instruction(rng, kind) for _ in range(max(SHOTS))]
            else:
                item = choice(rng, *pool[i % len(pool)])
                which = rng.permutation(len(shown))[: max(SHOTS)].tolist()
                examples = [choice(rng, *shown[j]) for j in which]
            before = "".join(one.text for one in examples[:shots])
            found.append(Question(task, shots, before, item))
        return found


def _lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line]


def _short(rows: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """Short questions whose answer is a number from 4 to 9,999."""
    for one in rows:
        number = one["answer"].split("####")[-1].strip().replace(",", "")
        question = one["question"].strip()
        asked = len(question.encode()) <= _LONGEST and "\n" not in question
        if asked and number.isdigit() and 4 <= int(number) < 10_000:
            yield question, int(number)


def _told(one: dict[str, Any]) -> Item:
    if "instruction" in one:
        given = f"### Input:\n{one['input']}\n" if one.get("input") else ""
        prompt = f"### Instruction:\n{one['instruction']}\n{given}### Response:\n"
        return Item(prompt, one["output"])
    return Item(f"Question: {one['question']}\nAnswer: ", one["answer"])
