r"""Questions with choices, after 0, 1, 3 and 5 examples: as text, and for lm-eval.

Seven tasks whose answer follows from what is read:

- `repeat`, `reverse`, `find`, `after`, `larger`: the generated instructions that
  `experiments.finetune` teaches (`finetuning/items.py`), with wrong answers made of
  what was given. A pretrained model has never seen their format.
- `numbers`: GSM8K's questions with four numbers, as there. Models of this size answer
  them by chance.
- `labels`: episodes of `classify` (`trained/tasks.py`), which the models were trained
  on: words with labels whose meaning is drawn anew; k shots are k words of each class.

The examples stand in the question's own text, so that every way to ask reads the same.
`write_tasks` writes the questions as tasks of lm-evaluation-harness.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.finetuning.items import SHOTS, Data, instruction
from experiments.trained.tasks import CAPITALS, GROUPS


INSTRUCTIONS = ("repeat", "reverse", "find", "after", "larger")
TASKS = (*INSTRUCTIONS, "numbers", "labels")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WRONG = 3


@dataclass(frozen=True)
class Document:
    """A question: examples, what is asked, the answers to choose from."""

    task: str
    shots: int
    before: str
    prompt: str
    choices: tuple[str, ...]
    right: int


def documents(data: Data, task: str, shots: int, n: int) -> list[Document]:
    """`n` questions of a task; the same ones after every number of examples."""
    if task in INSTRUCTIONS:
        return [_instructed(task, shots, i) for i in range(n)]
    if task == "labels":
        return [_labelled(shots, i) for i in range(n)]
    found = []
    for question in data.questions("choices", shots, n, 0):
        item = question.item
        right = item.choices.index(item.response)
        found.append(
            Document(task, shots, question.before, item.prompt, item.choices, right)
        )
    return found


def all_documents(data: Data, n: int) -> list[Document]:
    """`n` of every task and number of examples, in that order."""
    return [one for task in TASKS for k in SHOTS for one in documents(data, task, k, n)]


def _instructed(task: str, shots: int, i: int) -> Document:
    kind = INSTRUCTIONS.index(task)
    rng = np.random.default_rng([8, kind, i])
    item = instruction(rng, kind)
    given = item.prompt.split("### Input:\n")[1].split("\n")[0]
    choices = [item.response, *_WRONGS[task](rng, given, item.response)]
    order = rng.permutation(len(choices)).tolist()
    examples = [instruction(rng, kind) for _ in range(max(SHOTS))]
    before = "".join(one.text for one in examples[:shots])
    shown = tuple(choices[j] for j in order)
    return Document(task, shots, before, item.prompt, shown, order.index(0))


def _shuffles(rng: np.random.Generator, given: str, right: str) -> list[str]:
    """Other words of the same letters, what was given first; of others if need be."""
    found = [] if given == right else [given]
    while len(found) < _WRONG:
        word = "".join(right[j] for j in rng.permutation(len(right)).tolist())
        if word == right or word in found:
            word = "".join(_LETTERS[j] for j in rng.integers(26, size=len(right)))
        if word != right and word not in found:
            found.append(word)
    return found


def _others(pattern: str, more: str) -> Callable[..., list[str]]:
    """What else was given that looks like an answer; then anything that does."""

    def wrong(rng: np.random.Generator, given: str, right: str) -> list[str]:
        near = sorted(set(re.findall(pattern, given)) - {right})
        far = sorted(set(more) - {right} - set(near))
        mixed = [[pool[j] for j in rng.permutation(len(pool))] for pool in (near, far)]
        return (mixed[0] + mixed[1])[:_WRONG]

    return wrong


def _other_number(rng: np.random.Generator, given: str, right: str) -> list[str]:
    return [one for one in given.split(" or ") if one != right]


_WRONGS = {
    "repeat": _shuffles,
    "reverse": _shuffles,
    "find": _others(r"=(\d)", "0123456789"),
    "after": _others("[a-z]", ""),
    "larger": _other_number,
}


def _labelled(shots: int, i: int) -> Document:
    """Two to four classes; `shots` words of each, in random order; then one more."""
    rng = np.random.default_rng([9, i])
    classes = int(rng.integers(2, 5))
    groups = [GROUPS[j] for j in rng.permutation(len(GROUPS))[:classes].tolist()]
    labels = [CAPITALS[j] for j in rng.permutation(26)[:classes].tolist()]

    def word(which: int) -> str:
        return "".join(groups[which][j] for j in rng.integers(3, size=4).tolist())

    which = int(rng.integers(classes))
    asked = word(which)
    shown = [
        [(word(j), labels[j]) for j in rng.permutation(classes).tolist()]
        for _ in range(max(SHOTS))
    ]
    before = "[" + "".join(sorted(labels)) + "]"
    for one in shown[:shots]:
        before += "".join(f" {given}={label}" for given, label in one)
    return Document("labels", shots, before, f" {asked}=", tuple(labels), which)


def task_name(task: str, shots: int) -> str:
    """A task's name for lm-eval."""
    return f"lyapunov_{task}_{shots}_shot"


def write_tasks(data: Data, n: int, folder: Path) -> list[str]:
    """Write every task for lm-eval, a .yaml and a .jsonl each; their names.

    `lm_eval --include_path FOLDER --tasks lyapunov_repeat_3_shot ...` runs them on any
    model. The examples are in the questions' text: `--num_fewshot` stays 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for task in TASKS:
        for shots in SHOTS:
            name = task_name(task, shots)
            lines = [
                {
                    "text": one.before + one.prompt,
                    "choices": list(one.choices),
                    "right": one.right,
                }
                for one in documents(data, task, shots, n)
            ]
            file = folder / f"{name}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            # JSON is YAML: nothing has to be quoted by hand
            (folder / f"{name}.yaml").write_text(json.dumps(_settings(name, file)))
            names.append(name)
    return names


def _settings(name: str, file: Path) -> dict:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        ],
        "metadata": {"version": 1.0},
    }
