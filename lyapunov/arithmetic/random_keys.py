"""Random keys whose draws are little code: a hash of a counter.

Threefry, JAX's own, is twenty rounds that read each of their numbers twice. XLA for
CPUs takes half a second for each place that draws, and a sublayer has a dozen of them:
most of what a probe took to compile. Here a draw is a counter that goes twice through
a permutation of 32 bits, once moved by each word of the key.

What is drawn is offsets of roundings, directions and perturbations, for estimates that
say their standard error; nothing is hidden by it and no bound rests on it.

??? cite "The permutation: Wellons (2018), hash-prospector, lowbias32"
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Shaped, UInt32


GOLDEN = 0x9E3779B9


def random_key(seed) -> Shaped[Array, ""]:
    """Make the key of a seed, an integer; it is split and folded as any of JAX."""
    return jax.random.key(seed, impl=_IMPLEMENTATION)


def keys_of(words: UInt32[Array, "*n 2"]) -> Shaped[Array, "*n"]:
    """Make keys of their words, `jax.random.key_data` of each."""
    return jax.random.wrap_key_data(words, impl=_IMPLEMENTATION)


def _permuted(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _word(words: UInt32[Array, "2"], counter: UInt32[Array, "*n"]):
    """The counter's word under a key."""
    first = _permuted(counter * jnp.uint32(GOLDEN) + words[0])
    return _permuted(first ^ words[1])


def _pair(words: UInt32[Array, "2"], counter: UInt32[Array, "*n"]):
    """A key for each counter, off the words that are drawn."""
    apart = jnp.stack([~words[1], words[0]])
    return jnp.stack([_word(apart, counter), _word(~apart, counter)], axis=-1)


@jax.jit
def _seeded(seed: Array) -> UInt32[Array, "2"]:
    low = jnp.asarray(seed, jnp.uint32)
    wide = seed.dtype.itemsize > 4
    high = jnp.asarray(seed >> 32, jnp.uint32) if wide else jnp.zeros_like(low)
    return _pair(jnp.stack([_permuted(low + jnp.uint32(GOLDEN)), high]), low)


def _counters(shape: tuple[int, ...]) -> UInt32[Array, "*n"]:
    size = 1
    for length in shape:
        size *= length
    return jax.lax.iota(jnp.uint32, size).reshape(shape)


@partial(jax.jit, static_argnums=1)
def _split(words: UInt32[Array, "2"], shape: tuple[int, ...]):
    return _pair(words, _counters(shape))


@jax.jit
def _folded(words: UInt32[Array, "2"], number: Any) -> UInt32[Array, "2"]:
    apart = jnp.stack([words[0] ^ jnp.uint32(GOLDEN), words[1]])
    return _pair(apart, jnp.asarray(number, jnp.uint32))


@partial(jax.jit, static_argnums=(1, 2))
def _bits(words: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]):
    counter = _counters(shape)
    word = _word(words, counter)
    if bit_width == 64:
        other = _word(jnp.stack([words[1], ~words[0]]), counter)
        return jnp.asarray(word, jnp.uint64) << 32 | jnp.asarray(other, jnp.uint64)
    return jnp.asarray(word >> (32 - bit_width), getattr(jnp, f"uint{bit_width}"))


# compiled whole where a key is made outside of a program
_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=_seeded,
    split=_split,
    random_bits=_bits,
    fold_in=_folded,
    name="counter_hash",
    tag="hash",
)
