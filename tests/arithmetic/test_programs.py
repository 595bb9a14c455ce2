"""Programs are made once for what they share, and found again by what made them."""

import itertools
import os
import pickle
import threading
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import _programs
from lyapunov.arithmetic._programs import keep_in, program


TRACED = itertools.count()


class Pair(eqx.Module):
    """A module with a field that is no array, and one that may be missing."""

    value: jax.Array
    name: str = eqx.field(static=True)


class Said(NamedTuple):
    pair: Pair
    word: str
    missing: jax.Array | None


def scaled(given: Pair, factor: float, *, times: int = 1, names=frozenset()):
    next(TRACED)
    value = given.value
    for _ in range(times):
        value = value * factor
    return Said(Pair(value, given.name), "said", None), {"n": len(names)}


def traced() -> int:
    """How often it was, counted from one question to the next."""
    return next(TRACED)


def pair(n=3, dtype: Any = np.float64, name="a"):
    return Pair(jnp.arange(n, dtype=dtype), name)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder that programs are kept in, for functions of this file as well."""
    told = _programs.TOLD_APART | {__name__.partition(".")[0]}
    monkeypatch.setattr(_programs, "TOLD_APART", told)
    failed: set[str] = set()
    keep_in(tmp_path, failed)
    _programs._surroundings.cache_clear()
    yield tmp_path, failed
    keep_in(None, set())
    _programs._surroundings.cache_clear()


def check(returned, factor, times=1):
    said, count = returned
    expected = np.arange(len(said.pair.value)) * factor**times
    assert np.array_equal(said.pair.value, expected)
    assert (said.pair.name, said.word, said.missing) == ("a", "said", None)
    assert count == {"n": 0}


@pytest.mark.parametrize("keeping", [False, True])
def test_it_is_traced_once_for_each_form(keeping, request):
    """Assert that numbers share a program, and that all else has its own."""
    if keeping:
        request.getfixturevalue("kept")
    run = program(scaled)
    before = traced()
    check(run(pair(), 2.0), 2.0)
    run(Pair(pair().value + 1, "a"), 2.0)
    assert traced() - before == 2
    others = [
        ((pair(4), 2.0), {}),
        ((pair(dtype=np.float32), 2.0), {}),
        ((pair(name="b"), 2.0), {}),
        ((pair(), 3.0), {}),
        ((pair(), np.float64(2.0)), {}),
        ((pair(), 2.0), {"times": 2}),
        ((pair(), 2.0), {"names": frozenset("ab")}),
    ]
    for i, (positional, named) in enumerate(others):
        run(*positional, **named)
        run(*positional, **named)
        assert traced() - before == 2 + 2 * (i + 1)


def test_it_is_part_of_another_program(kept):
    """Assert that under another transformation it is what it was."""
    run = program(scaled)
    slope = jax.grad(lambda x: jnp.sum(run(Pair(x, "a"), 2.0)[0].pair.value))
    assert np.array_equal(slope(jnp.ones(3)), [2.0, 2.0, 2.0])
    assert not list(kept[0].iterdir())


def test_what_was_kept_is_not_traced_again(kept):
    """Assert the same numbers, forms and words from a program that was read."""
    folder, failed = kept
    first = program(scaled)(pair(), 0.1, times=3)
    before = traced()
    second = program(scaled)(pair(), 0.1, times=3)
    assert traced() - before == 1
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert np.array_equal(first[0].pair.value, second[0].pair.value)
    assert second[0].word == "said"
    assert len(list(folder.iterdir())) == 1
    assert not failed


def changed_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --another")


def changed_version(monkeypatch):
    monkeypatch.setattr(_programs.metadata, "version", lambda name: "99.0")


def changed_source(monkeypatch):
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"#")


def changed_cores(monkeypatch):
    monkeypatch.setattr(_programs.os, "cpu_count", lambda: 4097)


@pytest.mark.parametrize(
    "change", [changed_flags, changed_version, changed_source, changed_cores]
)
def test_what_it_rests_on_is_in_the_key(kept, monkeypatch, change):
    """Assert that nothing is found where something else would be made."""
    folder, _ = kept
    program(scaled)(pair(), 2.0)
    _programs._surroundings.cache_clear()
    change(monkeypatch)
    before = traced()
    check(program(scaled)(pair(), 2.0), 2.0)
    assert traced() - before == 2
    assert len(list(folder.iterdir())) == 2


def test_precision_is_in_the_key(kept):
    """Assert that a program of 32 bits is none of 64."""
    whole = lambda n: program(scaled)(Pair(np.arange(n), "a"), 2.0)[0].pair.value.dtype
    assert whole(3) == np.float64
    with jax.enable_x64(False):
        assert whole(3) == np.float32


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def lying(path):
    path.write_bytes(b"\0" * 99)


def empty(path):
    path.write_bytes(b"")


def another_pickle(path):
    """Whole by its digest, and no program."""
    body = pickle.dumps((b"no program", 1, "no form"))
    path.write_bytes(_programs.hashlib.sha256(body).digest() + body)


@pytest.mark.parametrize("spoil", [cut, lying, empty, another_pickle])
def test_a_spoiled_entry_is_made_again_and_said(kept, spoil):
    """Assert the numbers, the name, and that the entry is whole afterwards."""
    folder, failed = kept
    program(scaled)(pair(), 2.0)
    (entry,) = folder.iterdir()
    spoil(entry)
    check(program(scaled)(pair(), 2.0), 2.0)
    assert failed == {"scaled"}
    failed.clear()
    before = traced()
    check(program(scaled)(pair(), 2.0), 2.0)
    assert traced() - before == 1
    assert not failed


def test_a_folder_that_goes_is_no_reason_to_fail(kept):
    """Assert the numbers, and that it is said."""
    folder, failed = kept
    folder.rmdir()
    check(program(scaled)(pair(), 2.0), 2.0)
    assert failed == {"scaled"}


def over(factors):
    """A function that closes over something."""

    def run(x):
        next(TRACED)
        return x * factors

    return run


@pytest.mark.parametrize("factor", [np.arange(3.0), jnp.arange(3.0)])
def test_closed_over_arrays_are_not_kept(kept, factor):
    """Assert it: they are as many numbers as one likes."""
    assert np.array_equal(program(over(factor))(jnp.ones(3)), [0.0, 1.0, 2.0])
    assert not list(kept[0].iterdir())


@pytest.mark.parametrize("thing", [np, threading.Lock()])
def test_what_cannot_be_told_apart_is_not_kept(kept, thing):
    """Assert it of what has no content that could be written down."""
    using = lambda x: (x, thing)[0]
    assert np.array_equal(program(using)(jnp.ones(3)), np.ones(3))
    assert not list(kept[0].iterdir())


def test_functions_differ_by_what_they_close_over(kept):
    """Assert that two of one source are two."""
    assert np.array_equal(program(over(2.0))(jnp.ones(1)), [2.0])
    assert np.array_equal(program(over(3.0))(jnp.ones(1)), [3.0])
    before = traced()
    assert np.array_equal(program(over(3.0))(jnp.ones(1)), [3.0])
    assert traced() - before == 1


def test_a_users_function_is_not_kept(tmp_path):
    """Assert it of whatever is not of the library or of what it rests on."""
    keep_in(tmp_path, set())
    try:
        check(program(scaled)(pair(), 2.0), 2.0)
    finally:
        keep_in(None, set())
    assert not list(tmp_path.iterdir())
