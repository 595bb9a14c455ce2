"""The teacher-forced stack: exponents unite, singular values do not."""

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jax.flatten_util import ravel_pytree

import lyapunov
from lyapunov.arithmetic import Exact
from lyapunov.sublayers.mamba1 import Mamba1State, mamba1

from ._check import counterexample, identity, induction, is_zero, lemma, limit
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("teacher_forced", "tokens are given, so no layer sees a later layer"),
    Hypothesis("bounded_couplings", "the blocks that couple layers are bounded by K"),
    Hypothesis("limits_exist", "each layer's mean log decays have limits"),
    Hypothesis("fixed_size", "each layer's state has a fixed number of entries"),
)


def derive(given):
    """Two blocks; any number of layers by taking all earlier ones as the first."""
    A, D, C, P, R, Q, U = sympy.symbols("A D C P R Q U", commutative=False)
    above = sympy.Integer(0) if "teacher_forced" in given else U
    step = sympy.Matrix([[A, above], [C, D]])
    product = sympy.Matrix([[P, 0], [Q, R]])
    after = step * product
    yield induction(
        "the product of T joint step Jacobians stays block lower triangular, and its "
        "diagonal blocks are the products of each layer's own (blocks do not commute)",
        base=is_zero(above),
        step=all(
            sympy.expand(found - wanted) == 0
            for found, wanted in (
                (after[0, 0], A * P),
                (after[0, 1], 0),
                (after[1, 1], D * R),
            )
        ),
        formulas=(after,),
    )
    yield lemma(
        "the eigenvalues of a block-triangular matrix are those of its diagonal "
        "blocks: at every length T those of the stack are the layers' together",
        "Horn and Johnson, Matrix Analysis, 2nd ed., section 0.9.4",
    )
    half = sympy.Rational(1, 2)
    one = sympy.Matrix([[half, 0], [1, half]])
    largest = max((one.T * one).eigenvals(), key=sympy.N)
    yield counterexample(
        "singular values are not: [[1/2, 0], [1, 1/2]] has both eigenvalues 1/2 and "
        "norm above 1, so a perturbation grows first",
        sympy.simplify(largest - 1).is_positive and one.eigenvals() == {half: 2},
        f"norm {sympy.N(sympy.sqrt(largest), 5)}",
    )
    T = sympy.Symbol("T", integer=True, positive=True)
    K, rho = sympy.symbols("K rho", positive=True)
    # the off-diagonal block is a sum of T products with one coupling in each
    coupling = K if "bounded_couplings" in given else K * 2**T
    growth = sympy.log(coupling) + sympy.log(T) + (T - 1) * sympy.log(rho)
    s = sympy.Symbol("s", integer=True, nonnegative=True)
    yield identity(
        "the corner after T tokens is a sum over the token s of the coupling: products "
        "of both blocks at most rho^k over k tokens, couplings at most K",
        sympy.summation(rho ** (T - 1 - s) * K * rho**s, (s, 0, T - 1)),
        T * K * rho ** (T - 1),
        sympy.Sum(rho ** (T - 1 - s) * K * rho**s, (s, 0, T - 1)),
    )
    yield limit(
        "with both blocks' products at most rho^k over k tokens, the corner is at most "
        "T K rho^(T-1): it adds nothing to the largest exponent log rho",
        growth / T,
        T,
        sympy.log(rho),
    )
    yield lemma(
        "all exponents, in the limit: for bounded couplings and existing limits "
        "(regular diagonal blocks) those of a triangular system are its diagonal's",
        "Lyapunov 1892; Barreira and Pesin, Lyapunov Exponents and Smooth Ergodic "
        "Theory, section 1.3; Adrianova 1995, chapter 3",
        applies="limits_exist" in given and "bounded_couplings" in given,
    )
    r, c, k, j = sympy.symbols("r c k j", integer=True)
    delta = sympy.KroneckerDelta
    summed = sympy.summation(
        delta(k, r + j) * delta(c, k + 1), (k, -sympy.oo, sympy.oo)
    )
    yield induction(
        "the conv window is a shift: the j-th power has its ones at column = row + j, "
        "which no entry is from j = width on: nilpotent, exponent -inf",
        base=is_zero(delta(c, r + 0) - delta(r, c)),
        step=is_zero(summed.subs(c, r + j + 1) - 1)
        and all(is_zero(summed.subs(c, r + j + 1 + off)) for off in (-2, -1, 1, 2)),
        formulas=(delta(c, r + j),),
    )
    t, d = sympy.symbols("t d", integer=True, positive=True)
    grows = d if "fixed_size" not in given else sympy.Integer(0)
    yield identity(
        "rows less columns of a step Jacobian: 0 for a state of fixed size",
        (t * d + grows) - t * d,
        sympy.Integer(0),
    )
    yield identity(
        "attention's cache breaks that: each token appends d entries and keeps all "
        "others unchanged, so the Jacobian is ((t + 1) d) x (t d) with the identity "
        "in it; no product of square matrices, and nothing is forgotten",
        (t + 1) * d - t * d,
        d,
    )


