"""Exponents of a whole teacher-forced stack of Mamba-1 layers.

Everything that a network carries from token to token, all layers' states and windows,
is one dynamical system driven by the token embeddings. Ordered with the last layer
first and each layer's state before its window, its step Jacobian is upper triangular:
a layer sees those below it, a state sees its window. So

- the eigenvalues of the product of T Jacobians are, exactly and for every T, the
  products of the layers' decays, and 0 for the windows;
- for stationary tokens the limits of log singular values over T are therefore those of
  the layers together, and -inf for the windows;
- at finite T the singular values differ from the eigenvalues. The largest difference
  of all exponents is measured here: it falls like T^-0.75, 0.05 nats per token at 8
  tokens and below 0.001 at 4096 in the median of the draws. Slower than 1/T, it seems
  because pairs of exponents that nearly agree have sums that cross again and again:
  the largest differences at long T are theirs, which is no proof.

`python -m analysis.stack_exponents` writes stack_exponents.json and .svg.
"""

import datetime
import json
import platform
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lyapunov.arithmetic import Exact, Weight
from lyapunov.sublayers.mamba1 import Mamba1Parameters, Mamba1State, mamba1
from lyapunov.sublayers.norm import Norm
from lyapunov.sublayers.residual import Incoming, sublayer
from studies.files import write
from studies.study import Study


