"""Mamba-2's recurrence: Jacobian, exponents, scans, and steps beside transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lyapunov.arithmetic import Exact
from lyapunov.exponents import QR, lyapunov_spectrum
from lyapunov.recurrences import Mamba2Inputs, Mamba2Recurrence
from lyapunov.recurrences.mamba2 import head_scan
from lyapunov.sublayers.ssd import chunked_scan

from ..exponents.tolerance import tolerance
from ..helpers import assert_within, given_cache


UNIT = 2.0**-53
HEADS, HEAD_DIM, D_STATE, TOKENS = 4, 2, 3, 23


def drawn(groups, seed=0, tokens=TOKENS, slowest=1e-3):
    """A recurrence and random inputs of its own."""
    rng = np.random.default_rng(seed)
    A = -jnp.exp(jnp.asarray(rng.uniform(np.log(slowest), 1, HEADS)))
    inputs = Mamba2Inputs(
        jnp.asarray(rng.exponential(0.3, size=(tokens, HEADS))),
        jnp.asarray(rng.normal(size=(tokens, HEADS, HEAD_DIM))),
        jnp.asarray(rng.normal(size=(tokens, groups, D_STATE))),
    )
    return Mamba2Recurrence(A), jnp.zeros((HEADS, HEAD_DIM, D_STATE)), inputs


def stepped(recurrence, state, inputs):
    """States after every token, in NumPy, by the formula of the paper."""
    A = np.asarray(recurrence.A)
    h, out = np.asarray(state).copy(), []
    for dt, x, B in zip(*map(np.asarray, inputs), strict=True):
        shared = HEADS // B.shape[0]
        for head in range(HEADS):
            drive = dt[head] * np.outer(x[head], B[head // shared])
            h[head] = np.exp(dt[head] * A[head]) * h[head] + drive
        out.append(h.copy())
    return np.array(out)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_step_jacobian_is_one_decay_a_head_times_the_identity(groups):
    """Assert that the closed form is jacfwd's matrix, off-diagonal zeros included."""
    recurrence, state, inputs = drawn(groups)
    token = jax.tree.map(lambda x: x[0], inputs)
    state = state + 1.0
    flat, unravel = ravel_pytree(state)
    dense = jax.jacfwd(lambda x: ravel_pytree(recurrence.step(unravel(x), token))[0])(
        flat
    )
    closed = np.asarray(recurrence.step_jacobian(state, token))
    # two evaluations of exp(dt A), each within 2 ulp of it
    np.testing.assert_allclose(closed, dense, rtol=8 * UNIT, atol=0)
    assert np.count_nonzero(closed) == state.size
    each = np.diag(closed).reshape(HEADS, -1)
    assert np.all(each == each[:, :1])
    np.testing.assert_allclose(
        each[:, 0], np.exp(np.asarray(token.dt * recurrence.A)), rtol=8 * UNIT
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_exponents_are_those_of_the_dense_product(groups):
    """Assert closed form, QR of the Jacobians and singular values of their product."""
    recurrence, state, inputs = drawn(groups)
    closed = lyapunov_spectrum(recurrence, state, inputs)
    assert closed.method == "ClosedForm()"
    error = tolerance(8 + state.size, max(1, float(np.abs(closed.exponents).max())))
    by_qr = lyapunov_spectrum(recurrence, state, inputs, method=QR())
    np.testing.assert_allclose(by_qr.exponents, closed.repeated, rtol=0, atol=error)
    product = np.eye(state.size)
    for t in range(TOKENS):
        token = jax.tree.map(lambda x, t=t: x[t], inputs)
        product = np.asarray(recurrence.step_jacobian(state, token)) @ product
    values = np.log(np.linalg.svd(product, compute_uv=False)) / TOKENS
    np.testing.assert_allclose(values, closed.repeated, rtol=0, atol=error)
    # a head's exponent counts once for each of its head_dim x d_state coordinates
    means = np.asarray(inputs.dt).mean(axis=0) * np.asarray(recurrence.A)
    expected = np.sort(np.repeat(means, HEAD_DIM * D_STATE))[::-1]
    np.testing.assert_allclose(closed.repeated, expected, rtol=0, atol=error)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 32])
