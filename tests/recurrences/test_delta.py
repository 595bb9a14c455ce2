"""The delta rule: its step, its Jacobian, what is declared of it, and its formula."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lyapunov import LyapunovError
from lyapunov.arithmetic import Exact
from lyapunov.exponents import check_structure
from lyapunov.recurrences import DeltaInputs, DeltaRecurrence
from lyapunov.sublayers.delta_scan import Tokens, recurrent_delta


HEADS, KEY_DIM, VALUE_DIM = 2, 4, 3
UNIT = 2.0**-53


def drawn(seed, *tokens, per_key=False, rate_scale=1.0, key_dim=KEY_DIM):
    """Inputs as layers give them: keys of norm 1 or so, rates up to `rate_scale`."""
    rng = np.random.default_rng(seed)
    key = rng.normal(size=(*tokens, HEADS, key_dim))
    norm = np.sqrt((key**2).sum(axis=-1, keepdims=True) + 1e-6)
    gates = (*tokens, HEADS, key_dim) if per_key else (*tokens, HEADS)
    return DeltaInputs(
        log_gate=jnp.asarray(-0.1 * rng.exponential(size=gates)),
        rate=jnp.asarray(rate_scale / (1 + np.exp(-rng.normal(size=(*tokens, HEADS))))),
        key=jnp.asarray(key / norm),
        value=jnp.asarray(rng.normal(size=(*tokens, HEADS, VALUE_DIM))),
    )


def state(seed=1):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(HEADS, VALUE_DIM, KEY_DIM))
    )


@pytest.mark.parametrize("per_key", [False, True])
def test_step_is_read_and_replace(per_key):
    """Assert S after it, and what a key of norm 1 and rate 1 reads then: the value."""
    inputs, before = drawn(0, per_key=per_key), np.asarray(state())
    after = np.asarray(DeltaRecurrence().step(jnp.asarray(before), inputs))
    gate = np.exp(np.asarray(inputs.log_gate)).reshape(HEADS, 1, -1)
    for h in range(HEADS):
        faded = gate[h] * before[h]
        k, v = np.asarray(inputs.key[h]), np.asarray(inputs.value[h])
        wanted = faded + float(inputs.rate[h]) * np.outer(v - faded @ k, k)
        np.testing.assert_allclose(after[h], wanted, rtol=0, atol=40 * UNIT)
    k = np.zeros((HEADS, KEY_DIM))
    k[:, 1] = 1
    whole = inputs._replace(key=jnp.asarray(k), rate=jnp.ones(HEADS))
    read = DeltaRecurrence().step(jnp.asarray(before), whole)[..., 1]
    np.testing.assert_allclose(read, inputs.value, rtol=0, atol=8 * UNIT)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_declared_jacobian_determinant_and_norm(per_key, scale):
    """Assert the Jacobian by jacfwd, and determinant and norm of mpmath's matrices."""
    recurrence, inputs = DeltaRecurrence(), drawn(2, per_key=per_key, rate_scale=scale)
    before = state()
    check_structure(recurrence, before, inputs)
    flat, unravel = ravel_pytree(before)
    dense = jax.jacfwd(lambda x: recurrence.step(unravel(x), inputs).ravel())(flat)
    np.testing.assert_allclose(
        recurrence.step_jacobian(before, inputs), dense, rtol=0, atol=40 * UNIT
    )
    gates = jnp.broadcast_to(inputs.log_gate.reshape(HEADS, -1), (HEADS, KEY_DIM))
    with mpmath.workdps(30):
        for h in range(HEADS):
            k = mpmath.matrix([float(x) for x in inputs.key[h]])
            D = mpmath.diag([mpmath.exp(float(g)) for g in gates[h]])
            M = (mpmath.eye(KEY_DIM) - float(inputs.rate[h]) * k * k.T) * D
            sum_of_logs = float(mpmath.log(abs(mpmath.det(M))))
            norm = float(mpmath.log(max(mpmath.svd_r(M, compute_uv=False))))
            found = recurrence.log_determinant(inputs)[h]
            assert found == pytest.approx(sum_of_logs, abs=1e-14)
            bound = float(recurrence.log_norm_bound(inputs)[h])
            assert norm <= bound + 1e-15
            if not per_key:
                assert bound == pytest.approx(norm, abs=1e-14)


def test_a_gate_that_leaves_the_range_of_exp_leaves_the_determinant():
    """Assert -inf for a rate of 1 on a unit key alone, not for gates of -1e4."""
    inputs = drawn(3)._replace(log_gate=jnp.asarray([-1e4, -0.1]))
    found = DeltaRecurrence().log_determinant(inputs)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(-4e4, abs=20)
    key = jnp.zeros((HEADS, KEY_DIM)).at[:, 0].set(1.0)
    whole = inputs._replace(key=key, rate=jnp.ones(HEADS))
    assert np.isneginf(DeltaRecurrence().log_determinant(whole)).all()