STUDY = Study(
    "analysis.stack_exponents",
    "minutes",
    Path(__file__).parent / "results" / "stack_exponents.json",
    ("matplotlib", "flint"),
)
SETTINGS = {
    "seed": 20240600209,
    "layers": 3,
    "d_model": 4,
    "d_inner": 4,
    "d_state": 2,
    "d_conv": 3,
    "dt_rank": 2,
    "exact_tokens": [1, 2, 4, 6],
    "tokens": [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
    "draws": 6,
}

Jacobians = Float[Array | np.ndarray, "seq d d"]


class Stack(eqx.Module):
    """A teacher-forced network: the step takes one token's embedding."""

    layers: tuple[Mamba1Parameters, ...]

    def start(self):
        """Zeros, as ((state, window) of the last layer, ..., of the first)."""
        states = []
        for p in reversed(self.layers):
            d_inner, d_state = p.A_log.shape
            window = p.conv_weight.shape[1] - 1
            states.append((jnp.zeros((d_state, d_inner)), jnp.zeros((window, d_inner))))
        return tuple(states)

    def step_and_decays(self, state, x: Float[Array, " d_model"]):
        """The state after one token, and the log decays of every layer's states."""
        at = Exact()
        residual, hidden = x[None], jnp.zeros((1, x.shape[0]))
        after, log_decays = [], []
        for p, (h, window) in zip(self.layers, reversed(state), strict=True):
            start = Mamba1State(window=window, state=h)
            residual, hidden, new = sublayer(
                at, mamba1, Incoming(residual, hidden), p, start
            )
            after.append((new.state, new.window))
            log_decays.append(at.observed["dt"][0] * -jnp.exp(p.A_log.T))
        return tuple(reversed(after)), tuple(reversed(log_decays))

    def step(self, state, x: Float[Array, " d_model"]):
        """The state after one token."""
        return self.step_and_decays(state, x)[0]


def random_stack(
    seed: int,
    layers: int = 3,
    d_model: int = 4,
    d_inner: int = 4,
    d_state: int = 2,
    d_conv: int = 3,
    dt_rank: int = 2,
) -> Stack:
    """Layers with random weights of order 1, away from any initialisation."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return jnp.asarray(scale * rng.normal(size=shape))

    def layer():
        rows = dt_rank + 2 * d_state
        return Mamba1Parameters(
            norm=Norm(1 + draw(d_model, scale=0.1), None, 1e-5),
            in_proj=Weight(draw(2 * d_inner, d_model, scale=d_model**-0.5)),
            in_proj_bias=None,
            conv_weight=draw(d_inner, d_conv, scale=d_conv**-0.5),
            conv_bias=draw(d_inner, scale=0.1),
            x_proj=Weight(draw(rows, d_inner, scale=d_inner**-0.5)),
            dt_proj=Weight(draw(d_inner, dt_rank, scale=dt_rank**-0.5)),
            dt_bias=draw(d_inner) - 2,
            A_log=draw(d_inner, d_state, scale=0.7),
            D=draw(d_inner),
            out_proj=Weight(draw(d_model, d_inner, scale=d_inner**-0.5)),
            out_proj_bias=None,
        )

    return Stack(tuple(layer() for _ in range(layers)))


@eqx.filter_jit
def run(stack: Stack, xs: Float[Array, "seq d_model"]):
    """Dense step Jacobians (seq, d, d), and log decays (seq, d), -inf for windows."""
    _, unravel = ravel_pytree(stack.start())

    def flat_step(flat, x):
        return ravel_pytree(stack.step(unravel(flat), x))[0]

    def one(state, x):
        flat, _ = ravel_pytree(state)
        jacobian = jax.jacfwd(flat_step)(flat, x)
        after, log_decays = stack.step_and_decays(state, x)
        pairs = [
            (log_decay, jnp.full_like(window, -jnp.inf))
            for log_decay, (_, window) in zip(log_decays, state, strict=True)
        ]
        return after, (jacobian, ravel_pytree(pairs)[0])

    return jax.lax.scan(one, stack.start(), xs)[1]


def structure(jacobians: Jacobians, log_decays: Float[Array, "seq d"]) -> dict:
    """Is every Jacobian upper triangular with the decays on its diagonal?"""
    jacobians = np.asarray(jacobians)
    diagonal = np.diagonal(jacobians, axis1=1, axis2=2)
    decays = np.exp(np.asarray(log_decays))
    return {
        "largest_below_diagonal": float(np.abs(np.tril(jacobians, -1)).max()),
        "largest_above_diagonal": float(np.abs(np.triu(jacobians, 1)).max()),
        "largest_diagonal_error": float(np.abs(diagonal - decays).max()),
    }


def eigenvalues_unite(jacobians: Jacobians, log_decays, seed: int) -> dict:
    """Compare the product's characteristic polynomial with the layers' decays.

    In exact rationals, of the product of the fp64 Jacobians in a random order of
    coordinates, so that nothing of the triangular structure is presumed.
    """
    import flint

    def rational(x: float):
        return flint.fmpq(*float(x).as_integer_ratio())

    d = jacobians.shape[-1]
    order = np.random.default_rng(seed).permutation(d)
    product = flint.fmpq_mat(d, d, [int(i == j) for i in range(d) for j in range(d)])
    for jacobian in np.asarray(jacobians)[:, order][:, :, order]:
        entries = [rational(x) for x in jacobian.ravel()]
        product = flint.fmpq_mat(d, d, entries) * product

    united = flint.fmpq_poly([1])
    zeros = 0
    worst = 0.0
    diagonal = np.diagonal(np.asarray(jacobians), axis1=1, axis2=2)
    for column, logs in zip(diagonal.T, np.asarray(log_decays).T, strict=True):
        eigenvalue = flint.fmpq(1)
        for x in column:
            eigenvalue *= rational(x)
        united *= flint.fmpq_poly([-eigenvalue, 1])
        if eigenvalue == 0:
            zeros += 1
        else:
            # from the factors' logarithms, as the rational itself may underflow
            worst = max(worst, abs(float(np.log(column).sum() - logs.sum())))
    return {
        "tokens": len(jacobians),
        "characteristic_polynomials_equal": bool(product.charpoly() == united),
        "zero_eigenvalues": zeros,
        "largest_log_eigenvalue_error": worst,
    }


def log_singular_values(
    jacobians: Jacobians, rank: int, settle: int, sweeps: int = 6
) -> Float[np.ndarray, " rank"]:
    """Logarithms of the nonzero singular values of a product, in the log domain.

    The kernel is that of the first `settle` factors and is left out first. Then the
    factors are made triangular a few times, transposing the product each time, which
    grades it: large directions first (Stewart 1997, SIAM J. Sci. Comput. 18,
    1239-1246). Left is a product whose rows differ in scale and hardly in direction
    from an orthogonal system; Jacobi rotations of rows do the rest, each row as a
    unit vector and the logarithm of its norm.
    """
    factors = np.asarray(jacobians)
    head = factors[0]
    for factor in factors[1:settle]:
        head = factor @ head
    frame = np.linalg.svd(head)[2][:rank].T
    for _ in range(sweeps):
        triangles = []
        for factor in factors:
            frame, triangle = np.linalg.qr(factor @ frame)
            triangles.append(triangle)
        factors = np.stack([triangle.T for triangle in reversed(triangles)])
        frame = np.eye(rank)
    rows, logs = np.eye(rank), np.zeros(rank)
    for triangle in triangles:
        # of the entries on and above the diagonal only: the others are 0
        graded = np.where(np.tri(rank, k=-1) == 0, logs[None, :], -np.inf)
        scale = graded.max(axis=1)
        rows = (triangle * np.exp(graded - scale[:, None])) @ rows
        norms = np.linalg.norm(rows, axis=1)
        rows, logs = rows / norms[:, None], scale + np.log(norms)
    return np.sort(_orthogonalise(rows, logs))[::-1]


def _orthogonalise(rows, logs) -> Float[np.ndarray, " rank"]:
    """One-sided Jacobi (Hestenes) on rows e^logs times unit vectors: log norms."""
    rows, logs = rows.copy(), logs.copy()
    for _ in range(60):
        largest = 0.0
        for i in range(len(logs)):
            for j in range(i + 1, len(logs)):
                p, q = (i, j) if logs[i] >= logs[j] else (j, i)
                cosine = float(rows[p] @ rows[q])
                largest = max(largest, abs(cosine))
                ratio = np.exp(logs[q] - logs[p])
                gap = 1 - ratio**2
                root = np.hypot(gap, 2 * ratio * cosine)
                if gap + root == 0:
                    continue
                # the tangent of the angle is ratio * turn, and ratio may underflow
                turn = 2 * cosine / (gap + root)
                shorten = -0.5 * np.log1p((ratio * turn) ** 2)
                pair = (rows[p] + ratio**2 * turn * rows[q], rows[q] - turn * rows[p])
                for row, new in zip((p, q), pair, strict=True):
                    norm = np.linalg.norm(new)
                    rows[row] = new / norm
                    logs[row] += np.log(norm) + shorten
        if largest < 1e-14:
            return logs
    raise ArithmeticError("the rows did not become orthogonal in 60 sweeps")


def finite_time(jacobians: Jacobians, log_decays, settle: int, length: int) -> dict:
    """Exponents of the layers together, and log singular values / T, in order."""
    log_decays = np.asarray(log_decays)[:length]
    rank = int(np.isfinite(log_decays[0]).sum())
    united = np.sort(log_decays.mean(axis=0))[::-1][:rank]
    singular = log_singular_values(jacobians[:length], rank, settle) / length
    difference = singular - united
    return {
        "united": united.tolist(),
        "singular": singular.tolist(),
        "largest_difference": float(np.abs(difference).max()),
        "difference_of_largest": float(difference[0]),
    }


def study(settings: dict) -> dict:
    """Everything, as plain JSON types."""
    names = ("layers", "d_model", "d_inner", "d_state", "d_conv", "dt_rank")
    shape = {name: settings[name] for name in names}
    seed, draws = settings["seed"], settings["draws"]
    settle = shape["layers"] * (shape["d_conv"] - 1)
    stack = random_stack(seed, **shape)
    length = max(*settings["tokens"], *settings["exact_tokens"])
    xs = np.random.default_rng(seed + 1).normal(size=(draws, length, shape["d_model"]))
    runs = [run(stack, jnp.asarray(x)) for x in xs]
    rows = []
    for tokens in settings["tokens"]:
        found = [finite_time(*both, settle, tokens) for both in runs]
        differences = [one["largest_difference"] for one in found]
        rows.append(
            {
                "tokens": tokens,
                "largest_difference_median": float(np.median(differences)),
                "largest_difference_times_tokens": float(np.median(differences))
                * tokens,
                "largest_difference": differences,
                "difference_of_largest": [
                    one["difference_of_largest"] for one in found
                ],
                "first_draw": {k: found[0][k] for k in ("united", "singular")},
            }
        )
    jacobians, log_decays = runs[0]
    medians = [row["largest_difference_median"] for row in rows]
    slope = np.polyfit(np.log(settings["tokens"]), np.log(medians), 1)[0]
    return {
        "settings": settings,
        "dimension": jacobians.shape[-1],
        "structure": structure(jacobians, log_decays),
        "eigenvalues": [
            eigenvalues_unite(jacobians[:tokens], log_decays[:tokens], seed)
            for tokens in settings["exact_tokens"]
        ],
        "finite_time": rows,
        "slope_of_median_difference": float(slope),
    }


def environment() -> dict:
    """What this was run on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def draw(result: dict, path: Path) -> None:
    """Exponents over T on the left, the difference on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["finite_time"]
    tokens = [row["tokens"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="tight")
    united = np.array([row["first_draw"]["united"] for row in rows])
    singular = np.array([row["first_draw"]["singular"] for row in rows])
    first, *_ = left.plot(tokens, united, color="0.7")
    second, *_ = left.plot(tokens, singular, ".", color="C0")
    first.set_label("layers together (first draw)")
    second.set_label("log singular values / T")
    left.set(xscale="log", xlabel="tokens T", ylabel="exponent (nats per token)")
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    every = np.array([row["largest_difference"] for row in rows])
    median = [row["largest_difference_median"] for row in rows]
    right.loglog(tokens, every, ".", color="0.6")
    right.loglog(tokens, median, "o-", label="largest of all exponents, median")
    right.loglog(tokens, 1 / np.array(tokens), "--", color="0.5", label="1/T")
    right.set(xlabel="tokens T", ylabel="|log singular value / T - exponent|")
    right.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(given: list[str] | None = None) -> None:
    """Run the study and write it down."""
    path = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(path)
    with jax.enable_x64(True):
        result = study(SETTINGS) | {"environment": environment()}
    write(path, json.dumps(result, indent=1) + "\n")
    draw(result, path.with_suffix(".svg"))
    print(f"{result['dimension']} coordinates; {result['structure']}")
    for row in result["eigenvalues"]:
        print(row)
    for row in result["finite_time"]:
        print(
            f"T = {row['tokens']:5d}: largest difference, median "
            f"{row['largest_difference_median']:.3g}, times T "
            f"{row['largest_difference_times_tokens']:.3g}"
        )
    print(f"slope of the median: {result['slope_of_median_difference']:.2f}")
    print(f"wrote {path} and {path.with_suffix('.svg').name}")


if __name__ == "__main__":
    main()
