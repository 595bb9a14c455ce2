"""Delta rules to try statements on: random heads in NumPy, apart from the library."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lyapunov.exponents import head_exponents
from lyapunov.recurrences import DeltaInputs
from lyapunov.results import HeadExponents


class Head(NamedTuple):
    """What one head is given, fp64."""

    log_gate: np.ndarray
    """(seq, key_dim), at most 0."""
    rate: np.ndarray
    """(seq)."""
    key: np.ndarray
    """(seq, key_dim)."""


def random_head(
    seed: int,
    seq: int = 48,
    key_dim: int = 6,
    *,
    most: float = 1.0,
    per_key: bool = False,
) -> Head:
    """Gates from slow to fast, rates over all of [0, most], keys of norm 1 at most."""
    rng = np.random.default_rng(seed)
    gates = -np.exp(rng.uniform(np.log(1e-3), 0, (seq, key_dim if per_key else 1)))
    key = rng.normal(size=(seq, key_dim))
    key /= np.sqrt((key**2).sum(axis=1, keepdims=True) + 1e-6)
    rate = most * rng.beta(0.7, 0.7, seq)
    return Head(np.broadcast_to(gates, key.shape), rate, key)


def one_key(head: Head, rate: float) -> Head:
    """The first key again and again, written at one rate, and hardly a gate."""
    return Head(
        np.full_like(head.log_gate, -1e-3),
        np.full_like(head.rate, rate),
        np.broadcast_to(head.key[0], head.key.shape),
    )


def steps(head: Head) -> np.ndarray:
    """(1 - beta k k') D of every token: (seq, key_dim, key_dim)."""
    outer = head.rate[:, None, None] * head.key[:, :, None] * head.key[:, None, :]
    eye = np.eye(head.key.shape[1])
    return (eye - outer) * np.exp(head.log_gate)[:, None, :]


def product(matrices: np.ndarray) -> np.ndarray:
    """The last one times ... times the first."""
    found = np.eye(matrices.shape[1])
    for one in matrices:
        found = one @ found
    return found


def system(head: Head) -> np.ndarray:
    """A of a chunk: beta_i k_i' D_i ... D_{j+1} k_j below the diagonal."""
    elapsed = np.cumsum(head.log_gate, axis=0)
    apart = np.exp(np.minimum(elapsed[:, None] - elapsed[None], 0))
    scores = np.einsum("ik,ijk,jk->ij", head.key, apart, head.key)
    return np.tril(head.rate[:, None] * scores, -1)


def log_norm(head: Head) -> float:
    """Log of the 2-norm of the product of all steps, a token."""
    return float(np.log(np.linalg.norm(product(steps(head)), 2))) / len(head.rate)


def library_row(head: Head) -> HeadExponents:
    """What the library finds of it, as of a batch of one sequence and one head."""
    gates = head.log_gate[None, :, None]
    found = head_exponents(
        0, "delta", gates, head.rate[None, :, None], head.key[None, :, None]
    )
    assert found.heads is not None
    return found.heads


def inputs(head: Head, value_dim: int = 1) -> DeltaInputs:
    """The same for the library, as of one head."""
    seq = len(head.rate)
    return DeltaInputs(
        log_gate=jnp.asarray(head.log_gate)[:, None],
        rate=jnp.asarray(head.rate)[:, None],
        key=jnp.asarray(head.key)[:, None],
        value=jnp.zeros((seq, 1, value_dim)),
    )
