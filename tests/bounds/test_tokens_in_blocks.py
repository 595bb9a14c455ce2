"""Sublayers in blocks of tokens: every number is that of all tokens at once.

Tokens meet in the state alone, which goes from block to block as it goes from token to
token; blocks change but the last bits of fp64's sums, which may run in another order.
That the whole is right is held to NumPy and torch elsewhere, and in
`families/test_checks_in_blocks` with blocks as well.
"""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov import _devices
from lyapunov.arithmetic import AbstractBoundedArithmetic
from lyapunov.arithmetic.rules import scans, sums
from lyapunov.bounds import adjoint, local, passes, probes
from lyapunov.bounds._way_back import Pulls
from lyapunov.implementations import _reference, executions_for
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.implementations.emulated import runner
from lyapunov.sublayers import NetworkConfig, token_blocks
from lyapunov.sublayers.residual import Incoming

from ..helpers import assert_within, forget_programs, gamma
from ..model.every_kind import SIZES
from ..model.full_parameters import change, parameters


# Blocks of 4 tokens, which is a chunk of Mamba-2's and of a delta rule's: two, and one
# of three tokens.
SEQ, WIDTH, BLOCK = 11, 8, 4
IN_BLOCKS = (
    "mlp",
    "attention",
    "experts",
    "shared",
    "mamba1",
    "mamba2",
    "mamba2 by tokens",
    "gated_delta",
    "gated_delta by tokens",
    "kimi_delta",
    "kimi_delta by tokens",
    "short_conv",
)
# fp64's sums: some thousand chained operations of nonnegative terms
SAME = gamma(4000, 2.0**-53)


class Case:
    """One sublayer, what it reads, and the execution that bounds it."""

    def __init__(self, name: str):
        self.sizes = SIZES[name.split()[0]]
        if self.sizes.kind == "experts":
            # the share of one expert is 1, and nothing moves it
            self.sizes = change(self.sizes, shares=False)
        if "delta" in name:
            self.sizes = change(self.sizes, chunk=BLOCK)
        if self.sizes.embedded:
            both = change(self.sizes.attention, width=2 * WIDTH, norm_behind=False)
            self.sizes = change(self.sizes, attention=both)
        config = NetworkConfig(50, 50, WIDTH, (self.sizes,))
        mode = "decode" if "by tokens" in name else "prefill"
        (network,) = executions_for(config, ["bf16"], mode=mode)
        self.execution = network.of(self.sizes.kind)
        self.p = parameters(self.sizes)
        rng = np.random.default_rng(3)
        draw = lambda: jnp.asarray(rng.normal(size=(2, SEQ, WIDTH)))
        embedded = draw() if self.sizes.embedded else None
        self.incoming = Incoming(draw(), draw(), None, embedded)
        self.start = self.p.initial_state()

    def found(self) -> dict[str, Any]:
        """All that a check asks of the sublayer."""
        own, flow, p, start = self.execution, self.sizes.flow, self.p, self.start
        _, exact, observed = _reference.run_layer(flow, self.incoming, p, start)
        numbers = passes.numbers_of(own)
        drawn = np.zeros(3, int)
        form = own.form, False
        _, output, stored, _ = runner.run_rounded(
            self.sizes, numbers.sites, {}, self.incoming, p, start, None, drawn, *form
        )
        record = SublayerRecord(0, "", *self.incoming[:2], output, stored, {})
        record = record._replace(embedded=self.incoming.embedded)
        t0 = local.operation_bounds(own, flow, record, p, start)
        one = jax.tree.map(lambda x: x[0], self.incoming)
        pulls = jnp.asarray(np.random.default_rng(5).normal(size=(2, SEQ, WIDTH)))
        effects, before = adjoint._through_sublayer(
            flow, [numbers.sites], one, Pulls(pulls, pulls, pulls), p, start,
            False, own.form,
        )  # fmt: skip
        return {
            "exact": exact, "observed": observed, "output": output, "stored": stored,
            "T0": t0, "T1": self.bounded(True), "before any run": self.bounded(False),
            "T2": effects, "before": before.stream,
        }  # fmt: skip

    def bounded(self, centred: bool):
        """T1's pass. A centred one says next to nothing of the scan: a store behind it
        has no error where no tie is near."""
        maker = passes.Interpreter(self.execution, SEQ, centred)
        return passes.bounded_pass(
            self.sizes.flow, maker, passes.numbers_of(self.execution),
            passes.without_error(self.incoming), self.p, self.start,
        )  # fmt: skip