class _Wrong(DeltaRecurrence):
    """A determinant that forgets the write, or a norm that forgets its sign."""

    forgets: str = "determinant"

    def log_determinant(self, inputs):
        found = super().log_determinant(inputs._replace(rate=0 * inputs.rate))
        forgets = self.forgets == "determinant"
        return found if forgets else super().log_determinant(inputs)

    def log_norm_bound(self, inputs):
        found = super().log_norm_bound(inputs)
        return found if self.forgets == "determinant" else found - 0.1


@pytest.mark.parametrize("forgets", ["determinant", "norm"])
def test_a_false_declaration_is_found_out(forgets):
    with pytest.raises(LyapunovError, match=f"log_{forgets}"):
        check_structure(_Wrong(forgets), state(), drawn(4))


@pytest.mark.parametrize("name", ["gated_delta", "kimi_delta"])
def test_formula_is_the_jacobian_that_runs(name):
    """Assert every entry, of the same key and of another, and that no exponent is
    said to be a closed form."""
    sympy = pytest.importorskip("sympy")
    from lyapunov.symbolic import exponent, step_jacobian

    per_key = name == "kimi_delta"
    inputs = drawn(5, per_key=per_key)
    numbers = np.asarray(DeltaRecurrence().step_jacobian(state(), inputs))
    shape = HEADS, VALUE_DIM, KEY_DIM
    formula = step_jacobian(name)
    letters = {str(symbol): symbol for symbol in formula.atoms(sympy.Symbol)}
    given = {"g": inputs.log_gate, "beta": inputs.rate, "k": inputs.key}
    for row in ((0, 2, 1), (1, 0, 3)):
        for column in np.ndindex(shape):
            i, p, n = row
            j, q, m = column
            at = dict(zip("inpjmqt", (i, n, p, j, m, q, 0), strict=True))
            found = formula.subs({letters[x]: value for x, value in at.items()})
            values = {
                one: float(given[one.base.name][tuple(map(int, one.indices[1:]))])
                for one in found.atoms(sympy.Indexed)
            }
            flat = [np.ravel_multi_index(place, shape) for place in (row, column)]
            wanted = numbers[tuple(flat)]
            assert float(found.subs(values)) == pytest.approx(wanted, abs=1e-15)
    with pytest.raises(LyapunovError, match="no closed form"):
        exponent(name)


@pytest.mark.parametrize("per_key", [False, True])
def test_what_formats_would_do_to_its_states_is_observed(per_key):
    """Assert shares of writes too small for a format, and what subnormals cost, against
    NumPy, token by token: as of every other recurrence."""
    tokens, unit, smallest, steps = 12, 2.0**-4, 2.0**-3, (0.0, 1 / 64)
    inputs = drawn(6, tokens, per_key=per_key)
    at = Exact(
        state_units=(unit, unit), state_smallest=(smallest, 0.0), state_steps=steps
    )
    given = Tokens(inputs.key, inputs.key, inputs.value, inputs.rate, inputs.log_gate)
    recurrent_delta(at, given, state())
    S, still, scaled, spacings = np.asarray(state()), [], [], []
    for t in range(tokens):
        gate = np.exp(np.asarray(inputs.log_gate[t])).reshape(HEADS, 1, -1)
        S, k = gate * S, np.asarray(inputs.key[t])[:, None]
        read = (S * k).sum(axis=2)
        write = (inputs.rate[t][:, None] * (inputs.value[t] - read))[..., None] * k
        S = S + np.asarray(write)
        place = 2.0 ** np.floor(np.log2(np.abs(S)))
        still.append(np.mean(np.abs(write) <= unit * place))
        most = np.abs(S).max(axis=2, keepdims=True)
        scaled.append(np.mean(np.abs(write) <= most / 128))
        free, held = 2 * unit * place, 2 * unit * np.maximum(place, smallest)
        spacings.append([np.sum(held**2 - free**2), np.sum(held**2)])
    assert 0 < np.mean(still) < 1
    assert 0 < np.mean(scaled) < 1
    found = np.asarray(at.observed["stagnation"])
    # JAX counts in fp32
    np.testing.assert_allclose(found.T, [still, scaled], rtol=2.0**-22)
    found = np.asarray(at.observed["underflow"])[:, 0]
    np.testing.assert_allclose(found, spacings, rtol=1e-10)
