"""Certified upper bounds of the largest singular value of a weight matrix."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic._programs import program


# At the dense edge of a random matrix' spectrum 20 steps come within two percent.
LANCZOS_STEPS = 20


def operator_norm_bound(
    matrix: Float[np.ndarray, "rows columns"] | Float[Array, "rows columns"],
    *,
    on_device: bool = False,
) -> float:
    r"""An upper bound of $||W||_2$, usually within two percent.

    The Gram matrix G of the shorter side is formed; a shift s slightly above its
    estimated largest eigenvalue is certified by a Cholesky factorisation of s I - G
    that runs to its end (Rump 2006, "Verification of positive definiteness": then
    $\lambda_{max}(G) \le s + \gamma_{n+1} tr(sI - G)$ up to underflow). What rounding
    did to G itself is at most $\gamma_k ||W||_F^2$ for a sum of k products.

    **Arguments:**

    - `matrix`: finite weights.
    - `on_device`: in fp64 by JAX, where that is a GPU's, and the matrix may be there
      already; otherwise in fp32 by NumPy.

    **Returns:** the bound; inf for a matrix with non-finite entries.
    """
    own = _Jax() if on_device else _NumPy()
    unit = own.unit
    size = own.size(matrix)
    if not np.isfinite(size):
        return float("inf")
    if size == 0.0:
        return 0.0
    # what rounding did to the sum of the squares, and what is left of this function
    upwards = 1.0 + 2.0**-53 * (matrix.size + 64)
    rows, terms = sorted(matrix.shape)
    if (terms + 4) * unit > 0.1:
        return size * upwards
    # scaled to Frobenius norm 1, so that nothing over- or underflows
    gram = own.gram(matrix, size)
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
        return min(bound, size) * upwards
    return size * upwards


def _start(rows: int):
    """Of Lanczos' steps: the same for all who ask."""
    start = np.random.default_rng(0).normal(size=rows)
    return start / np.linalg.norm(start)


def _largest(diagonal, off) -> float:
    """Eigenvalue of a symmetric tridiagonal matrix, up to an off-diagonal of 0."""
    ends = np.flatnonzero(np.asarray(off) == 0.0)
    size = int(ends[0]) + 1 if len(ends) else len(diagonal)
    tridiagonal = np.diag(diagonal[:size]) + np.diag(off[: size - 1], 1)
    return float(np.linalg.eigvalsh(tridiagonal, UPLO="U")[-1])


class _NumPy:
    """In fp32, on the processor."""

    unit = 2.0**-24

    def size(self, matrix) -> float:
        """Frobenius norm; not finite where an entry is not."""
        if not np.all(np.isfinite(matrix)):
            return float("inf")
        return float(np.linalg.norm(np.asarray(matrix, np.float64)))

    def gram(self, matrix, size: float):
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        narrow = (short / size).astype(np.float32)
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
        """Lanczos without reorthogonalisation: its largest Ritz value."""
        vector = _start(len(gram)).astype(np.float32)
        before, beta = np.zeros_like(vector), np.float32(0)
        diagonal, off = [], []
        for _ in range(min(LANCZOS_STEPS, len(gram))):
            image = gram @ vector - beta * before
            alpha = image @ vector
            image = image - alpha * vector
            diagonal.append(float(alpha))
            beta = np.linalg.norm(image)
            if beta <= 1e-6 * abs(alpha):
                break
            off.append(float(beta))
            before, vector = vector, image / beta
        return _largest(diagonal, off)


class _Jax:
    """In fp64, where JAX computes; two programs, and few words with the host, who may
    be busy."""

    unit = 2.0**-53

    def size(self, matrix) -> float:
        """Frobenius norm; not finite where an entry is not."""
        wide = jnp.asarray(matrix, jnp.float64)
        if wide.dtype != jnp.float64:
            raise TypeError("JAX computes in fp32 here; enable fp64 around this")
        rows = min(wide.shape)
        steps = min(LANCZOS_STEPS, rows)
        size, self._gram, self._steps = _examined(wide, _start(rows), steps)
        return float(size)

    def gram(self, matrix, size: float):
        return self._gram

    def trace_if_definite(self, gram, shift: float) -> float | None:
        """As `_NumPy`'s; a factorisation that does not end is NaN."""
        ended, trace = (np.asarray(part) for part in _definite(gram, np.float64(shift)))
        return float(trace) if ended else None

    def largest_eigenvalue_estimate(self, gram) -> float:
        return _largest(*np.asarray(self._steps))


@program
def _examined(matrix, start, steps: int):
    """The Frobenius norm, the Gram matrix of the matrix over it, Lanczos' numbers."""
    size = jnp.linalg.norm(matrix)
    wide = matrix / size
    wide = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    gram = jnp.matmul(wide, wide.T, precision="highest")
    return size, gram, _lanczos(gram, start, steps)


@program
def _definite(gram, shift):
    trial = shift * jnp.eye(len(gram)) - gram
    factor = jnp.linalg.cholesky(trial, symmetrize_input=False)
    return jnp.all(jnp.isfinite(factor)), jnp.sum(jnp.abs(jnp.diagonal(trial)))


def _lanczos(gram, start, steps: int):
    """Diagonal and off-diagonal of `_NumPy`'s Lanczos; 0 where it would have ended."""

    def step(i, carry):
        vector, before, beta, found = carry
        image = gram @ vector - beta * before
        alpha = image @ vector
        image = image - alpha * vector
        beta = jnp.linalg.norm(image)
        beta = jnp.where(beta <= 1e-6 * jnp.abs(alpha), 0.0, beta)
        after = jnp.where(beta > 0.0, image / jnp.where(beta > 0.0, beta, 1.0), 0.0)
        return after, vector, beta, found.at[:, i].set(jnp.stack([alpha, beta]))

    first = start, jnp.zeros_like(start), jnp.asarray(0.0), jnp.zeros((2, steps))
    return jax.lax.fori_loop(0, steps, step, first)[-1]
