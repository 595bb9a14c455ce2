"""A delta rule's row of the report: largest exponents, brackets, sums, gates."""

import mpmath
import numpy as np
import pytest

from lyapunov import LyapunovError
from lyapunov.exponents import head_exponents
from lyapunov.results import HeadExponents

from ..recurrences.test_delta import HEADS, KEY_DIM, VALUE_DIM, drawn
from .test_on_keys import matrices
from .tolerance import tolerance


SEQ = 48


def batch(seed, **options):
    """Inputs of two sequences, (batch, seq, ...), and each of them apart."""
    both = [drawn(seed, SEQ, **options), drawn(seed + 1, SEQ, **options)]
    return [np.stack(x) for x in list(zip(*both, strict=True))[:3]], both


def row(inputs, **options):
    found = head_exponents(3, "gated_delta", *inputs, **options)
    assert found.heads is not None
    return found, found.heads


def singular_values(sequences, digits=60):
    """Mean over sequences of the logs of the product's singular values, a token."""
    logs = []
    with mpmath.workdps(digits):
        for inputs in sequences:
            for head in range(inputs.rate.shape[1]):
                product = mpmath.eye(KEY_DIM)
                for M in matrices(inputs, head):
                    product = mpmath.matrix(M.tolist()) * product
                values = mpmath.svd_r(product, compute_uv=False)
                logs.append([float(mpmath.log(x) / SEQ) for x in values])
    return np.reshape(logs, (len(sequences), -1, KEY_DIM)).mean(axis=0)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_exponents_are_those_of_the_products_norms(per_key, scale):
    """Assert each head's largest, all of them by quantiles, sums, and brackets that
    hold and are no wider than they must be."""
    inputs, sequences = batch(10, per_key=per_key, rate_scale=scale)
    found, heads = row(inputs, multiplicity=VALUE_DIM)
    wanted = singular_values(sequences)
    error = tolerance(2000, 1)
    np.testing.assert_allclose(heads.max, wanted[:, 0], rtol=0, atol=error)
    assert found.max == max(heads.max)
    assert found.min == pytest.approx(wanted.min(), abs=error)
    ends = np.asarray(found.quantiles)[[0, -1]]
    np.testing.assert_allclose(ends, [wanted.min(), wanted.max()], rtol=0, atol=error)
    np.testing.assert_allclose(heads.sum, wanted.sum(axis=1), rtol=0, atol=10 * error)
    np.testing.assert_allclose(heads.memory_tokens, -1 / wanted[:, 0], rtol=1e-9)
    lower, largest, upper = map(np.asarray, (heads.lower, heads.max, heads.upper))
    assert (lower < largest).all()
    assert (largest <= upper).all()
    np.testing.assert_allclose(lower, np.asarray(heads.sum) / KEY_DIM, rtol=1e-15)
    gates = np.asarray(inputs[0]).reshape(2, SEQ, HEADS, -1).max(axis=-1)
    np.testing.assert_allclose(upper, gates.mean(axis=(0, 1)), rtol=1e-12)
    assert found.multiplicity == VALUE_DIM
    assert heads.key_dim == KEY_DIM
    assert heads.rate_max == np.max(inputs[1])
    assert heads.unwritten == [0] * HEADS


def test_fewer_key_heads_are_shared_by_neighbours():
    inputs, _ = batch(12)
    shared = inputs[2][:, :, :1]
    _, once = row([inputs[0], inputs[1], shared])
    _, twice = row([inputs[0], inputs[1], np.repeat(shared, 2, axis=2)])
    assert once == twice


@pytest.mark.parametrize(
    ("place", "shape"),
    [(1, (2, SEQ, 3)), (0, (2, SEQ, HEADS, 3)), (2, (2, SEQ, 3, KEY_DIM)), (2, (2, 4))],
)
def test_shapes_that_do_not_belong_together_are_refused(place, shape):
    inputs, _ = batch(12)
    inputs[place] = -np.ones(shape)
    with pytest.raises(LyapunovError, match="log_gate has shape"):
        row(inputs)


