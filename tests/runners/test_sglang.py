"""SGLang's operators: where they are found, how chunks are cut, what is refused."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lyapunov import load
from lyapunov._errors import MissingExtraError, UsageError
from lyapunov.implementations import RefusedError, implementation_named
from lyapunov.implementations._trace import IN_FRONT
from lyapunov.implementations._ways import Variant, parse_variant
from lyapunov.implementations.sglang import _operators
from lyapunov.implementations.sglang._operators import logical_chunks
from lyapunov.implementations.sglang.runner import ABOVE, sum_in_front
from lyapunov.implementations.vllm._operators import Operators
from lyapunov.implementations.vllm._schedule import Part, Turn
from lyapunov.questions._audit_ways import ways_of_source
from oracles.checkpoints.mamba_ssm import drawn, full_config, mamba_ssm_shapes, save
from tests.executions import ssd_models as ssd


@pytest.fixture
def found(monkeypatch):
    """`operators`, which forgets what it found; this machine has a GPU, and Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(_operators.FILES, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    _operators.find_operators.cache_clear()
    yield _operators.operators
    _operators.find_operators.cache_clear()


def test_what_is_not_there_is_named(found, monkeypatch, tmp_path):
    """Assert a line each: no GPU, no Triton, no SGLang, a folder of others, a version
    that is another."""
    with monkeypatch.context() as changed:
        changed.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match="torch sees none") as error:
            found()
        assert "sglang_emulated" in error.value.hint
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "triton", None)
        with pytest.raises(MissingExtraError, match="need Triton"):
            found()
    with pytest.raises(MissingExtraError, match="SGLang is not installed") as missing:
        found()
    assert _operators.FILES in missing.value.hint
    monkeypatch.setenv(_operators.FILES, str(tmp_path))
    with pytest.raises(UsageError, match="there is no sglang/kernels/ops/mamba"):
        found()
    for folder in _operators.FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sglang-0.5.22.dist-info").mkdir()
    with pytest.raises(UsageError, match=r"SGLang is 0\.5\.22 here"):
        found()


