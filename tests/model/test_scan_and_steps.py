"""The scan and single steps are one function."""

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Exact
from lyapunov.recurrences.mamba1 import selective_scan, step

from ..helpers import assert_within, gamma


@pytest.mark.parametrize("seq", [1, 2, 31, 64])
@pytest.mark.parametrize("carried", [False, True])
def test_the_scan_is_its_steps(rng, seq, carried):
    """Assert equality of the state up to counted roundings of positive sums."""
    d_inner, d_state = 5, 3
    dt = rng.uniform(1e-4, 2.0, (seq, d_inner))
    u, D = rng.normal(size=(seq, d_inner)), rng.normal(size=d_inner)
    B, C = rng.normal(size=(2, seq, d_state))
    A = -rng.uniform(0.1, 16.0, (d_state, d_inner))
    state = rng.normal(size=(d_state, d_inner)) * carried

    def run(at, u=u, B=B, C=C, D=D, state=state):
        return selective_scan(at, *map(jnp.asarray, (dt, u, B, C, A, D, state)))

    _, after = run(Exact())
    # Every term is a product of at most 2 seq + 4 factors and goes through at most
    # seq + d_state + 1 additions, in each of the two; exp is good to 4 ulp, and its
    # rounded argument counts |dt A| < 32 times more.
    operations = 2 * (3 * seq + d_state + 5 + (4 + 32) * seq)
    _, size = run(Exact(), np.abs(u), np.abs(B), np.abs(C), np.abs(D), np.abs(state))
    slack = gamma(operations, 2.0**-53)
    h = jnp.asarray(state.T)
    for t in range(seq):
        h = step(Exact(), h, *map(jnp.asarray, (dt[t], u[t], B[t], A.T)))
    assert_within(h.T, after, slack * np.asarray(size), "steps")
