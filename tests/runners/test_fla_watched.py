"""What fla's chunks store is copied where its own code calls them, here a stand-in."""

import sys
import types
from typing import Any

import pytest
import torch

from lyapunov._errors import UsageError
from lyapunov.implementations import executions_for
from lyapunov.implementations.fla.watched import CHUNKS, watched_chunks
from lyapunov.sublayers import GatedDeltaSizes, KimiDeltaSizes, NetworkConfig


TOKENS, CHUNK = 6, 4
KINDS = {
    "gated_delta": GatedDeltaSizes(8, 2, 2, 4, 4, 4, 1e-6, 1e-6),
    "kimi_delta": KimiDeltaSizes(8, 2, 4, 4, 4, 1e-6, 1e-6, gate_rank=8),
}


def execution(kind: str, precision: str):
    config = NetworkConfig(50, 50, 8, (KINDS[kind],))
    return executions_for(config, [precision], measure="fla")[0]


@pytest.fixture
def stand_in(monkeypatch):
    """A module of fla whose function gives numbered tensors, and memory that nobody
    wrote where weights of later tokens would be."""

    given: dict[str, list[dict[str, Any]]] = {}
    modules: dict[str, Any] = {}
    for kind, one in CHUNKS.items():
        parts = one.module.split(".")
        for end in range(1, len(parts)):
            package: Any = types.ModuleType(".".join(parts[:end]))
            package.__path__ = []
            monkeypatch.setitem(sys.modules, package.__name__, package)
        modules[kind] = types.ModuleType(one.module)
        monkeypatch.setitem(sys.modules, one.module, modules[kind])

        def function(one=one, kind=kind, **named):
            given.setdefault(kind, []).append(named)
            found = [torch.full((1, TOKENS, 2, CHUNK), float(i)) for i in range(6)]
            if "QK_decayed" in one.results:
                found[one.results.index("QK_decayed")][:, 1, :, 2] = torch.nan
            return tuple(found[: len(one.results)])

        setattr(modules[kind], one.function, function)

    def make(kind: str):
        return CHUNKS[kind], modules[kind], given.setdefault(kind, [])

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_tensor_that_has_a_site_is_copied(kind, precision, stand_in):
    """Results and arguments, as they were when they were given."""
    one, module, given = stand_in(kind)
    original = getattr(module, one.function)
    calls: dict[tuple[str, str], list[Any]] = {}
    named = {name: torch.ones(1, TOKENS, 2, CHUNK) for name in one.given}
    with watched_chunks(execution(kind, precision), calls):
        results = getattr(module, one.function)(**named)
    assert getattr(module, one.function) is original
    assert given == [named]
    sites = {*one.given.values(), *(site for site in one.results if site)}
    assert {site for _, site in calls} == sites
    for (of, site), (copy,) in calls.items():
        assert of == kind
        if site in one.results:
            place = one.results.index(site)
            assert copy is not results[place]
            assert copy[0, 0, 0, 0] == place
        else:
            assert torch.all(copy == 1.0)


def test_memory_that_was_never_written_is_not_copied(stand_in):
    """Weights of later tokens: nothing reads them, and nothing may be held to them."""
    one, module, _ = stand_in("kimi_delta")
    calls: dict[tuple[str, str], list[Any]] = {}
    named = {name: torch.ones(1, TOKENS, 2, CHUNK) for name in one.given}
    with watched_chunks(execution("kimi_delta", "bf16"), calls):
        getattr(module, one.function)(**named)
    (pairs,) = calls["kimi_delta", "QK_decayed"]
    number = float(one.results.index("QK_decayed"))
    for token in range(TOKENS):
        for other in range(CHUNK):
            before = other <= token % CHUNK
            assert torch.all(pairs[0, token, :, other] == (number if before else 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_products_read_as_tf32_is_left_out(kind, stand_in):
    """Of an fp32 model: what they read is not what was stored."""
    one, module, _ = stand_in(kind)
    calls: dict[tuple[str, str], list[Any]] = {}
    named = {name: torch.ones(1, TOKENS, 2, CHUNK) for name in one.given}
    with watched_chunks(execution(kind, "fp32"), calls):
        getattr(module, one.function)(**named)
    sites = execution(kind, "fp32").of(kind).sites
    left_out = {"w", "QK_decayed", "k_decayed"} & {*one.results}
    assert not left_out & {site for _, site in calls}
    assert {site for _, site in calls} <= {*sites}


def test_another_version_of_fla_ends_in_a_line(stand_in):
    """One without the function that is watched."""
    one, module, _ = stand_in("kimi_delta")
    delattr(module, one.function)
    with (
        pytest.raises(UsageError, match=one.function),
        watched_chunks(execution("kimi_delta", "bf16"), {}),
    ):
        pass
