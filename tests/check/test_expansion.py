"""Keys stored in 16 bits can let a delta rule's state grow; where, and by how much."""

import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lyapunov.findings import CATALOGUE
from lyapunov.findings._rules import find
from lyapunov.formats import FORMATS
from lyapunov.questions._expansion import key_expansion
from lyapunov.results._check import KeyExpansion

from ..exponents.test_on_keys import matrices
from ..report.example import example_exponents, layer_divergence, precision_report


KEY_DIM, SEQ, HEADS = 64, 200, 2
TYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
UNITS = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def running(precision: str | None, **observed) -> tuple[dict[str, Any], Any]:
    sites = {} if precision is None else {"k_unit": FORMATS[precision]}
    execution: Any = SimpleNamespace(sites=sites)
    return observed, execution


def unit_keys(seed, *shape):
    key = np.random.default_rng(seed).normal(size=shape)
    return key / np.sqrt((key**2).sum(axis=-1, keepdims=True) + 1e-6)


def text(rate, gate=-1e-3, seed=0, key_heads=HEADS):
    """A text of one key, as padding has, whose norm a 16-bit format rounds up."""
    for trial in range(seed, seed + 2000):
        key = unit_keys(trial, 1, 1, key_heads, KEY_DIM)
        norms = [(key.astype(t).astype(float) ** 2).sum(-1) for t in TYPES.values()]
        if min(norm.min() for norm in norms) > 1 + 5e-5:
            break
    return {
        "log_gate": np.full((1, SEQ, HEADS), gate),
        "rate": np.full((1, SEQ, HEADS), rate),
        "key": np.repeat(key, SEQ, axis=1),
    }


@pytest.mark.parametrize("precision", TYPES)
def test_one_key_again_and_again_grows_by_what_is_said(precision):
    """Assert the growth is the norm of the product of the step matrices, by NumPy."""
    observed, execution = running(precision, **text(2.0, gate=-1e-5))
    found = key_expansion(observed, {}, execution)
    assert found is not None
    stored = observed["key"].astype(TYPES[precision]).astype(float)
    logs = []
    for head in range(HEADS):
        given: Any = [x[0] for x in (observed["log_gate"], observed["rate"], stored)]
        product = np.eye(KEY_DIM)
        for M in matrices(given, head):
            product = M @ product
        logs.append(math.log(np.linalg.norm(product, 2)))
    assert found.growth == pytest.approx(max(logs), rel=1e-9)
    assert (found.head, found.start, found.stop) == (int(np.argmax(logs)), 0, SEQ)
    assert found.steps == found.steps_total == SEQ * HEADS
    assert found.tokens == list(range(64))
    assert found.largest <= math.log(2 * (1 + UNITS[precision]) ** 2 - 1)


@pytest.mark.parametrize("precision", TYPES)
def test_what_cannot_expand_is_not_said_to(precision):
    """Assert silence of a sigmoid's rates whatever the keys, of keys that are not
    stored or not in 16 bits, and where the gate pays for what rounding adds."""
    most = 2 * math.log1p(2 * UNITS[precision])
    silent = [
        running(precision, **text(1.0, gate=0.0)),
        running(precision, **text(2.0, gate=-most)),
        running(None, **text(2.0, gate=0.0)),
        running(precision, log_gate=np.zeros((1, 4, 2))),
    ]
    for observed, execution in silent:
        assert key_expansion(observed, {}, execution) is None
    observed, execution = running("fp32", **text(2.0, gate=-1e-6))
    assert key_expansion(observed, {}, execution) is None


def test_what_was_stored_decides():
    """Assert that keys which the runner saw are taken, not the reference's."""
    observed, execution = running("bf16", **text(2.0, gate=-1e-4))
    short = {"k_unit": 0.9 * observed["key"]}
    assert key_expansion(observed, short, execution) is None
    stored = 0.99 * observed["key"]
    stored[0, 40:45] = 1.003 * observed["key"][0, 40:45]
    found = key_expansion(observed, {"k_unit": stored}, execution)
    assert found is not None
    assert found.tokens == [40, 41, 42, 43, 44]
    assert (found.start, found.stop, found.steps) == (40, 45, 5 * HEADS)
    each = math.log(2 * 1.003**2 - 1) - 1e-4
    assert found.growth == pytest.approx(5 * each, rel=1e-3)
    assert found.largest == pytest.approx(each, rel=1e-3)


def test_rates_count_as_they_are_stored():
    """Assert that a rate a little below 2 is 2 where its sigmoid is stored in bf16, and
    what it is where it is not stored."""
    observed, execution = running("bf16", **text(2 - 3e-3, gate=-1e-5))
    assert key_expansion(observed, {}, execution, 2.0) is None
    execution.sites["rate"] = FORMATS["bf16"]
    found = key_expansion(observed, {}, execution, 2.0)
    assert found is not None
    whole = key_expansion(observed | {"rate": observed["rate"] * 0 + 2}, {}, execution)
    assert found == whole
    seen = {"rate": np.full_like(observed["rate"], 0.5)}
    assert key_expansion(observed, seen, execution, 2.0) is None


def test_gates_of_channels_and_shared_keys():
    """Assert that the largest decay of a head counts, and neighbours share a key."""
    given = text(2.0, key_heads=1)
    gates = np.full((1, SEQ, HEADS, KEY_DIM), -5.0)
    gates[..., 3] = -1e-5
    gates[:, :, 1] = -5.0
    observed, execution = running("bf16", **given | {"log_gate": gates})
    found = key_expansion(observed, {}, execution)
    assert found is not None
    assert found.head == 0
    assert found.steps == SEQ


def expansion(growth):
    return KeyExpansion(3, 400, 4e-3, growth, 0, 1, 7, 20, [7, 9, 19])


@pytest.mark.parametrize(("growth", "hint"), [(0.1, True), (3.0, False)])
def test_it_is_a_finding_and_a_hint_below_a_doubling(growth, hint):
    """Assert code, words, limit, and that an execution without it has none."""
    rows = [layer_divergence(0, "bf16", expansion=expansion(growth))]
    run = precision_report("bf16", 1)
    exponents = example_exponents([])
    (found,) = (
        f
        for f in find(exponents, [type(run)(**{**vars(run), "layers": rows})])
        if f.code == "LYA022"
    )
    assert found.hint is hint
    assert found.severity == "warning"
    assert "3 of 400 steps of heads expand" in found.message
    assert "at tokens 7, 9, 19" in found.message
    assert f"a factor {math.exp(growth):.3g}" in found.message
    assert found.limit == math.log(2)
    assert "LYA022" not in [f.code for f in find(exponents, [run])]
    assert "linear_allow_neg_eigval" in CATALOGUE["LYA022"].explanation