@functools.cache
def whole(name: str) -> dict[str, Any]:
    return Case(name).found()


@pytest.fixture
def sums_in_fp64(monkeypatch):
    """The one sum that bounds make in fp32 is fp64's: its order, which it is inflated
    for, goes with the number of rows, and moves it by far more than `SAME`."""

    def summed(x, size):
        found = jnp.asarray(x, jnp.float64) @ jnp.asarray(size, jnp.float64).T
        return found * sums.fp32_inflation(x.shape[-1])

    forget_programs()
    monkeypatch.setattr(sums, "_summed_in_fp32", summed)


@pytest.fixture
def in_blocks(monkeypatch):
    """Tokens go four at a time, whatever is widest."""
    forget_programs()
    monkeypatch.setattr(token_blocks, "tokens_at_once", lambda *_: BLOCK)
    yield
    forget_programs()


def assert_same(found, expected, what="") -> None:
    """Assert all arrays equal but for fp64's sums, each on its own largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(expected),
        strict=True,
    )
    for (path, one), other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        place = what + jax.tree_util.keystr(path)
        known = np.isfinite(other)
        np.testing.assert_array_equal(np.isfinite(one), known, place)
        size = np.max(np.abs(other), initial=0.0, where=known)
        assert_within(one[known], other[known], SAME * size, place)


@pytest.mark.slow
@pytest.mark.usefixtures("sums_in_fp64")
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_have_the_numbers_of_all_tokens(name, request):
    """Assert it of values, stores, T0, T1, adjoints and what is observed."""
    expected = whole(name)
    assert expected["stored"]
    assert np.max(np.asarray(expected["T1"].output.error)) > 0
    request.getfixturevalue("in_blocks")
    assert_same(Case(name).found(), expected, name)


@pytest.mark.slow
@pytest.mark.usefixtures("sums_in_fp64")
@pytest.mark.parametrize("name", ["mamba1", "mamba2 by tokens"])
def test_a_scan_that_ends_with_its_block_is_caught(name, request, monkeypatch):
    """Assert that a bound which begins anew in each block is another one.

    Between two blocks magnitudes are no smaller than the state that they cancel to, and
    a scan in other brackets holds none of the states between.
    """
    expected = Case(name).bounded(False)
    request.getfixturevalue("in_blocks")
    monkeypatch.setattr(
        AbstractBoundedArithmetic,
        "_after_scan",
        lambda at, state: scans.finish(at, state),
    )
    found = Case(name).bounded(False)
    with pytest.raises(AssertionError):
        assert_same(found.output, expected.output)


def test_a_text_in_two_calls_reads_what_it_does_in_one(monkeypatch):
    """Assert that the state behind blocks, and behind what is left, is the last one."""
    case = Case("mamba2")
    run = lambda x, start: jax.jit(
        lambda x, s: case.sizes.flow(probes.Exact(), x, case.p, s)
    )(x, start)
    x = case.incoming.residual[0]
    expected, last = run(x, case.start)
    monkeypatch.setattr(token_blocks, "tokens_at_once", lambda *_: BLOCK)
    first, state = run(x[:6], case.start)
    rest, state = run(x[6:], state)
    size = float(jnp.max(jnp.abs(expected)))
    assert_within(jnp.concatenate([first, rest]), expected, SAME * size)
    assert_same(state, last)


@pytest.mark.parametrize(
    ("widest", "multiple", "sequences", "tokens"),
    [(8192, 1, 1, 1024), (8512, 256, 1, 512), (8512, 256, 4, 256), (10**8, 1, 2, 2)],
)
def test_blocks_are_as_large_as_memory_says(widest, multiple, sequences, tokens):
    assert token_blocks.tokens_at_once(widest, multiple, sequences) == tokens


@pytest.mark.parametrize(
    ("stats", "tokens"),
    [
        ({"bytes_limit": 105 * 2**30}, 2048),
        ({"bytes_limit": 40 * 2**30}, 1024),
        ({"bytes_limit": 2**30}, 256),
        ({}, 256),
        (None, 256),
    ],
)
def test_blocks_on_a_gpu_are_as_large_as_its_memory_says(monkeypatch, stats, tokens):
    """Assert that 200 of the widest tensors fit, and no fewer tokens than on a CPU."""
    card = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(_devices, "devices", lambda: [card])
    found = token_blocks.tokens_at_once(3072, 1, 8)
    assert found == tokens
    assert found == 256 or found * 3072 * 8 * 8 * 200 <= stats["bytes_limit"]
