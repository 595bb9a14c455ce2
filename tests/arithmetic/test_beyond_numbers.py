"""No operation has a finite bound on what an infinity, a NaN or an overflow made.

Every operation of the interface is run on values of which one entry may be anything,
on entries that are no number, and on entries next to fp32's largest. NumPy computes
the same in the execution's precision, entry by entry and sum by sum. Where the bound
of an element is finite NumPy's result must be within it; so NaN never is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import (
    AbstractArithmetic,
    Bounded,
    BoundedArithmetic,
    RoundingModel,
    Weight,
)
from lyapunov.arithmetic.bounded import constant
from lyapunov.formats import FORMATS
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL


LARGEST = 3e38
FP64 = 2.0**-48
SITES = {"kept": "fp16", "angle": "fp32"}
MODELS = {
    "fp32": (KERNEL.model, np.float32),
    "exact": (RoundingModel.none, np.float64),
}
# they take or return no values
OF_NO_VALUES = {"stores", "observe", "scan_numbers", "within"}

CAUSAL = np.tril(np.ones((3, 4)), k=1)
WEIGHT = np.array([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -3.0]])


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, and NumPy's own way of computing it in the operands' dtype."""

    run: Callable[..., Any]
    """(interpreter, Bounded...) -> Bounded."""
    own: Callable[..., np.ndarray]
    operands: tuple[tuple[int, ...], ...] = ((3, 4),)
    domains: tuple[str, ...] = ("any",)
    """What an execution's operands are in: `any`, `>=0`, `<=0`, or `share` of 1."""
    wide: bool = False
    """Whether more entries are lost than NaN spreads to."""


def total(terms, axis):
    """A sum of one term after another."""
    return np.take(np.cumsum(terms, axis=axis, dtype=terms.dtype), -1, axis=axis)


def one_hot_of_largest(x, count):
    """NaN as the largest, as torch has it."""
    order = np.argsort(-x, axis=-1, kind="stable")
    order = np.where(
        np.isnan(x).any(-1, keepdims=True), np.argsort(~np.isnan(x)), order
    )
    return np.eye(x.shape[-1], dtype=x.dtype)[order[..., :count]].sum(-2)


def eager_softmax(x):
    """With an additive mask, as transformers' eager attention."""
    mask = np.where(CAUSAL > 0, 0.0, -np.inf).astype(x.dtype)
    x = x + mask
    powers = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return powers / total(powers, -1)[..., None]


def normalised(x, centred):
    size, one = x.shape[-1], x.dtype.type
    if centred:
        x = x - (total(x, -1) / one(size))[..., None]
    square = total(x * x, -1)[..., None] / one(size)
    return x * (one(1) / np.sqrt(square + one(1e-5)))


def phi(x, tanh):
    if tanh:
        inner = x.dtype.type(0.7978845608028654) * (x + x.dtype.type(0.044715) * x**3)
        return x * (1 + np.tanh(inner)) / 2
    import scipy.special

    return x * ((1 + scipy.special.erf(x / x.dtype.type(2**0.5))) / 2).astype(x.dtype)


def conv(x, weight, bias):
    seq = x.shape[0] - weight.shape[1] + 1
    out = np.broadcast_to(bias, (seq, x.shape[1])).copy()
    for tap in range(weight.shape[1]):
        out = out + x[tap : tap + seq] * weight[:, tap]
    return out


def stepped(state, dt, drive, B, A):
    return np.exp(dt * A) * state + drive * B[:, None]


def scanned(state, a, b):
    for i in range(len(a)):
        state = a[i] * state + b[i]
    return state


def scan(at, state, a, b):
    body = lambda at, state, given: (at.advance(state, *given), ())
    return at.scan(body, at.initial_state(state), (a, b))[0]


