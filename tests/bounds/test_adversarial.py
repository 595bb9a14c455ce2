"""Hard inputs to one tiny sublayer, against balls of 256 bits written apart from it.

Exact arithmetic is python-flint's, written from the paper and `selective_scan_ref`. The
fp64 reference has to be within its declared share of it; NumPy's kernel, which rounds,
within the bound around it, elementwise; and the library has to find no violation.
"""

import functools

import flint
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.elementwise import Elementwise, exceeding
from lyapunov.arithmetic import Exact, Weight
from lyapunov.bounds.local import (
    REFERENCE_SHARE,
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.sublayers.mamba1 import Mamba1Parameters, Mamba1State, mamba1
from lyapunov.sublayers.norm import Norm
from lyapunov.sublayers.residual import Incoming, sublayer
from oracles.kernels import mamba1 as kernel

from ..arithmetic.balls import BITS, above, arb, silu, softplus


WIDTH, INNER, STATES, RANK, TAPS = 4, 6, 2, 2, 3
EPSILON = 1e-5
SEQ = 12


def tiny(rng) -> dict[str, np.ndarray]:
    """Weights of one sublayer, fp32."""
    shapes = {
        "norm.weight": (WIDTH,),
        "in_proj.weight": (2 * INNER, WIDTH),
        "conv1d.weight": (INNER, TAPS),
        "conv1d.bias": (INNER,),
        "x_proj.weight": (RANK + 2 * STATES, INNER),
        "dt_proj.weight": (INNER, RANK),
        "dt_proj.bias": (INNER,),
        "A_log": (INNER, STATES),
        "D": (INNER,),
        "out_proj.weight": (WIDTH, INNER),
    }
    w = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    w["dt_proj.bias"] -= 3
    return w


def hard(case: str, seq: int, precision: str):
    """(weights, stream, output before) of one kind of trouble."""
    rng = np.random.default_rng(11)
    w = tiny(rng)
    before, hidden = rng.normal(size=(2, seq, WIDTH)).astype("f4")
    if case == "repeated":
        before[:], hidden[:] = before[0], hidden[0]
    elif case == "dt of 1e-5":
        w["dt_proj.weight"][:] = 0
        w["dt_proj.bias"][:] = np.log(np.expm1(1e-5))
    elif case == "dt of 20":
        w["dt_proj.weight"] *= 0.1
        w["dt_proj.bias"][:] = 20
    elif case == "slow decay":
        w["A_log"][:] = -14
    elif case == "fast decay":
        w["A_log"][:] = 9
    elif case == "subnormal states":
        # B of the format's smallest numbers or below, C large
        w["x_proj.weight"][RANK : RANK + STATES] *= np.float32(2.0**-124)
        w["x_proj.weight"][RANK + STATES :] *= 100
        w["D"][:] = 0
    elif case == "zero gates":
        w["in_proj.weight"][INNER:] = 0
    elif case == "zero weights":
        w = {name: np.zeros_like(x) for name, x in w.items()}
    elif case == "zero residual":
        before[:] = hidden[:] = 0
    elif case == "negative zeros":
        before[:] = hidden[:] = -0.0
        w["conv1d.bias"][:] = -0.0
    elif case == "cancelling residual":
        hidden = -before * np.float32(1 + 2.0**-7)
    elif case == "tiny residual":
        before, hidden = before * np.float32(1e-38), hidden * np.float32(1e-38)
    elif case == "outliers":
        w["norm.weight"][1] = 300
        w["D"][2] = 1e4
    elif case == "largest numbers":
        w["D"][2], w["out_proj.weight"][:, 2] = 3e4, 100
    elif case == "ties":
        # ones after the norm, and sums half way between two stored numbers
        before = np.sign(before) * np.float32(4)
        hidden[:] = 0
        unit = 2.0**-8 if precision == "bf16" else 2.0**-11
        w["norm.weight"][:] = 1
        w["in_proj.weight"][:] = np.tile([1, unit, 0, 0], (2 * INNER, 1))
        w["x_proj.weight"][:] = np.tile(
            [1, unit, 0, 0, 0, 0], (len(w["x_proj.weight"]), 1)
        )
    else:
        assert case == "plain"
    return (
        kernel.held(w, precision),
        before.astype("f4"),
        kernel.cast(hidden.astype("f4"), precision),
    )


CASES = (
    "plain",
    "repeated",
    "dt of 1e-5",
    "dt of 20",
    "slow decay",
    "fast decay",
    "subnormal states",
    "zero gates",
    "zero weights",
    "zero residual",
    "negative zeros",
    "cancelling residual",
    "tiny residual",
    "outliers",
    "largest numbers",
    "ties",
)


def dot(row, x):
    return sum((a * b for a, b in zip(row, x, strict=True)), flint.arb(0))


def in_balls(w, before, hidden):
    """The sublayer's output, token by token, as balls."""
    to_balls = np.vectorize(arb, otypes=[object])
    w = {name: to_balls(x) for name, x in w.items()}
    A = [[-a.exp() for a in row] for row in w["A_log"]]
    zero = flint.arb(0)
    h = [[zero] * STATES for _ in range(INNER)]
    window = [[zero] * INNER for _ in range(TAPS)]
    out = []
    for row in to_balls(before) + to_balls(hidden):
        mean = sum((x * x for x in row), zero) / WIDTH + arb(EPSILON)
        normed = [
            x / mean.sqrt() * g for x, g in zip(row, w["norm.weight"], strict=True)
        ]
        xz = [dot(r, normed) for r in w["in_proj.weight"]]
        window = [*window[1:], xz[:INNER]]
        u = [
            silu(dot(w["conv1d.weight"][c], [x[c] for x in window]) + bias)
            for c, bias in enumerate(w["conv1d.bias"])
        ]
        low = [dot(r, u) for r in w["x_proj.weight"]]
        B, C = low[RANK : RANK + STATES], low[RANK + STATES :]
        gated = []
        for c in range(INNER):
            dt = softplus(
                dot(w["dt_proj.weight"][c], low[:RANK]) + w["dt_proj.bias"][c]
            )
            for n in range(STATES):
                h[c][n] = (dt * A[c][n]).exp() * h[c][n] + dt * u[c] * B[n]
            y = dot(h[c], C) + w["D"][c] * u[c]
            gated.append(y * silu(xz[INNER + c]))
        out.append([dot(r, gated) for r in w["out_proj.weight"]])
    return out


def apart(x, balls) -> np.ndarray:
    """|x - true|, rounded up."""
    pairs = zip(np.ravel(x), (b for row in balls for b in row), strict=True)
    return np.reshape([above(abs(arb(v) - b)) for v, b in pairs], np.shape(x))


def parameters(w):
    wide = {name: jnp.asarray(x, jnp.float64) for name, x in w.items()}
    weight = lambda name: Weight(wide[name + ".weight"], jnp.inf)
    p = Mamba1Parameters(
        norm=Norm(wide["norm.weight"], None, EPSILON),
        in_proj=weight("in_proj"),
        in_proj_bias=None,
        conv_weight=wide["conv1d.weight"],
        conv_bias=wide["conv1d.bias"],
        x_proj=weight("x_proj"),
        dt_proj=weight("dt_proj"),
        dt_bias=wide["dt_proj.bias"],
        A_log=wide["A_log"],
        D=wide["D"],
        out_proj=weight("out_proj"),
        out_proj_bias=None,
    )
    start = Mamba1State(
        window=jnp.zeros((TAPS - 1, INNER)), state=jnp.zeros((STATES, INNER))
    )
    return with_operator_norms(p), start


@functools.cache
def bounds_for(seq: int) -> Elementwise:
    return Elementwise(mamba_ssm_prefill("bf16"), mamba1, seq)


def hold(case: str, seq: int, precision: str, library=False, **options):
    """Every comparison for one case; how far bound and execution are apart."""
    execution = mamba_ssm_prefill(precision)
    w, before, hidden = hard(case, seq, precision)
    p, start = parameters(w)
    with np.errstate(all="ignore"):
        stored = kernel.Kernel(w, precision, EPSILON, **options).run(before, hidden)
    records, _, t1 = bounds_for(seq)(execution, before, hidden, stored, p, p, start)
    worst = bounds_for(seq).worst(execution, before, hidden, p, start)

    flint.ctx.prec = BITS
    # the exact flow adds the stream without a store, as the balls do
    true = in_balls(w, before, hidden)
    lengths = np.array(
        [above(sum((b * b for b in row), arb(0)).sqrt()) for row in true]
    )
    own = apart(t1.value, true)
    assert np.all(np.linalg.norm(own, axis=-1) <= REFERENCE_SHARE * lengths)

    for site, record in records.items():
        assert exceeding(stored[site], record) == 0, (case, site)
    assert exceeding(stored["out"], t1) == 0, case
    finite = np.isfinite(worst) & np.isfinite(stored["out"])
    measured = apart(np.where(finite, stored["out"], 0), true)
    assert np.all((measured <= worst) | ~finite), case
    # differences and sums of these fp64 numbers, each rounded once
    around = (t1.error + own) * (1 + 2.0**-50)
    finite &= np.isfinite(t1.error)
    assert np.all((measured <= around) | ~finite), case
    # what is not finite is under no finite bound
    assert np.all(np.isfinite(stored["out"]) | ~np.isfinite(t1.error))
    if library:
        whole(execution, before, hidden, stored, p, start)
    return measured, around, worst


def whole(execution, before, hidden, stored, p, start):
    """The same by what people call."""
    wide = {k: jnp.asarray(v, jnp.float64)[None] for k, v in stored.items()}
    before, hidden = (jnp.asarray(x, jnp.float64)[None] for x in (before, hidden))
    record = SublayerRecord(0, "mamba1", before, hidden, wide["out"], wide, {})
    for comparison in operation_bounds(execution, mamba1, record, p, start).values():
        assert not np.any(comparison.violations)
    for centred in (True, False):
        found = sublayer_bound(
            execution, mamba1, record, p, None, start, centred=centred
        )
        assert not np.any(found.comparison.violations)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_hard_inputs_stay_within_their_bounds(case, precision):
    """Assert reference, T0, T1 centred and not, against true values."""
    hold(case, SEQ, precision, order="block_scan")
    hold(case, SEQ, precision, order="tree", fused=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_hard_inputs_are_no_violation_to_the_library(case):
    """Assert it by `operation_bounds` and `sublayer_bound`, in both formats."""
    for precision in ("bf16", "fp16"):
        hold(case, SEQ, precision, library=True)


def test_bounds_of_the_plain_case_are_not_vacuous():
    """Assert that the largest error is within 8 (centred) or 300 (not) of its bound."""
    measured, around, worst = hold("plain", SEQ, "bf16")
    assert around.max() <= 8 * measured.max()
    assert worst.max() <= 300 * measured.max()


@pytest.mark.slow
def test_one_token_stays_within_its_bounds():
    """Assert it for a sequence of one, of every kind."""
    for case in ("plain", "ties", "zero residual", "dt of 20", "outliers"):
        hold(case, 1, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("seq", [2047, 2048, 2049])
@pytest.mark.parametrize("case", ["plain", "repeated", "slow decay", "dt of 1e-5"])
def test_lengths_around_a_chunk_stay_within_their_bounds(case, seq):
    """Assert it where the block scan goes to its second chunk, and just before."""
    hold(case, seq, "bf16", order="block_scan")


def test_balls_are_those_of_the_flow():
    """Assert that exact flow and balls agree far beyond the declared share."""
    w, before, hidden = hard("plain", SEQ, "bf16")
    p, start = parameters(w)
    wide = Incoming(*(jnp.asarray(x, jnp.float64) for x in (before, hidden)))
    ours = np.asarray(sublayer(Exact(), mamba1, wide, p, start)[1])
    flint.ctx.prec = BITS
    true = in_balls(w, before, hidden)
    assert np.max(apart(ours, true)) <= 2.0**-40 * np.max(np.abs(ours))
    # and that an oracle with one weight moved is another one
    w["D"] = w["D"] * np.float32(1 + 2.0**-20)
    assert np.max(apart(ours, in_balls(w, before, hidden))) > 2.0**-30