def test_directions_that_are_never_written_decay_by_the_gate_alone():
    """Assert the exact mean gate at any length, where QR from the identity is off."""
    rng = np.random.default_rng(14)
    key = rng.normal(size=(1, SEQ, 1, KEY_DIM))
    away = rng.normal(size=KEY_DIM)
    away /= np.linalg.norm(away)
    key -= (key @ away)[..., None] * away
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    gate, rate = -0.02 * np.ones((1, SEQ, 1)), 0.5 * np.ones((1, SEQ, 1))
    found, heads = row([gate, rate, key])
    assert found.max == heads.upper[0] == pytest.approx(-0.02, rel=1e-12)
    assert heads.memory_tokens[0] == pytest.approx(50)
    assert heads.unwritten == [1]
    assert np.sum(np.asarray(found.quantiles) > -0.021) <= 21 / KEY_DIM + 1
    # reflections keep everything, and rounding makes no growth of it
    found, heads = row([0 * gate, 4 * rate, key])
    assert found.max == heads.upper[0] == pytest.approx(0, abs=1e-15)
    assert heads.memory_tokens == [np.inf]
    assert heads.unwritten == [KEY_DIM]
    assert found.min == pytest.approx(0, abs=1e-13)


def test_a_whole_write_is_counted_and_told_from_a_nearly_whole_one():
    """Assert -inf once a column of the state, and what the smallest exponent is of."""
    inputs, _ = batch(16)
    whole = [inputs[0], np.ones_like(inputs[1]), inputs[2]]
    whole[2][:, 5] = np.eye(KEY_DIM)[0]
    found, heads = row(whole, multiplicity=VALUE_DIM)
    assert heads.least_left == 0
    assert found.n_minus_inf == HEADS * VALUE_DIM
    assert np.isneginf(heads.sum).all()
    assert found.min is not None
    assert np.isfinite(heads.max).all()
    near = [inputs[0], np.ones_like(inputs[1]), np.asarray(drawn(16, SEQ).key)[None]]
    near = [near[0][:1], near[1][:1], near[2]]
    found, heads = row(near)
    assert 0 < heads.least_left < 1e-5
    assert found.n_minus_inf == 0
    assert np.isfinite(heads.sum).all()


def test_gates_are_what_is_counted_as_decays():
    inputs, _ = batch(18)
    found, _ = row(inputs)
    gates = np.exp(inputs[0])
    assert found.decay_max == pytest.approx(gates.max(), rel=1e-15)
    assert found.decay_min == pytest.approx(gates.min(), rel=1e-15)
    assert found.decay_is_one is not None
    share = np.mean(inputs[0] >= np.log(1 - 2.0**-9))
    assert found.decay_is_one["bf16"] == pytest.approx(share, abs=1e-12)
    assert found.finite_time is not None
    assert found.finite_time["token"] == list(range(1, SEQ + 1))


def test_a_head_whose_exponent_exceeds_every_channels_mean_gate():
    """Assert the two-channel example in which no channel has an exponent of its own:
    gates take turns at -10, and a key across both keeps what it reads."""
    gate = np.zeros((1, SEQ, 1, 2))
    gate[0, ::2, 0, 1] = gate[0, 1::2, 0, 0] = -10
    key = np.full((1, SEQ, 1, 2), np.sqrt(0.5)) * [1, -1]
    rates = {0.5: -1.39, 1.0: -0.69, 1.9: -0.05}
    for rate, wanted in rates.items():
        _, heads = row([gate, np.full((1, SEQ, 1), rate), key])
        assert heads.max[0] == pytest.approx(wanted, abs=0.03)
        assert heads.max[0] > gate.mean(axis=(0, 1)).max()
        assert isinstance(heads, HeadExponents)


def test_channels_far_below_rounding_are_no_minus_infinity():
    """Assert the mean of what fp64 does not tell apart, exact sums, and no -inf."""
    inputs, sequences = batch(20, per_key=True)
    inputs[0] = inputs[0] + np.where(np.arange(KEY_DIM) % 2, -150, 0)
    sequences = [
        one._replace(log_gate=gate)
        for one, gate in zip(sequences, inputs[0], strict=True)
    ]
    found, heads = row(inputs, multiplicity=VALUE_DIM)
    assert found.n_minus_inf == 0
    assert max(heads.unresolved) <= KEY_DIM // 2
    sums = inputs[0].sum(axis=-1) + np.log(1 - inputs[1] * (inputs[2] ** 2).sum(-1))
    np.testing.assert_allclose(heads.sum, sums.mean(axis=(0, 1)), rtol=1e-12)
    wanted = singular_values(sequences, digits=12000)
    np.testing.assert_allclose(heads.max, wanted[:, 0], rtol=0, atol=1e-9)
    assert found.min is not None
    assert wanted.min() - 1e-9 <= found.min <= wanted[:, 2:].mean(axis=1).max() + 1e-9
