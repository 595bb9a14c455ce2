"""Norms, products by matrices, convolutions and read-outs against 256-bit balls.

Never exceeded, not vacuous: the model of an execution is that of `moved`.
"""

import flint
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Weight

from .balls import BITS, above, arb, choices
from .moved import MODELS, OWN, SIZE, as_bounded, hold, interpreter, together


@pytest.mark.parametrize("model", MODELS)
def test_rms_normalise(rng, model):
    """Assert the bound of the norm for rows moved along and across themselves."""
    m, epsilon = MODELS[model], 1e-5
    depth = 5
    at = interpreter(model, reduction_depth=lambda n: depth)
    for scale, share in [(1.0, 1e-3), (1.0, 0.5), (1e-3, 1e-4), (1e4, 1e-7), (0.0, 1)]:
        v = scale * rng.normal(size=SIZE)
        v[3] *= 100  # an outlier channel
        e = share * np.maximum(np.abs(v), 1e-6)
        bound = at.rms_normalise(as_bounded(v, e), epsilon)
        best = 0.0
        with flint.ctx.workprec(BITS):

            def normalised(row):
                mean = sum((x * x for x in row), arb(0)) / SIZE
                return mean + arb(epsilon)

            exact = [arb(x) for x in v]
            by = normalised(exact).sqrt()
            directions = [*choices(rng, SIZE, 1), np.sign(v), -np.sign(v)]
            for move in directions:
                row = [arb(x) + arb(s * d) for x, s, d in together(v, move, e)]
                for r in (-1, 0, 1):
                    # square, sum, division and epsilon, then root and product
                    mean = normalised(row) * (1 + r * arb(m.unit)) ** (depth + 3)
                    root = (1 / mean.sqrt()) * (1 - r * arb(m.rsqrt_relative))
                    wrong = [x * root * (1 - r * arb(m.unit)) for x in row]
                    reached = hold(
                        bound,
                        [above(abs(y - x / by)) for y, x in together(wrong, exact)],
                    )
                    best = max(best, reached.max())
        assert best >= 1 / 3 or (model == "none" and scale == 0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("terms", [1, 2, 33])
def test_matmul(rng, model, terms):
    """Assert the bound of a product for errors of all signs and any summing order."""
    m, rows = MODELS[model], 6
    W = rng.normal(size=(rows, terms))
    W[0] = 0.0
    W[1] = np.abs(W[1])
    v = rng.normal(size=terms)
    v[0] = -40.0
    from lyapunov.bounds.operator_norm import operator_norm_bound

    norm = operator_norm_bound(W)
    for share in (0.0, 1e-4, 1.0):
        e = share * np.abs(rng.normal(size=terms))
        for weight in (Weight(jnp.asarray(W)), Weight(jnp.asarray(W), norm)):
            bound = interpreter(model).matmul(as_bounded(v, e), weight)
            best = np.zeros(rows)
            with flint.ctx.workprec(BITS):
                exact = [
                    sum((arb(w) * arb(x) for w, x in together(r, v)), arb(0)) for r in W
                ]
                moves = [*choices(rng, terms, 1), *np.sign(W)]
                for move in moves:
                    distances = []
                    for row, y0 in together(W, exact):
                        y = arb(0)
                        for j, w in enumerate(row):
                            # a term of the sequential sum goes through so many sums
                            sums = min(terms, terms - j + 1)
                            factor = (1 + arb(m.accumulator_unit)) ** sums
                            x = arb(v[j]) + arb(move[j] * e[j])
                            y += arb(w) * x * (factor if w * v[j] > 0 else 1 / factor)
                        y *= 1 + (1 if y > 0 else -1) * arb(m.unit)
                        distances.append(above(abs(y - y0)))
                    best = np.maximum(best, hold(bound, distances, strict=True))
            # The signs of a row attain its elementwise sum. Roundings are bounded by
            # Cauchy-Schwarz and all at full depth: 12 times too much at 33 terms.
            if share == 1 and model != "coarse":
                assert best[1:].max() >= 1 / 1.1
            elif share or model != "none":
                assert best[1:].max() >= 1 / 12


def test_norm_of_a_product_is_the_smaller_of_three(rng):
    """Assert that the L2 bound beats elementwise sums where the operator norm does."""
    W = rng.normal(size=(64, 64))
    from lyapunov.bounds.operator_norm import operator_norm_bound

    weight = Weight(jnp.asarray(W), operator_norm_bound(W))
    x = as_bounded(np.zeros(64), np.full(64, 1e-3))
    bound = interpreter("none").matmul(x, weight)
    elementwise = np.linalg.norm(np.abs(W) @ np.full(64, 1e-3))
    attained = np.linalg.norm(W, 2) * np.linalg.norm(np.full(64, 1e-3))
    assert attained <= float(bound.norm) <= 1.03 * attained < elementwise / 2


@pytest.mark.parametrize("model", MODELS)
def test_causal_conv(rng, model):
    """Assert the bound of the conv, inputs, taps and bias all being moved."""
    m, taps, seq, channels = MODELS[model], 4, 5, 3
    shapes = [(taps - 1 + seq, channels), (channels, taps), (channels,)]
    values = [rng.normal(size=s) for s in shapes]
    errors = [10.0 ** rng.uniform(-6, -1) * np.abs(v) for v in values]
    bound = interpreter(model).causal_conv(*map(as_bounded, values, errors))
    u, best = arb(m.unit), 0.0
    with flint.ctx.workprec(BITS):

        def conv(x, w, b, grow):
            out = np.empty((seq, channels), object)
            for t, c in np.ndindex(seq, channels):
                total = b[c] * (1 + grow * u) ** taps
                for k in range(taps):
                    term = x[t + k, c] * w[c, k]
                    total += term * (1 + grow * u) ** (taps - k + 1)
                out[t, c] = total
            return out

        def moved(signs):
            return [
                np.vectorize(lambda v, e, s: arb(v) + arb(s * e), otypes=[object])(
                    v, e, s
                )
                for v, e, s in together(values, errors, signs)
            ]

        exact = conv(*moved([0 * v for v in values]), grow=0)
        outward = [np.sign(v) for v in values]
        for signs in [
            outward,
            [-s for s in outward],
            *[[rng.choice([-1.0, 1.0], s) for s in shapes] for _ in range(4)],
        ]:
            for grow in (-1, 1):
                got = conv(*moved(signs), grow=grow)
                distance = np.vectorize(lambda a, b: above(abs(a - b)))(got, exact)
                error = np.asarray(bound.error)
                assert (distance <= error).all()
                assert (
                    np.linalg.norm(distance, axis=-1) <= np.asarray(bound.norm) * OWN
                ).all()
                best = max(best, (distance / error).max())
    assert best >= 1 / 2  # where all terms of an output have one sign


@pytest.mark.parametrize("model", MODELS)
def test_contract(rng, model):
    """Assert the bound of start + C h, every operand being moved."""
    m, terms, channels = MODELS[model], 5, 4
    shapes = [(terms, channels), (terms,), (channels,)]
    values = [np.abs(rng.normal(size=s)) for s in shapes]
    values[0][:, 1:] *= rng.choice([-1, 1], (terms, channels - 1))
    errors = [10.0 ** rng.uniform(-6, -1) * np.abs(v) for v in values]
    h, c, start = map(as_bounded, values, errors)
    bound = interpreter(model).contract(h, c, start=start)
    u, best = arb(m.unit), 0.0
    with flint.ctx.workprec(BITS):
        for sign in [1, -1, None, None]:
            signs = [
                np.sign(v) * sign if sign else rng.choice([-1.0, 1.0], v.shape)
                for v in values
            ]
            for grow in (-1, 0, 1):
                distances = []
                for i in range(channels):
                    exact = arb(values[2][i])
                    got = arb(values[2][i]) + arb(signs[2][i] * errors[2][i])
                    got *= (1 + grow * u) ** terms
                    for n in range(terms):
                        exact += arb(values[0][n, i]) * arb(values[1][n])
                        left = arb(values[0][n, i]) + arb(
                            signs[0][n, i] * errors[0][n, i]
                        )
                        right = arb(values[1][n]) + arb(signs[1][n] * errors[1][n])
                        got += left * right * (1 + grow * u) ** (terms - n + 1)
                    distances.append(above(abs(got - exact)))
                best = max(best, hold(bound, distances, strict=True).max())
    assert best >= 1 / 1.5
