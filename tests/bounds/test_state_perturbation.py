"""State-level bounds: exact where they should be, never exceeded, not vacuous."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest


def exact_deviation(decays, injected):
    """|delta_t| in rationals for decays and injections given as fractions."""
    delta, seen = injected[0], [abs(injected[0])]
    for a, e in zip(decays, injected[1:], strict=True):
        delta = a * delta + e
        seen.append(abs(delta))
    return seen


def dyadic_decays(seed, tokens):
    """Decays that are short dyadic fractions, and their logarithms."""
    numerators = np.random.default_rng(seed).integers(1, 256, tokens)
    decays = [Fraction(int(n), 256) for n in numerators]
    return decays, np.log(numerators / 256)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_one_off_bound_is_the_exact_deviation(seed):
    """Assert that the bound is eps times the product in rationals, and not under it."""
    from lyapunov.bounds.perturbation import one_off_bound

    decays, log_decay = dyadic_decays(seed, 40)
    epsilon = Fraction(1, 1000)
    exact = exact_deviation(decays, [epsilon, *[Fraction(0)] * 40])[-1]
    bound = one_off_bound(float(epsilon), log_decay)
    assert bound.value >= exact
    # 40 logarithms near -1, each within an ulp, and as much slack again
    assert bound.value <= float(exact) * (1 + 4 * 42 * 100 * 2**-53)
    assert bound.tier == "state"


def test_one_off_bound_holds_and_is_attained_on_mamba1():
    """Assert both on a running recurrence: random eps under it, the worst on it."""
    from lyapunov.bounds.perturbation import exponent_bound, one_off_bound
    from lyapunov.exponents import lyapunov_spectrum
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    rng = np.random.default_rng(0)
    recurrence = Mamba1Recurrence(-jnp.exp(jnp.asarray(rng.normal(size=(3, 2)))))
    inputs = Mamba1Inputs(
        jnp.asarray(rng.exponential(0.05, (30, 3))),
        jnp.zeros((30, 3)),
        jnp.zeros((30, 2)),
    )
    log_decay = jax.vmap(recurrence.log_decay)(inputs)
    bound = one_off_bound(1e-2, log_decay)
    zeta = float(lyapunov_spectrum(recurrence, jnp.zeros((3, 2)), inputs).exponents[0])
    coarse = exponent_bound(1e-2, zeta, 30)
    # by the definition of zeta the two are the same number, up to rounding
    assert bound.value == pytest.approx(coarse.value, rel=1e-13)

    def run(h):
        return jax.lax.scan(lambda h, u: (recurrence.step(h, u), None), h, inputs)[0]

    # a drive of 0 makes the trajectory the deviation itself, without cancellation
    slowest = jnp.unravel_index(log_decay.sum(axis=0).argmax(), (3, 2))
    worst = float(jnp.abs(run(jnp.zeros((3, 2)).at[slowest].set(1e-2))).max())
    assert worst <= bound.value <= worst * (1 + 1e-12)
    for _ in range(20):
        eps = jnp.asarray(rng.uniform(-1e-2, 1e-2, (3, 2)))
        assert float(jnp.abs(run(eps)).max()) <= bound.value


@pytest.mark.parametrize("seed", range(5))
def test_persistent_bound_holds_for_every_sign_and_is_attained_for_one(seed):
    """Assert against exact rationals with random and with equal signs."""
    from lyapunov.bounds.perturbation import largest_decay_bound, persistent_bound

    decays, log_decay = dyadic_decays(seed, 30)
    epsilon = Fraction(1, 64)
    bound = persistent_bound(float(epsilon), log_decay)
    attained = max(exact_deviation(decays, [epsilon] * 31))
    assert attained <= bound.value <= float(attained) * (1 + 1e-12)
    signs = np.random.default_rng(seed).choice([-1, 1], 31)
    mixed = exact_deviation(decays, [epsilon * int(s) for s in signs])
    assert max(mixed) <= bound.value
    assert bound.value <= largest_decay_bound(1 / 64, float(max(decays))).value


def test_formula_with_the_exponent_is_false_under_varying_decay():
    """Assert the counterexample: formula 20.5 eps, truth 1000 eps.

    A decay of 1 interrupted by e^-50 every 1000 tokens has exponent -0.05; a constant
    decay of e^-0.05 would let a persistent error grow 20.5-fold.
    """
    from lyapunov.bounds.perturbation import largest_decay_bound, persistent_bound

    log_decay = np.zeros((4000, 1))
    log_decay[999::1000] = -50
    exponent = log_decay.mean()
    formula = 1 / -np.expm1(exponent)
    assert exponent == -0.05
    assert formula == pytest.approx(20.5, abs=0.01)
    with mpmath.workdps(50):
        delta, truth = mpmath.mpf(1), mpmath.mpf(1)
        for row in log_decay[:, 0]:
            delta = mpmath.exp(row) * delta + 1
            truth = max(truth, delta)
    assert float(truth) == pytest.approx(1000, abs=1e-9)
    assert truth > 48 * formula
    bound = persistent_bound(1.0, log_decay).value
    assert truth <= bound <= float(truth) * (1 + 8000 * 2**-50)
    assert largest_decay_bound(1.0, 1.0).value == np.inf


def test_formula_with_the_exponent_is_right_for_a_constant_decay():
    """Assert that eps / (1 - e^lambda) is reached, and not passed, as T grows."""
    from lyapunov.bounds.perturbation import largest_decay_bound, persistent_bound

    log_decay = np.full((3000, 1), -0.05)
    limit = largest_decay_bound(1.0, float(np.exp(-0.05))).value
    assert persistent_bound(1.0, log_decay).value == pytest.approx(limit, rel=1e-9)
    short = persistent_bound(1.0, log_decay[:20]).value
    assert short < 0.7 * limit


def test_decays_of_one_let_a_persistent_error_grow_without_end():
    """Assert T + 1 eps for T decays of 1: an exponent of 0 bounds nothing here."""
    from lyapunov.bounds.perturbation import one_off_bound, persistent_bound

    assert persistent_bound(2.0, np.zeros((99, 3))).value == pytest.approx(200)
    assert one_off_bound(2.0, np.zeros((99, 3))).value == pytest.approx(2)


def test_zero_decays_and_no_tokens_are_cases_too():
    """Assert that a decay of 0 forgets, and that an empty sequence leaves eps."""
    from lyapunov.bounds.perturbation import one_off_bound, persistent_bound

    gone = np.array([[0.0], [-np.inf]])
    assert one_off_bound(1.0, gone).value == 0
    assert persistent_bound(1.0, gone).value == pytest.approx(2)
    assert one_off_bound(1.0, np.zeros((0, 2))).value == pytest.approx(1)


def test_no_perturbation_moves_nothing_and_a_positive_exponent_overflows_to_inf():
    """Assert 0 for eps = 0, whatever the decays, and inf where e^(N zeta) is."""
    from lyapunov.bounds.perturbation import (
        exponent_bound,
        largest_decay_bound,
        persistent_bound,
    )

    assert persistent_bound(0.0, np.zeros((5, 1))).value == 0
    assert largest_decay_bound(0.0, 1.0).value == 0
    assert exponent_bound(1.0, 1.0, 1000).value == np.inf


def test_growing_decays_are_refused():
    """Assert that a log decay above 0 is refused in words."""
    from lyapunov.bounds.perturbation import one_off_bound

    with pytest.raises(ValueError, match="at most 0"):
        one_off_bound(1.0, np.array([[0.1]]))


def test_deviations_of_random_layers_shrink_under_the_explicit_bound():
    """Assert the paper's synthetic check on 200 random SSM layers.

    Initial state and drive are perturbed once; the deviation of the state is under
    eps prod a at every token, never grows, and shrinks at the layer's own exponent.

    ??? cite "Halloran et al., arXiv 2406.00209v3: randomly generated SSM layers,
        initial latent and input adjusted, deviations decrease over discrete time"
    """
    from lyapunov.bounds.perturbation import one_off_bound
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    tokens, shape = 64, (6, 4)

    @jax.jit
    def states(A, inputs, first):
        recurrence = Mamba1Recurrence(A)

        def one(h, u):
            h = recurrence.step(h, u)
            return h, h

        log_decay = jax.vmap(recurrence.log_decay)(inputs)
        return log_decay, jax.lax.scan(one, first, inputs)[1]

    for seed in range(200):
        rng = np.random.default_rng(seed)
        A = -jnp.exp(jnp.asarray(rng.normal(0, 1, shape)))
        inputs = Mamba1Inputs(
            jnp.asarray(np.exp(rng.normal(-3, 1, (tokens, shape[0])))),
            jnp.asarray(rng.normal(size=(tokens, shape[0]))),
            jnp.asarray(rng.normal(size=(tokens, shape[1]))),
        )
        first = jnp.asarray(rng.normal(size=shape))
        eps = jnp.asarray(rng.uniform(-1e-3, 1e-3, shape))
        log_decay, before = states(A, inputs, first)
        _, after = states(A, inputs, first + eps)
        deviation = np.abs(np.asarray(after - before)).max(axis=(1, 2))
        size = float(np.abs(first + eps - first).max())
        largest = float(np.abs(before).max())
        for t in (0, 3, 15, 63):
            bound = one_off_bound(size, np.asarray(log_decay)[: t + 1]).value
            # each trajectory rounds 6 times a token, with decays at most 1
            rounding = 2 * 6 * (t + 1) * 2**-53 * (largest + size)
            assert deviation[t] <= bound + rounding
        assert np.all(np.diff(deviation) <= 2 * 6 * tokens * 2**-53 * (largest + size))
        # the slowest direction, perturbed, keeps the bound from being vacuous
        i, n = np.unravel_index(np.asarray(log_decay).sum(axis=0).argmax(), shape)
        share = float(abs(eps[i, n])) / size
        last = one_off_bound(size, np.asarray(log_decay)).value
        assert deviation[-1] >= share * last * (1 - 1e-9) - rounding
