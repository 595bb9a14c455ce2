"""No operation has a finite bound on what an infinity, a NaN or an overflow made.

Every operation of the interface is run on values of which one entry may be anything,
on entries that are no number, and on entries next to fp32's largest. NumPy computes
the same in the execution's precision, entry by entry and sum by sum. Where the bound
of an element is finite NumPy's result must be within it; so NaN never is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import (
    AbstractArithmetic,
    Bounded,
    BoundedArithmetic,
    RoundingModel,
    constant,
)
from lyapunov.formats import FORMATS
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL

from .operations_by_numpy import CASES


LARGEST = 3e38
FP64 = 2.0**-48
SITES = {"kept": "fp16", "angle": "fp32"}
MODELS = {
    "fp32": (KERNEL.model, np.float32),
    "exact": (RoundingModel.none, np.float64),
}
# they take or return no values
OF_NO_VALUES = {"stores", "observe", "kernel"}


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