def test_scans_equal_steps(groups, chunk):
    """Assert that both forms of the scan end where steps do, and read out the same."""
    recurrence, _, inputs = drawn(groups)
    rng = np.random.default_rng(1)
    before = jnp.asarray(rng.normal(size=(HEADS, HEAD_DIM, D_STATE)))
    states = stepped(recurrence, before, inputs)
    step = before
    for t in range(TOKENS):
        step = recurrence.step(step, jax.tree.map(lambda x, t=t: x[t], inputs))
    C = jnp.asarray(rng.normal(size=(TOKENS, groups, D_STATE)))
    D = jnp.asarray(rng.normal(size=HEADS * HEAD_DIM))
    heads_of = np.repeat(np.arange(groups), HEADS // groups)
    y = np.einsum("lhpn,lhn->lhp", states, np.asarray(C)[:, heads_of])
    y = y.reshape(TOKENS, -1) + np.asarray(inputs.x).reshape(TOKENS, -1) * np.asarray(D)

    flat = inputs.x.reshape(TOKENS, -1)
    start = before.transpose(2, 0, 1).reshape(D_STATE, -1)
    owner = np.repeat(np.arange(HEADS), HEAD_DIM)
    by_token = head_scan(
        Exact(), inputs.dt[:, owner], flat, inputs.B, C, recurrence.A[owner], D, start
    )
    by_chunk = chunked_scan(
        Exact(), inputs.dt, flat, inputs.B, C, recurrence.A, D, start, chunk
    )
    end = states[-1].transpose(2, 0, 1).reshape(D_STATE, -1)
    # a few operations a token on numbers of this size; decays are differences of
    # running sums, whose error is relative to the sums
    elapsed = np.abs(np.asarray(inputs.dt * recurrence.A)).sum(axis=0).max()
    size = np.abs(states).max() * np.abs(C).max() * D_STATE + np.abs(y).max()
    allowed = (12 * TOKENS + 4 * elapsed) * UNIT * size
    assert_within(step, states[-1], allowed, "steps")
    for name, (out, after) in {"tokens": by_token, "chunks": by_chunk}.items():
        assert_within(out, y, allowed, name)
        assert_within(after, end, allowed, name)


def test_a_step_is_transformers_own(tmp_path):
    """Assert that the SSM state of its cache is ours after each of several tokens."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import lyapunov
    from lyapunov.implementations.transformers._cache import cache_of
    from lyapunov.sublayers.residual import Incoming, sublayer
    from oracles.checkpoints.configurations import MAMBA2
    from oracles.checkpoints.transformers import make, save

    network = make("mamba2", **{**MAMBA2, "n_groups": 2, "num_hidden_layers": 1})
    model = lyapunov.load(save(network, tmp_path / "model"))
    tokens = np.random.default_rng(0).integers(0, 50, 6)
    with torch.no_grad():
        out = network(torch.tensor(tokens[None, :4]), use_cache=True)
        for t in (4, 5):
            token = torch.tensor(tokens[None, t : t + 1])
            given = given_cache(network, cache_of(out))
            out = network(token, **given, use_cache=True)
    cache = cache_of(out)
    theirs = cache.layers[0].recurrent_states[0].double().numpy()[0]
    p = model.parameters(0)
    embedded = model.embed(tokens)
    _, _, after = sublayer(
        Exact(),
        model.sublayers[0].flow,
        Incoming(embedded, jnp.zeros_like(embedded)),
        p,
        model.start(p),
    )
    ours = np.asarray(after.state).reshape(8, 8, 8).transpose(1, 2, 0)
    # fp32: sums of 32 products in front, six tokens of a few operations
    assert_within(ours, theirs, 2.0**-24 * 300 * np.abs(ours).max())
    assert np.abs(ours).max() > 0