PAIR = {"operands": ((3, 4), (3, 4)), "domains": ("any", "any")}
STATE = (4, 3)
STEP = {
    "operands": (STATE, (3,), (3,), (4,), (1, 3)),
    "domains": ("any", ">=0", "any", "any", "<=0"),
    "wide": True,
}
READ = {
    "operands": (STATE, (4,), (3,)),
    "domains": ("any",) * 3,
}
ADVANCE = {"operands": (STATE,) * 3, "domains": ("any", "share", "any"), "wide": True}
step = lambda at, h, dt, drive, B, A: at.finish(
    at.step(at.initial_state(h), dt, drive, B, A)
)

CASES = {
    "store": Case(lambda at, x: at.store("kept", x), lambda x: x.astype(np.float16)),
    "may_store": Case(
        lambda at, x: at.may_store("kept", x), lambda x: x.astype(np.float16)
    ),
    "store_angle": Case(
        lambda at, x: at.store_angle("angle", x), lambda x: x.astype(np.float32)
    ),
    "add": Case(lambda at, x, y: at.add(x, y), np.add, **PAIR),
    "add alone": Case(lambda at, x, y: at.add(x, y, alone=True), np.add, **PAIR),
    "multiply": Case(lambda at, x, y: at.multiply(x, y), np.multiply, **PAIR),
    "multiply alone": Case(
        lambda at, x, y: at.multiply(x, y, alone=True), np.multiply, **PAIR
    ),
    "negate": Case(lambda at, x: at.negate(x), np.negative),
    "exp": Case(lambda at, x: at.exp(x), np.exp),
    "decay": Case(
        lambda at, x, y: at.decay(x, y),
        lambda x, y: np.exp(x * y),
        ((3, 4), (3, 4)),
        (">=0", "<=0"),
    ),
    "softplus": Case(
        lambda at, x: at.softplus(x),
        lambda x: np.where(x > 20, x, np.log1p(np.exp(x))),
    ),
    "silu": Case(lambda at, x: at.silu(x), lambda x: x / (1 + np.exp(-x))),
    "gelu": Case(lambda at, x: at.gelu(x), lambda x: phi(x, False)),
    "gelu tanh": Case(lambda at, x: at.gelu(x, tanh=True), lambda x: phi(x, True)),
    "relu_squared": Case(
        lambda at, x: at.relu_squared(x), lambda x: np.maximum(x, 0) ** 2
    ),
    "sigmoid": Case(lambda at, x: at.sigmoid(x), lambda x: 1 / (1 + np.exp(-x))),
    "tanh": Case(lambda at, x: at.tanh(x), np.tanh),
    "largest": Case(
        lambda at, x: at.largest(x, 2), lambda x: one_hot_of_largest(x, 2), wide=True
    ),
    "shares": Case(
        lambda at, x: at.shares(x),
        lambda x: x / total(x, -1)[..., None],
        domains=(">=0",),
    ),
    "shares with a floor": Case(
        lambda at, x: at.shares(x, 0.5),
        lambda x: x / (total(x, -1)[..., None] + x.dtype.type(0.5)),
        domains=(">=0",),
    ),
    "softmax": Case(lambda at, x: at.softmax(x, CAUSAL), eager_softmax),
    "layer_normalise": Case(
        lambda at, x: at.layer_normalise(x, 1e-5), lambda x: normalised(x, True)
    ),
    "rms_normalise": Case(
        lambda at, x: at.rms_normalise(x, 1e-5), lambda x: normalised(x, False)
    ),
    "matmul": Case(
        lambda at, x: at.matmul(x, Weight(jnp.asarray(WEIGHT))),
        lambda x: total(x[:, None] * WEIGHT.astype(x.dtype), -1),
    ),
    "matmul of known norm": Case(
        lambda at, x: at.matmul(x, Weight(jnp.asarray(WEIGHT), 6.0), jnp.ones(2)),
        lambda x: total(x[:, None] * WEIGHT.astype(x.dtype), -1) + 1,
    ),
    "join": Case(
        lambda at, x, y: at.join([x, y]), lambda x, y: np.concatenate([x, y]), **PAIR
    ),
    "carry": Case(lambda at, x: at.carry(x), lambda x: x),
    "view": Case(lambda at, x: at.view(lambda a: a[:, ::-1], x), lambda x: x[:, ::-1]),
    "clip": Case(lambda at, x: at.clip(x, -1.0, 1.0), lambda x: np.clip(x, -1, 1)),
    "mask": Case(
        lambda at, x: at.mask(x, CAUSAL), lambda x: x * CAUSAL.astype(x.dtype)
    ),
    "reached": Case(
        lambda at, x, y: at.reached(x, y),
        lambda x, y: x + total(x.dtype.type(0) * y, -1),
        ((3, 4), (4, 5)),
        ("any", "any"),
    ),
    "cumsum": Case(lambda at, x: at.cumsum(x), lambda x: np.cumsum(x, 0, x.dtype)),
    "cumsum serial": Case(
        lambda at, x: at.cumsum(x, serial=True), lambda x: np.cumsum(x, 0, x.dtype)
    ),
    "wrap": Case(
        lambda at, x: at.wrap(x),
        lambda x: x - x.dtype.type(2 * np.pi) * np.floor(x / x.dtype.type(2 * np.pi)),
        domains=(">=0",),
    ),
    "fading": Case(lambda at, x: at.fading(x), lambda x: np.exp(np.minimum(x, 0))),
    "einsum": Case(
        lambda at, x, y, start: at.einsum("ij,kj->ik", x, y, start),
        lambda x, y, start: start + total(x[:, None] * y, -1),
        ((3, 4), (2, 4), (3, 2)),
        ("any",) * 3,
    ),
    "fixed": Case(lambda at, x: at.fixed(x.value), lambda x: x),
    "turns": Case(lambda at, x: at.turns(x, 2)[0], np.cos),
    "turns sin": Case(lambda at, x: at.turns(x, 2)[1], np.sin),
    "causal_conv": Case(
        lambda at, x, w, b: at.causal_conv(x, w, b),
        conv,
        ((5, 3), (3, 2), (3,)),
        ("any",) * 3,
    ),
    "advance": Case(
        lambda at, h, a, b: at.finish(at.advance(at.initial_state(h), a, b)),
        lambda h, a, b: a * h + b,
        **ADVANCE,
    ),
    "step": Case(step, stepped, **STEP),
    "drive_row": Case(
        lambda at, h, dt, drive, B, A: step(at, h, dt, drive, at.drive_row(B), A),
        stepped,
        **STEP,
    ),
    "contract": Case(
        lambda at, h, c, start: at.contract(h, c, start=start),
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "contract of a state": Case(
        lambda at, h, c, start: at.contract(at.initial_state(h), c, start=start),
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "read_out_row": Case(
        lambda at, h, c, start: at.contract(h, at.read_out_row(c), start=start),
        lambda h, c, start: start + total(c[:, None] * h, 0),
        **READ,
    ),
    "initial_state": Case(
        lambda at, h: at.contract(at.initial_state(h), np.ones(4)),
        lambda h: total(h, 0),
        (STATE,),
    ),
    "scan": Case(
        scan,
        scanned,
        (STATE, (2, *STATE), (2, *STATE)),
        ("any", "share", "any"),
        wide=True,
    ),
    "finish": Case(
        lambda at, h: at.finish(at.initial_state(h)), lambda h: h, (STATE,), wide=True
    ),
}


def test_every_operation_has_a_case():
    """Assert that the interface names no operation of values without a case here."""
    named = {
        name
        for name, member in vars(AbstractArithmetic).items()
        if callable(member) and not name.startswith("_")
    }
    assert {name.split()[0] for name in CASES} == named - OF_NO_VALUES


@functools.cache
def compiled(name):
    """The operation of one case, for any inner arithmetic."""

    @jax.jit
    def run(sites, model, *operands):
        bound = CASES[name].run(
            BoundedArithmetic(sites, model, scan_depth=4), *operands
        )
        return bound.value, bound.error, bound.norm

    return run


def values(rng, case):
    """Operands of moderate numbers that fp16 holds, in their domains."""
    found = []
    for shape, domain in zip(case.operands, case.domains, strict=True):
        x = np.float64(np.float16(rng.uniform(0.25, 3.0, shape)))
        if domain == "any":
            x = x * np.sign(rng.normal(size=shape))
        found.append({"<=0": -x, "share": x / 4}.get(domain, x))
    return found


def members(domain):
    """What an entry of which nothing is known may be."""
    return {
        "any": (np.nan, np.inf, -np.inf),
        ">=0": (np.nan, np.inf),
        "<=0": (np.nan, -np.inf),
        "share": (np.nan,),
    }[domain]


def run(name, model, operands, errors):
    """Value, error and norm of a result."""
    sites = {site: FORMATS[form].numbers() for site, form in SITES.items()}
    given = [
        Bounded(*map(jnp.asarray, pair)) for pair in zip(operands, errors, strict=True)
    ]
    found = compiled(name)(sites, MODELS[model][0](), *given)
    return tuple(np.asarray(part) for part in found)


def assert_held(case, model, operands, value, error, norm):
    """What NumPy has is within every finite bound, and rows with NaN have no norm."""
    with np.errstate(all="ignore"):
        own = case.own(*(x.astype(MODELS[model][1]) for x in operands))
        own = own.astype(np.float64)
        distance = np.abs(own - value)
    # where nothing rounds, two libraries' fp64 is compared
    held = distance <= error + FP64 * (1 + np.abs(value))
    assert (held | ~np.isfinite(error)).all(), (own, value, error)
    lost = ~np.isfinite(own)
    if norm.shape == own.shape[:-1]:
        assert not np.isfinite(norm[lost.any(-1)]).any()
    return lost


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CASES)
def test_an_entry_of_which_nothing_is_known(rng, name, model):
    """Assert no finite bound on what NaN or inf makes, and the others bit for bit."""
    case = CASES[name]
    base = values(rng, case)
    clean = [np.zeros_like(x) for x in base]
    before = run(name, model, base, clean)
    assert np.isfinite(before[1]).all()
    some_are_left = False
    for i, domain in enumerate(case.domains):
        place = tuple(rng.integers(n) for n in case.operands[i])
        errors = [e.copy() for e in clean]
        for unknown in (np.inf, np.nan):
            errors[i][place] = unknown
            if name == "fixed":  # it takes numbers alone
                continue
            after = run(name, model, base, errors)
            finite = np.isfinite(after[1])
            np.testing.assert_array_equal(after[1][finite], before[1][finite])
            for member in members(domain):
                moved = [x.copy() for x in base]
                moved[i][place] = member
                lost = assert_held(case, model, moved, *after)
                if member is np.nan and not case.wide:
                    np.testing.assert_array_equal(lost, ~finite)
            assert not finite.all()
            some_are_left |= finite.any()
    assert some_are_left or name == "fixed"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CASES)
