"""Certified upper bounds of the largest singular value of a weight matrix."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


# At the dense edge of a random matrix' spectrum 20 steps come within two percent.
LANCZOS_STEPS = 20


def operator_norm_bound(
    matrix: Float[np.ndarray, "rows columns"], *, on_device: bool = False
) -> float:
    r"""An upper bound of $||W||_2$, usually within two percent.

    The Gram matrix G of the shorter side is formed; a shift s slightly above its
    estimated largest eigenvalue is certified by a Cholesky factorisation of s I - G
    that runs to its end (Rump 2006, "Verification of positive definiteness": then
    $\lambda_{max}(G) \le s + \gamma_{n+1} tr(sI - G)$ up to underflow). What rounding
    did to G itself is at most $\gamma_k ||W||_F^2$ for a sum of k products.

    **Arguments:**

    - `matrix`: finite weights.
    - `on_device`: in fp64 by JAX, where that is a GPU's; otherwise in fp32 by NumPy.

    **Returns:** the bound; inf for a matrix with non-finite entries.
    """
    if not np.all(np.isfinite(matrix)):
        return float("inf")
    size = float(np.linalg.norm(matrix))
    if size == 0.0:
        return 0.0
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, terms = short.shape
    own = _Jax() if on_device else _NumPy()
    unit = own.unit
    if (terms + 4) * unit > 0.1:
        return size
    # scaled to Frobenius norm 1, so that nothing over- or underflows
    gram = own.gram(short / size)
    # the cast of each entry, the products and their sum
    forming = (terms + 4) * unit / (1 - (terms + 4) * unit)
    shift = own.largest_eigenvalue_estimate(gram) * 1.03
    for _ in range(40):
        trace = own.trace_if_definite(gram, shift)
        if trace is None:
            shift *= 1.05
            continue
        slack = (rows + 4) * unit / (1 - (rows + 4) * unit) * trace
        bound = (shift * (1 + 2 * unit) + slack + forming) ** 0.5 * size
        return min(bound, size) * (1 + 1e-12)
    return size * (1 + 1e-12)


class _NumPy:
    """In fp32, on the processor."""

    unit = 2.0**-24

    def gram(self, short):
        narrow = short.astype(np.float32)
        return narrow @ narrow.T

    def trace_if_definite(self, gram, shift: float) -> float | None:
        """Of shift I - G, if its Cholesky factorisation ends."""
        trial = (-gram).astype(np.float32)
        trial[np.diag_indices(len(gram))] += np.float32(shift)
        try:
            np.linalg.cholesky(trial)
        except np.linalg.LinAlgError:
            return None
        return float(np.sum(np.abs(np.diag(trial)), dtype=np.float64))

    def largest_eigenvalue_estimate(self, gram) -> float:
        return _lanczos(gram, np, np.float32)


class _Jax:
    """In fp64, where JAX computes."""

    unit = 2.0**-53

    def gram(self, short):
        wide = jnp.asarray(short, jnp.float64)
        if wide.dtype != jnp.float64:
            raise TypeError("JAX computes in fp32 here; enable fp64 around this")
        return jnp.matmul(wide, wide.T, precision="highest")

    def trace_if_definite(self, gram, shift: float) -> float | None:
        """As `_NumPy`'s; a factorisation that does not end is NaN."""
        trial = shift * jnp.eye(len(gram)) - gram
        factor = jnp.linalg.cholesky(trial, symmetrize_input=False)
        if not bool(jnp.all(jnp.isfinite(factor))):
            return None
        return float(jnp.sum(jnp.abs(jnp.diagonal(trial))))

    def largest_eigenvalue_estimate(self, gram) -> float:
        return _lanczos(gram, jnp, jnp.float64)


def _lanczos(gram, backend, kind) -> float:
    """Lanczos without reorthogonalisation: its largest Ritz value."""
    steps = min(LANCZOS_STEPS, gram.shape[0])
    start = np.random.default_rng(0).normal(size=gram.shape[0])
    vector = backend.asarray(start / np.linalg.norm(start), kind)
    before, beta = backend.zeros_like(vector), 0.0
    diagonal, off = [], []
    for _ in range(steps):
        image = gram @ vector - kind(beta) * before
        alpha = float(image @ vector)
        image = image - kind(alpha) * vector
        diagonal.append(alpha)
        beta = float(backend.linalg.norm(image))
        if beta <= 1e-6 * abs(alpha):
            break
        off.append(beta)
        before, vector = vector, image / kind(beta)
    size = len(diagonal)
    tridiagonal = np.diag(diagonal) + np.diag(off[: size - 1], 1)
    return float(np.linalg.eigvalsh(tridiagonal, UPLO="U")[-1])
