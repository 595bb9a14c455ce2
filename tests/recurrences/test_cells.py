"""Cells against torch and NumPy written apart: values, Jacobians, exponents."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lyapunov.exponents import QR, ClosedForm, lyapunov_spectrum
from lyapunov.recurrences import cells

from ..helpers import assert_within, gamma


WIDTH, D_MODEL, HEADS, D_HEAD, TOKENS = 6, 5, 2, 3, 24
UNIT = 2.0**-53
GATED = ("LSTM", "GRU", "SLSTM")
LINEAR = ("LinearAttention", "MLSTM", "RWKV4", "RWKV6")


def made(name, seed=0):
    """A cell with weights three times as large as drawn, and tokens."""
    shape = (
        (HEADS, D_HEAD) if name in ("LinearAttention", "MLSTM", "RWKV6") else (WIDTH,)
    )
    cell = getattr(cells, name).drawn(jax.random.key(seed), D_MODEL, *shape)
    if name in GATED:
        cell = jax.tree.map(lambda w: 3 * w if w.ndim == 2 else w, cell)
    tokens = np.random.default_rng(seed).normal(size=(TOKENS, D_MODEL))
    return cell, tokens


@eqx.filter_jit
def run(cell, tokens):
    """All states, the start first, flat."""

    def advance(state, x):
        after = cell.step(state, x)
        return after, ravel_pytree(after)[0]

    start = cell.start()
    _, states = jax.lax.scan(advance, start, jnp.asarray(tokens))
    return jnp.concatenate([ravel_pytree(start)[0][None], states])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def amplified(jacobians):
    """By how much an error of any step can have grown by the end of any other."""
    worst, reached = 1.0, 1.0
    for J in jacobians:
        reached = 1 + reached * np.linalg.norm(J, 2)
        worst = max(worst, reached)
    return worst


@eqx.filter_jit
def step_jacobians(cell, tokens):
    """Closed forms along the trajectory."""

    def advance(state, x):
        return cell.step(state, x), cell.step_jacobian(state, x)

    return jax.lax.scan(advance, cell.start(), jnp.asarray(tokens))[1]


# a matrix-vector product with d_model + width terms, gates and products
OPERATIONS = 8 * (D_MODEL + WIDTH) + 60


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_values_and_jacobians_are_torchs(name):
    """Assert states over 24 tokens and the Jacobian of every step."""
    torch = pytest.importorskip("torch")
    cell, tokens = made(name)
    theirs = getattr(torch.nn, name + "Cell")(D_MODEL, WIDTH).double()
    given = {"weight_ih": cell.from_token, "weight_hh": cell.from_hidden,
             "bias_ih": cell.bias}  # fmt: skip
    given["bias_hh"] = getattr(cell, "hidden_bias", np.zeros(4 * WIDTH))
    theirs.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in given.items()})
    for p in theirs.parameters():
        p.requires_grad_(False)

    def step(flat, x):
        if name == "GRU":
            return theirs(x, flat)
        return torch.cat(theirs(x, (flat[:WIDTH], flat[WIDTH:])))

    flat = torch.zeros(2 * WIDTH if name == "LSTM" else WIDTH).double()
    states, jacobians = [flat.numpy()], []
    for x in torch.tensor(tokens):
        jacobians.append(torch.func.jacrev(step)(flat, x).numpy())
        flat = step(flat, x)
        states.append(flat.numpy())
    error = amplified(jacobians) * gamma(OPERATIONS, UNIT) * 4
    assert error < 1e-8
    assert_within(run(cell, tokens), np.stack(states), error, name)
    assert_within(step_jacobians(cell, tokens), jacobians, 10 * error, name)

    # and the exponents are those of torch's Jacobians, orthonormalised by NumPy
    frame, total = np.eye(len(flat)), 0.0
    for J in jacobians:
        frame, triangle = np.linalg.qr(J @ frame)
        total = total + np.log(np.abs(np.diag(triangle)))
    found = lyapunov_spectrum(cell, cell.start(), jnp.asarray(tokens), method=QR())
    wanted = np.sort(total / TOKENS)[::-1]
    condition = max(np.linalg.cond(J) for J in jacobians)
    assert_within(found.exponents, wanted, condition * 10 * error, name)


@pytest.mark.parametrize("name", GATED + LINEAR)
def test_step_jacobians_are_derivatives_of_the_steps(name):
    """Assert closed forms against forward differentiation at every token."""
    cell, tokens = made(name, 1)
    _, unravel = ravel_pytree(cell.start())

    @jax.jit
    @jax.vmap
    def derivative(flat, x):
        return jax.jacfwd(lambda f: ravel_pytree(cell.step(unravel(f), x))[0])(flat)

    wanted = derivative(run(cell, tokens)[:-1], jnp.asarray(tokens))
    size = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    error = size * gamma(4 * OPERATIONS, UNIT)
    assert_within(step_jacobians(cell, tokens), wanted, error, name)


def test_slstm_is_the_papers_stabilised_cell():
    """Assert h against NumPy with the running maximum m, c and n scaled by e^m."""
    cell, tokens = made("SLSTM", 2)
    W, R, b = (np.asarray(w) for w in (cell.from_token, cell.from_hidden, cell.bias))
    m = np.full(WIDTH, -np.inf)
    states = np.asarray(run(cell, tokens)).reshape(TOKENS + 1, 3, WIDTH)
    for t, x in enumerate(tokens):
        c, n, h = states[t]
        before = W @ x + R @ h + b
        i, f, z, o = np.split(before, 4)
        log_f = -np.log1p(np.exp(-f))
        new = np.maximum(log_f + m, i)
        scale = np.exp(m)
        c, n = (
            np.where(scale > 0, part / np.maximum(scale, 1e-300), 0) for part in (c, n)
        )
        f, i, m = np.exp(log_f + m - new), np.exp(i - new), new
        c, n = f * c + i * np.tanh(z), f * n + i
        # |c| is at most n; an exponential is as wrong as its argument is large
        error = (1 + np.abs(before).max() + np.abs(m).max()) * gamma(OPERATIONS, UNIT)
        found = states[t + 1]
        assert_within(found[2], sigmoid(o) * c / n, 4 * error, "h")
        assert_within(found[0] / np.exp(m), c, 4 * error * n, "c")
        assert_within(found[1] / np.exp(m), n, 4 * error * n, "n")
        assert error < 1e-11


def test_mlstm_is_the_papers_stabilised_cell():
    """Assert what a query reads, numerator over normaliser, against NumPy with m."""
    cell, tokens = made("MLSTM", 3)
    K, V, G, b = (np.asarray(w) for w in (cell.key, cell.value, cell.gates, cell.bias))
    C, n = np.zeros((HEADS, D_HEAD, D_HEAD)), np.zeros((HEADS, D_HEAD))
    m = np.full(HEADS, -np.inf)
    query = np.abs(np.random.default_rng(0).normal(size=(HEADS, D_HEAD)))
    states = np.asarray(run(cell, tokens)).reshape(
        TOKENS + 1, HEADS, D_HEAD + 1, D_HEAD
    )
    for t, x in enumerate(tokens):
        i, f = G @ x + b
        log_f = np.log(sigmoid(f))
        new = np.maximum(log_f + m, i)
        f, i, m = np.exp(log_f + m - new), np.exp(i - new), new
        k = K @ x / np.sqrt(D_HEAD)
        C = f[:, None, None] * C + i[:, None, None] * np.einsum("hv,hk->hvk", V @ x, k)
        n = f[:, None] * n + i[:, None] * k
        read = np.einsum("hvk,hk->hv", states[t + 1], query)
        scale = np.exp(m)[:, None]
        error = gamma(40 * TOKENS, UNIT) * np.abs(states[t + 1]).max()
        assert_within(read[:, -1:], scale * np.sum(n * query, 1, keepdims=True), error)
        assert_within(read[:, :-1], scale * np.einsum("hvk,hk->hv", C, query), error)


def test_rwkv4_is_a_softmax_over_the_past_with_distances_weighed():
    """Assert a / b of the state against the sum over all tokens before."""
    cell, tokens = made("RWKV4", 4)
    w = np.exp(np.asarray(cell.log_w))
    k, v = tokens @ np.asarray(cell.key).T, tokens @ np.asarray(cell.value).T
    for t, state in enumerate(run(cell, tokens)[1:]):
        age = np.arange(t, -1, -1)[:, None]
        weights = np.exp(k[: t + 1] - age * w)
        wanted = [(weights * v[: t + 1]).sum(axis=0), weights.sum(axis=0)]
        error = (
            gamma(20 * TOKENS, UNIT)
            * weights.sum(axis=0).max()
            * max(1, np.abs(v).max())
        )
        assert_within(state.reshape(2, WIDTH), np.stack(wanted), error)


def test_rwkv6_and_linear_attention_are_weighed_sums_of_outer_products():
    """Assert both states against sums over all tokens, decays multiplied up."""
    for name in ("RWKV6", "LinearAttention"):
        cell, tokens = made(name, 5)
        k = np.einsum("hkd,td->thk", np.asarray(cell.key), tokens)
        v = np.einsum("hvd,td->thv", np.asarray(cell.value), tokens)
        log_w = np.zeros_like(k)
        if name == "RWKV6":
            turned = np.einsum("hkd,td->thk", np.asarray(cell.decay), tokens)
            log_w = -np.exp(np.asarray(cell.decay_bias) + turned)
        else:
            k = np.where(k > 0, k, np.expm1(k)) + 1
            v = np.concatenate([v, np.ones((TOKENS, HEADS, 1))], axis=2)
        wanted: Any = sum(
            np.exp(log_w[s + 1 :].sum(axis=0))[:, :, None]
            * k[s][:, :, None]
            * v[s][:, None, :]
            for s in range(TOKENS)
        )
        size = np.abs(k).max() * np.abs(v).max() * TOKENS
        found = run(cell, tokens)[-1].reshape(wanted.shape)
        assert_within(found, wanted, size * gamma(20 * TOKENS, UNIT), name)


def test_linear_cells_have_their_mean_log_decays_as_exponents():
    """Assert 0 for linear attention, -w for RWKV-4, and QR of the steps for all."""
    for name in LINEAR:
        cell, tokens = made(name, 6)
        found = lyapunov_spectrum(cell, cell.start(), jnp.asarray(tokens))
        assert found.method == str(ClosedForm())
        exponents = np.asarray(found.repeated)  # one a coordinate
        plain = lyapunov_spectrum(
            lambda s, x, cell=cell: cell.step(s, x),
            cell.start(),
            jnp.asarray(tokens),
            method=QR(),
        )
        size = max(1.0, float(np.abs(exponents).max()))
        assert_within(plain.exponents, exponents, size * gamma(200, UNIT), name)
        assert float(exponents[0]) <= 0
        if name == "LinearAttention":
            assert (exponents == 0).all()
        if name == "RWKV4":
            w = np.repeat(np.sort(np.exp(np.asarray(cell.log_w))), 2)
            assert_within(exponents, -w, w.max() * gamma(TOKENS + 2, UNIT))
        if name == "MLSTM":
            gate = tokens @ np.asarray(cell.gates)[1].T + np.asarray(cell.bias)[1]
            heads = np.sort(np.log(sigmoid(gate)).mean(axis=0))[::-1]
            each = np.repeat(heads, (D_HEAD + 1) * D_HEAD)
            assert_within(exponents, each, gamma(TOKENS + 60, UNIT))


def test_gated_cells_may_have_positive_exponents():
    """Assert that an LSTM and a GRU of large weights are chaotic without tokens."""
    for name, scale in (("LSTM", 12.0), ("GRU", 12.0)):
        cell = getattr(cells, name).drawn(jax.random.key(3), 1, 32)
        cell = jax.tree.map(lambda w, s=scale: s * w if w.shape[1:] else 0 * w, cell)
        start = jax.tree.map(lambda x: x + 0.1 * jnp.arange(32.0) / 32, cell.start())
        found = lyapunov_spectrum(cell, start, jnp.zeros((400, 1)), k=1, method=QR())
        assert float(found.exponents[0]) > 0.02, name