def test_an_entry_that_is_no_number(rng, name, model):
    """Assert the same of what every execution has, such as its own stored inf."""
    case = CASES[name]
    base = values(rng, case)
    for i, domain in enumerate(case.domains):
        place = tuple(rng.integers(n) for n in case.operands[i])
        for member in members(domain):
            moved = [x.copy() for x in base]
            moved[i][place] = member
            errors = [np.asarray(constant(x).error) for x in moved]
            assert errors[i][place] == np.inf
            assert_held(case, model, moved, *run(name, model, moved, errors))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sign", ["one", "alternating"])
def test_numbers_next_to_the_largest(rng, name, sign):
    """Assert no finite bound where fp32 overflows on the way."""
    case = CASES[name]
    base = values(rng, case)
    clean = [np.zeros_like(x) for x in base]
    for i, domain in enumerate(case.domains):
        if domain == "share":
            continue
        moved = [x.copy() for x in base]
        signs = 1.0
        if sign == "alternating" and domain == "any":
            signs = np.resize([1.0, 1.0, -1.0], moved[i].shape)
        size = np.float64(np.float32(LARGEST))
        moved[i] = np.full(moved[i].shape, -size if domain == "<=0" else size) * signs
        assert_held(case, "fp32", moved, *run(name, "fp32", moved, clean))
