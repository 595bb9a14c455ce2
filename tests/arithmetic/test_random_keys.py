"""Keys whose draws are a hash of a counter: known words, and what random draws have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic.random_keys import random_key

from ..helpers import not_none


SIZE = 2**18


def permuted(x: int) -> int:
    """lowbias32 in Python's integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def word(words, counter):
    return permuted(permuted((counter * 0x9E3779B9 + words[0]) % 2**32) ^ words[1])


def words_of(key):
    return [int(x) for x in jax.random.key_data(key)]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**40 + 3])
def test_draws_are_the_words_of_python_integers(seed):
    """Assert bits of a key, and that a key has no word in common with its children."""
    key = random_key(seed)
    words = words_of(key)
    expected = [word(words, i) for i in range(40)]
    assert jax.random.bits(key, (8, 5), jnp.uint32).ravel().tolist() == expected
    narrow = jax.random.bits(key, (40,), jnp.uint8).tolist()
    assert narrow == [one >> 24 for one in expected]
    wide = jax.random.bits(key, (40,), jnp.uint64).tolist()
    assert [one >> 32 for one in wide] == expected
    assert not {one % 2**32 for one in wide} & set(expected)
    children = np.ravel(jax.random.key_data(jax.random.split(key, 40))).tolist()
    folded = [jax.random.fold_in(key, i) for i in range(40)]
    children += [one for child in folded for one in words_of(child)]
    assert len({*children, *expected}) == len(children) + len(expected)


def test_the_same_key_gives_the_same_draws_however_it_is_run():
    """Assert it compiled, and mapped over keys."""
    keys = jax.random.split(random_key(3), 4)
    draw = lambda key: jax.random.uniform(key, (6,), jnp.float64)
    apart = np.stack([draw(key) for key in keys])
    np.testing.assert_array_equal(jax.jit(jax.vmap(draw))(keys), apart)
    again = jax.jit(lambda seed: jax.random.split(random_key(seed), 4))(np.asarray(3))
    one, other = map(jax.random.key_data, (keys, again))
    np.testing.assert_array_equal(one, other)


def test_keys_are_all_different():
    """Assert it for seeds, children and grandchildren, a quarter of a million."""
    made = jax.vmap(random_key)(jnp.arange(2**16))
    split = jax.random.split(random_key(0), 2**16)
    folded = jax.vmap(lambda i: jax.random.fold_in(random_key(0), i))(jnp.arange(2**16))
    deeper = jax.vmap(lambda key: jax.random.fold_in(key, 1))(folded)
    every = np.concatenate(
        [np.asarray(jax.random.key_data(one)) for one in (made, split, folded, deeper)]
    )
    assert len(np.unique(every, axis=0)) == len(every) == SIZE


STREAMS = {
    "one key": lambda: jax.random.bits(random_key(0), (SIZE,), jnp.uint32),
    "first words of seeds": lambda: jax.vmap(
        lambda i: jax.random.bits(random_key(i), (), jnp.uint32)
    )(jnp.arange(SIZE)),
    "first words of children": lambda: jax.vmap(
        lambda key: jax.random.bits(key, (), jnp.uint32)
    )(jax.random.split(random_key(1), SIZE)),
    "first words of what is folded in": lambda: jax.vmap(
        lambda i: jax.random.bits(jax.random.fold_in(random_key(2), i), (), jnp.uint32)
    )(jnp.arange(SIZE)),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_words_are_even_and_know_nothing_of_each_other(stream):
    """Assert, within five standard errors: each bit is set half of the time, agrees
    with every other and with the same of the words 1, 2 and 64 places on half of the
    time; the leading bytes of neighbours fill all 65,536 pairs evenly."""
    words = np.asarray(stream())
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(float) - 0.5
    limit = 5 * 0.5 / np.sqrt(SIZE)
    assert np.abs(bits.mean(axis=0)).max() < limit
    products = bits.T @ bits / SIZE
    apart = products - np.diag(np.diag(products))
    assert np.abs(apart).max() < limit / 2
    for lag in (1, 2, 64):
        assert np.abs((bits[:-lag].T @ bits[lag:]) / SIZE).max() < limit / 2
    pairs = (words[:-1:2] >> 24) * 256 + (words[1::2] >> 24)
    counts, mean = np.bincount(pairs, minlength=2**16), SIZE / 2 / 2**16
    chi_square = np.sum((counts - mean) ** 2) / mean
    assert abs(chi_square - 2**16) < 5 * np.sqrt(2 * 2**16)


def test_a_key_outside_of_a_program_is_one_program(programs):
    """Assert it for making, splitting, folding and drawing, not one an operation."""
    key = random_key(77)
    found = jax.random.split(key, 77), jax.random.fold_in(key, 77)
    jax.random.bits(key, (77,), jnp.uint16)
    assert len(found) == 2
    ours = [name for name in programs if name not in ("stage", "convert_element_type")]
    assert set(ours) <= {"_seeded", "_split", "_folded", "_bits"}


def test_a_draw_is_no_loop():
    """Assert that nothing of it is a function or a loop, which compile for long."""

    def draw(seed):
        return jax.random.uniform(jax.random.fold_in(random_key(seed), 1), (64,))

    text = not_none(jax.jit(draw).lower(np.asarray(0)).compile().as_text())
    assert "while" not in text
    assert "call(" not in text