def reproduce(given):
    """Two Mamba-1 layers of the library in one joint step."""
    with jax.enable_x64(True):
        upper, diagonal, apart = 0.0, 0.0, 0.0
        for seed in range(2):
            found = _two_layers(seed, fed_back="teacher_forced" not in given)
            upper, diagonal = max(upper, found[0]), max(diagonal, found[1])
            apart = max(apart, found[2])
    yield Number(
        "two library layers, 6 tokens: largest entry above the diagonal blocks",
        upper,
        0.0,
        "a derivative by what is not read is exactly 0",
    )
    yield Number(
        "the same: diagonal blocks against exp(A sum dt), relative",
        diagonal,
        6 * 16 * (1 + 40) * UNIT,
        "16 units of exponents up to 40, 6 tokens",
    )
    yield Number(
        "the same: windows' blocks after d_conv - 1 tokens",
        apart,
        0.0,
        "nilpotent, so exactly 0",
    )
    # one state a layer: norm of the product against its eigenvalue
    J = np.array([[0.5, 0.0], [1.0, 0.5]])
    with jax.enable_x64(True):
        drive = 2.0 if "bounded_couplings" not in given else 1.0
        coupling = jnp.asarray(drive ** np.arange(400.0))

        def step(h, c):
            return jnp.stack([0.5 * h[0], c * h[0] + 0.5 * h[1]])

        result = lyapunov.lyapunov_spectrum(
            step, jnp.ones(2), coupling, method=lyapunov.QR()
        )
    shift = float(np.abs(np.asarray(result.exponents) + np.log(2)).max())
    yield Number(
        "exponents of that 2 x 2 example over 400 tokens against -log 2",
        shift,
        (np.log(400) + np.log(4)) / 400,
        "log(T K / rho) / T, the corner's share at this length",
    )
    yield Number(
        "its largest singular value, 1 less that",
        1 - float(np.linalg.norm(J, 2)),
        0.0,
        "it grows first",
    )


def _two_layers(seed, fed_back):
    """Largest entry above the blocks; the diagonal's and the windows' deviations."""
    rng = np.random.default_rng(seed)
    layers = [_parameters(rng) for _ in range(2)]
    empty = [p.initial_state() for p in layers]
    start, unravel = ravel_pytree([(s.state, s.window) for s in empty])
    start = start + jnp.asarray(rng.normal(size=start.size))
    tokens = jnp.asarray(rng.normal(size=(6, 1, 4)))

    def one(flat, token):
        if fed_back:
            token = token + flat[-4:]
        carried, stream, steps = [], token, []
        for p, (state, window) in zip(layers, unravel(flat), strict=True):
            at = Exact()
            out, after = mamba1(at, stream, p, Mamba1State(window, state))
            carried.append((after.state, after.window))
            steps.append(at.observed["dt"][0])
            stream = stream + out
        return ravel_pytree(carried)[0], steps

    product, flat = jnp.eye(start.size), start
    total = [0.0, 0.0]
    for token in tokens:
        J, _ = jax.jacfwd(one, has_aux=True)(flat, token)
        flat, steps = one(flat, token)
        product = J @ product
        total = [old + np.asarray(new) for old, new in zip(total, steps, strict=True)]
    product = np.asarray(product)
    half = start.size // 2
    states = layers[0].A_log.size
    upper = np.abs(product[:half, half:]).max()
    diagonal, windows = 0.0, 0.0
    for k, p in enumerate(layers):
        own = product[k * half : (k + 1) * half, k * half : (k + 1) * half]
        wanted = np.exp(total[k] * -np.exp(np.asarray(p.A_log)).T).ravel()
        block = own[:states, :states]
        diagonal = max(diagonal, np.abs(np.diag(block) / wanted - 1).max())
        diagonal = max(diagonal, np.abs(block - np.diag(np.diag(block))).max())
        windows = max(windows, np.abs(own[states:, states:]).max())
    return float(upper), float(diagonal), float(windows)


def _parameters(rng):
    """A small layer with the bundled model's parameters' form: d_model 4, d_inner 6."""
    from lyapunov.arithmetic import Weight
    from lyapunov.sublayers.mamba1 import Mamba1Parameters
    from lyapunov.sublayers.norm import Norm

    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return Mamba1Parameters(
        norm=Norm(jnp.ones(4), None, 1e-5),
        in_proj=Weight(normal(12, 4)),
        in_proj_bias=None,
        conv_weight=normal(6, 4),
        conv_bias=normal(6),
        x_proj=Weight(normal(2 + 4, 6)),
        dt_proj=Weight(normal(6, 2)),
        dt_bias=normal(6),
        A_log=normal(6, 2) - 2.0,
        D=normal(6),
        out_proj=Weight(normal(4, 6)),
        out_proj_bias=None,
    )


STATEMENT = Statement(
    "stack",
    "A teacher-forced stack of SSM layers has the exponents of its layers together",
    HYPOTHESES,
    "ours, from the block-triangular lemma (Horn and Johnson) and regularity "
    "(Lyapunov, Barreira and Pesin)",
    "lyapunov.exponents.gather_exponents; Mamba1JointRecurrence",
    derive,
    reproduce,
)