@pytest.mark.parametrize("size", [1, 4, 8])
def test_pieces_are_cut_in_the_stream(size):
    """Assert each token's piece by its place in the stream and its text, against a loop
    over tokens, and their number by SGLang's own formula."""
    rng = np.random.default_rng(size)
    for _ in range(50):
        lengths = rng.integers(1, 20, rng.integers(1, 6)).tolist()
        expected, last = [], None
        place = 0
        for text, length in enumerate(lengths):
            for _ in range(length):
                if last != (text, place // size):
                    expected.append((place // size, place % size))
                last = text, place // size
                place += 1
        pieces = logical_chunks(lengths, size)
        assert pieces == expected
        ends = np.cumsum(lengths)
        inside = int(np.sum(ends[:-1] % size > 0))
        assert len(pieces) == math.ceil(place / size) + inside


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = ssd.Sizes()
    return load(ssd.save(tmp_path_factory.mktemp("tiny"), ssd.drawn(sizes), sizes))


@pytest.fixture
def no_operators(monkeypatch):
    """Operators that are never reached."""
    nothing: Any = [None] * 7
    nothing = Operators(*nothing, interpreted=True, version="0.5.23")
    monkeypatch.setattr(_operators, "operators", lambda: nothing)


WINDOW = "SGLANG_MAMBA_CONV_DTYPE=float16"


def tried(model, variant=None, flags=WINDOW, precision="fp16"):
    one = implementation_named(f"sglang {flags}".strip())
    execution = one.execution(
        model.config, precision, architecture=model.layout.architecture
    )
    return list(one.runner(execution).trace(model, np.zeros((1, 6), int), variant))


@pytest.mark.parametrize(
    "way", [Variant("mixed", (3,)), Variant("drafts", (4, 3)), Variant("compiled")]
)
def test_ways_that_there_are_not(model, no_operators, way):
    with pytest.raises(UsageError, match=f"SGLang runs no text as {way}"):
        tried(model, way)
    assert implementation_named("sglang").refused_ways[way.kind]


@pytest.mark.parametrize(
    "flags",
    [
        "--tp 2",
        "--mamba-backend flashinfer",
        "--mamba-ssm-dtype float16 --enable-mamba-cache-stochastic-rounding",
        "--speculative-num-draft-tokens 4",
    ],
)
def test_servers_whose_operators_are_others(model, flags):
    with pytest.raises(UsageError, match="are not run here") as error:
        tried(model, flags=f"{WINDOW} {flags}")
    assert "--measure sglang_emulated" in error.value.hint


def test_a_mamba1_is_not_run(tmp_path, no_operators):
    config = full_config({"ssm_cfg": {"d_state": 6, "dt_rank": 2}})
    weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(0))
    model = load(save(tmp_path, weights, config))
    with pytest.raises(RefusedError, match="those of Mamba-2 are run"):
        tried(model)


def test_bf16_in_the_interpreter(model, no_operators):
    with pytest.raises(UsageError, match="multiplies no bf16"):
        tried(model, flags="", precision="bf16")


@pytest.mark.parametrize(
    ("lengths", "shared"), [([13], 5), ([16], 0), ([3, 4], 7), ([], 0), ([20, 4], 0)]
)
def test_sums_in_front_are_those_of_the_shared_chunk(lengths, shared):
    """Assert them against NumPy, from above, with steps in front of all texts."""
    rng, heads = np.random.default_rng(0), 3
    steps, own = 2, 6
    count = steps + sum(lengths) + own
    xz = torch.tensor(rng.normal(size=(count, 10)), dtype=torch.float16)
    bias, rates = rng.normal(size=heads), -rng.uniform(1, 9, heads)
    layer: Any = SimpleNamespace(
        sizes=SimpleNamespace(chunk=8, heads=heads),
        weights={"dt_bias": torch.tensor(bias), "A": torch.tensor(rates)},
    )
    ids = lambda tokens: np.zeros(tokens, int)
    parts = [Part(ids(1), 3, 1 + i, steps=True) for i in range(steps)]
    parts += [Part(ids(n), 0, 9 + i) for i, n in enumerate(lengths)]
    parts.append(Part(ids(own), 0, 30, seen=own))
    found = sum_in_front(layer, {"xz": xz}, Turn(tuple(parts)))
    if not shared:
        assert found == {}
        return
    end = steps + sum(lengths)
    dt = np.logaddexp(0, xz[end - shared : end, -heads:].double().numpy() + bias)
    exact = (dt * rates).sum(0)
    np.testing.assert_allclose(found[IN_FRONT].numpy(), ABOVE * exact, rtol=1e-12)
    # fp32 numbers' sum in fp32 is no further from zero
    rounded = (dt.astype(np.float32) * rates.astype(np.float32)).sum(0)
    assert (found[IN_FRONT].numpy() < rounded).all()


def test_nobody_in_front_of_steps():
    layer: Any = SimpleNamespace(sizes=SimpleNamespace(chunk=8), weights={})
    turn = Turn((Part(np.zeros(1, int), 3, 1, steps=True, seen=1),))
    assert sum_in_front(layer, {}, turn) == {}


@pytest.mark.parametrize("name", ["vllm_emulated", "sglang_emulated"])
def test_what_an_audit_has_not_is_told_once(model, name):
    """Assert a line a kind of the usual ways, and all of those that were asked for."""
    tokens = np.zeros((1, 64), int)
    ways, skipped = ways_of_source(model, name, tokens, ["bf16"], None, "fp32")
    kinds = [parse_variant(one.variant).kind for one in skipped]
    assert len(set(kinds)) == len(kinds)
    assert {"resumed", "preempted", "mixed", "batched"} <= set(kinds)
    assert "packed" in {*kinds, *(way.variant.kind for way in ways)}
    asked = ["resumed:8", "resumed:9", "mixed:3"]
    ways, skipped = ways_of_source(model, name, tokens, ["bf16"], asked, "fp32")
    assert ([one.variant for one in skipped], ways) == (asked, [])
