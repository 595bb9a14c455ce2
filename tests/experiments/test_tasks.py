"""The generated tasks are what they say: solvable from the context, and never alike.

The solvers read the bytes alone, by the formats that the module's text describes; they
share nothing with the generators.
"""

import re

import numpy as np
import pytest

from experiments.trained import tasks
from experiments.trained.data import Mixture

from ..helpers import not_none


ALPHABET = b"abcdefghijklmnopqrstuvwx"
WINDOWS, LENGTH = 6, 1024


def solve_induction(before: bytes, length: int) -> bytes:
    string, *_, cue = before[1:].split(b"|")
    places = [i for i in range(len(string)) if string[i : i + 3] == cue]
    assert len(places) == 1
    return string[places[0] + 3 : places[0] + 3 + length]


def solve_recall(before: bytes, length: int) -> bytes:
    found = dict(re.findall(rb"([a-z]{2}):(\d)", before.split(b"}")[0]))
    return found[before.rsplit(b"?", 1)[1][:-1]]


def solve_classify(before: bytes, length: int) -> bytes:
    """Words of one group have letters whose places are the same modulo eight."""
    *examples, query = re.findall(rb" ([a-x]{4})=([A-Z]?)", before)
    group = {ALPHABET.index(letter) % 8 for letter in query[0]}
    assert len(group) == 1
    labels = {label for word, label in examples if ALPHABET.index(word[0]) % 8 in group}
    assert len(labels) == 1
    return labels.pop()


def solve_copy(before: bytes, length: int) -> bytes:
    return before.split(b'"')[1]


def solve_phonebook(before: bytes, length: int) -> bytes:
    found = dict(re.findall(rb"([a-z]{8}):(\d{4});", before))
    return found[before.rsplit(b"?", 1)[1][:-1]]


OPENED_BY = {
    b"~": "induction",
    b"{": "recall",
    b"[": "classify",
    b'"': "copy",
    b"#": "phonebook",
}
SOLVERS = {name: globals()[f"solve_{name}"] for name in tasks.TASKS}


def questions(name, part="held_out"):
    """What stands before each answer in its line, the answer, and its shots."""
    for window in tasks.unseen(part, name, WINDOWS, LENGTH):
        for answer in window.answers:
            begins = window.text.rfind(b"\n", 0, answer.start) + 1
            yield (
                window.text[begins : answer.start],
                window.text[answer.start : answer.stop],
                answer.shots,
            )


@pytest.mark.parametrize("name", tasks.TASKS)
def test_answers_follow_from_the_context(name):
    """Assert that a solver written apart gets every answer right."""
    asked = list(questions(name))
    assert len(asked) > 30
    for before, answer, _ in asked:
        assert SOLVERS[name](before, len(answer)) == answer, before


@pytest.mark.parametrize("name", tasks.TASKS)
def test_answers_do_not_follow_without_it(name):
    """Assert that one fixed guess is right about as often as chance says."""
    answers = [answer for _, answer, _ in questions(name)]
    guesses = {a: sum(b == a for b in answers) for a in set(answers)}
    n, p = len(answers), tasks.CHANCE[name]
    if name == "classify":  # labels are announced; a letter alone is one of 26
        p = 1 / 26
    # Hoeffding at one in a million, over the guesses tried
    allowed = np.sqrt(np.log(1e6 * len(guesses)) / (2 * n))
    assert max(guesses.values()) / n < p + allowed


def test_labels_are_drawn_anew_and_announced():
    """Assert that a class has other labels elsewhere, and guessing is as stated."""
    seen, shares = {}, []
    for window in tasks.unseen("held_out", "classify", 40, LENGTH):
        for line in window.text.split(b"\n")[:-1]:
            header = not_none(re.match(rb"\[([A-Z]+)\]", line))[1]
            shares.append(1 / len(header))
            for word, label in re.findall(rb" ([a-x]{4})=([A-Z])", line):
                assert label in header
                group = ALPHABET.index(word[0]) % 8
                seen.setdefault(group, set()).add(label)
    assert set(seen) == set(range(8))
    assert all(len(labels) > 5 for labels in seen.values())
    spread = np.std([1 / 2, 1 / 3, 1 / 4]) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - tasks.CHANCE["classify"]) < 5 * spread


def test_shots_count_examples_of_the_class():
    """Assert that an answer's shots are what can be counted, one and more."""
    for before, _, shots in questions("classify"):
        words = re.findall(rb" ([a-x]{4})=", before)
        groups = [ALPHABET.index(word[0]) % 8 for word in words]
        assert shots == groups[:-1].count(groups[-1]) >= 1


def test_parts_and_training_share_no_episode():
    """Assert that no line of one kind is among the others', long ones at least."""
    lines = {}
    for part in ("validation", "held_out"):
        lines[part] = {
            line
            for name in tasks.TASKS
            for window in tasks.unseen(part, name, WINDOWS, LENGTH)
            for line in window.text.split(b"\n")
            if len(line) > 20
        }
    mixture = Mixture(b"." * LENGTH * 2, 8, LENGTH, 0.99, 0)
    training = {
        line
        for step in range(1, 9)
        for row in mixture.at(step).ids
        for line in row.tobytes().split(b"\n")
        if len(line) > 20
    }
    assert len(training) > 200
    assert not lines["validation"] & lines["held_out"]
    assert not training & (lines["validation"] | lines["held_out"])


def test_unseen_windows_are_the_same_at_every_call():
    """Assert it, and that each window and task is another."""
    first = [w.text for n in tasks.TASKS for w in tasks.unseen("held_out", n, 3, 300)]
    again = [w.text for n in tasks.TASKS for w in tasks.unseen("held_out", n, 3, 300)]
    assert first == again
    assert len(set(first)) == len(first)


@pytest.fixture(scope="module")
def mixture():
    text = np.random.default_rng(3).integers(128, 256, 5000, np.uint8).tobytes()
    return Mixture(text, batch=10, length=300, share=0.3, seed=5)


def test_batches_depend_on_seed_and_step_alone(mixture):
    """Assert that they can be had in any order, and differ."""
    later, first = mixture.at(2), mixture.at(1)
    again = Mixture(**vars(mixture)).at(2)
    for name in ("ids", "text", "answer"):
        np.testing.assert_array_equal(getattr(later, name), getattr(again, name))
    assert not np.array_equal(first.ids, later.ids)
    other = Mixture(**{**vars(mixture), "seed": 6}).at(2)
    assert not np.array_equal(other.ids, later.ids)


def test_what_counts_is_text_whole_and_answers_alone(mixture):
    """Assert the masks against the bytes: text is bytes from 128 on, tasks below."""
    batch = mixture.at(1)
    following = batch.ids[:, 1:]
    rows = (batch.ids >= 128).all(1)
    assert rows.sum() == 7
    assert (batch.ids < 128).all(1).sum() == 3
    np.testing.assert_array_equal(batch.text, np.repeat(rows[:, None], 300, 1))
    assert not (batch.answer & batch.text).any()
    checked = 0
    for row, mask in zip(batch.ids, batch.answer, strict=True):
        edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
        for start, stop in edges.reshape(-1, 2):
            data = row.tobytes()
            begins = data.rfind(b"\n", 0, start + 1) + 1
            name = OPENED_BY[data[begins : begins + 1]]
            solved = SOLVERS[name](data[begins : start + 1], stop - start)
            assert solved == data[start + 1 : stop + 1]
            checked += 1
    assert checked >= 5
    assert following.shape == batch.answer.shape
