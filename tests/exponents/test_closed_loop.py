"""The study of closed loops: its step is the model's, its tangents are derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lyapunov
from analysis.closed_loop import Loop, damage, passages, soft_growth, summary

from ..helpers import assert_within


@pytest.fixture(scope="module")
def loop() -> Loop:
    return Loop.of(lyapunov.load())


@pytest.fixture(scope="module")
def shallow(loop) -> Loop:
    """Its first two sublayers alone."""
    return Loop(loop.parameters[:2], loop.flows[:2], loop.norm, loop.head,
                loop.embedding)  # fmt: skip


@pytest.mark.slow
def test_token_by_token_is_the_models_own_forward(loop):
    """Assert the logits behind a text."""
    tokens = passages(1, 24)[0]
    _, found = loop.fed(loop.start(), jnp.asarray(tokens))
    wanted = lyapunov.load().logits(tokens)[-1]
    # two fp64 forwards in other orders of summation
    assert_within(found, wanted, 1e-11 * float(jnp.abs(wanted).max()))


def test_growth_is_that_of_small_differences(shallow):
    """Assert the tangent's growth over 20 tokens against two nearby trajectories."""
    prompt, key, temperature = jnp.asarray(passages(1, 8)[0]), jax.random.key(1), 0.7
    windows, _ = soft_growth(shallow, prompt, jnp.asarray(temperature), 0, 20, key)
    states, logits = shallow.fed(shallow.start(), prompt)
    first = states, jax.nn.softmax(logits / temperature) @ shallow.embedding
    flat, unravel = ravel_pytree(first)
    v = jax.random.normal(key, flat.shape, jnp.float64)
    v = v / jnp.linalg.norm(v)

    @jax.jit
    def after(flat):
        step = lambda _, x: ravel_pytree(shallow.soft_step(unravel(x), temperature))[0]
        return jax.lax.fori_loop(0, 20, step, flat)

    size = 1e-6
    apart = (after(flat + size * v) - after(flat - size * v)) / (2 * size)
    # differences of second order in size, and roundings over size
    assert float(windows.mean()) == pytest.approx(
        float(jnp.log(jnp.linalg.norm(apart))) / 20, abs=1e-6
    )


def test_damage_of_nothing_does_nothing_and_much_parts_all(shallow):
    """Assert 0 distance without damage, parting with it, fading under given tokens."""
    prompts, key = jnp.asarray(passages(4, 8)), jax.random.key(2)
    run = lambda eps: damage(
        shallow, prompts, jnp.asarray(eps), jnp.asarray(1.0), 40, key
    )
    none = summary(*run(0.0))
    assert none["parted"] == 0
    assert set(none["distance"]) == set(none["forced"]) == {0.0}
    much = summary(*run(1.0))
    assert much["parted"] == 4
    # the slowest states remember for hundreds of tokens: it fades, if slowly
    assert much["forced"][-1] < much["forced"][0] < much["distance"][-1]
    differs, apart, forced = (np.asarray(x) for x in run(1.0))
    # until a pair parts, its copy is the forced one
    for row in range(4):
        first = int(differs[row].argmax())
        np.testing.assert_array_equal(apart[row, :first], forced[row, :first])
