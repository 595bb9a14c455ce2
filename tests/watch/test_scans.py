"""Assert what is said of scans that networks call themselves."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import ArgumentError, UsageError
from lyapunov.mixers._scans import taken_apart


pytest.importorskip("torch")

import torch

from ..helpers import not_none
from . import networks
from .networks import (
    LENGTH,
    WIDTH,
    FourDirections,
    Heads,
    Mamba1Block,
    chunk_scan_in_torch,
    drawn,
    made,
    selective_scan_in_torch,
)
from .oracle import softplus


def image() -> torch.Tensor:
    return drawn(2, 4, 8, WIDTH)


SELECTIVE: dict[Any, str] = {selective_scan_in_torch: "selective_scan_fn"}
CHUNKED: dict[Any, str] = {chunk_scan_in_torch: "mamba_chunk_scan_combined"}


class Arguments:
    """Keeps what a scan was called with."""

    def __init__(self, function):
        self.function = function
        self.seen: list[dict[str, np.ndarray]] = []

    def __call__(self, *given, **named):
        names = self.function.__code__.co_varnames
        pairs = dict(zip(names, given, strict=False)) | named
        tensors = {n: t for n, t in pairs.items() if isinstance(t, torch.Tensor)}
        self.seen.append({n: t.detach().double().numpy() for n, t in tensors.items()})
        return self.function(*given, **named)


def hold(report, wanted: np.ndarray) -> None:
    """Exponents to 1e-12; bounds that hold, and are near."""
    (row,) = report.exponents.layers
    found = [row.max, row.min]
    np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)
    for precision in report.precisions:
        assert precision.count("violations") == 0
        assert precision.count("elements_unbounded") == 0
        (layer,) = precision.layers
        assert layer.local_l2 > 0
        assert 1.0 <= layer.bound_t1_ratio < 10.0


def test_four_directions_in_one_scan():
    """B and C by group, an offset on dt; no convolution, no gate."""
    network = made(FourDirections)
    network.scan = scan = Arguments(selective_scan_in_torch)
    report = lyapunov.watch(network, scans={scan: "selective_scan_fn"})(image())
    assert network.scan is scan
    (given,) = scan.seen
    dt = softplus(given["delta"] + given["delta_bias"][:, None])
    hold(report, given["A"] * dt.mean(axis=(0, 2))[:, None])
    assert report.exponents.layers[0].kind == "selective_scan"
    told = report.assumptions[0]
    assert "what it gave in fp32" in told


def test_a_scan_of_heads_by_the_name_in_its_module(monkeypatch):
    """The function is found where the network's module looks it up, and put back."""
    scan = Arguments(chunk_scan_in_torch)
    monkeypatch.setattr(networks, "chunk_scan_in_torch", scan)
    network = made(Heads)
    settings: dict[str, Any] = {"precisions": ["bf16"], "state_precision": "fp8_e4m3"}
    watch = lyapunov.watch(network, scans={scan: "mamba_chunk_scan_combined"})
    report = watch(drawn(2, LENGTH, WIDTH))
    assert networks.chunk_scan_in_torch is scan
    (given,) = scan.seen
    dt = softplus(given["dt"] + given["dt_bias"])
    hold(report, given["A"] * dt.mean(axis=(0, 1)))
    watch = lyapunov.watch(
        network, scans={scan: "mamba_chunk_scan_combined"}, **settings
    )
    coarse = watch(drawn(2, LENGTH, WIDTH))
    fine, narrow = report.precisions[0].layers[0], coarse.precisions[0].layers[0]
    assert not_none(narrow.local_l2) > 2 * not_none(fine.local_l2)
    assert coarse.precisions[0].count("violations") == 0


class Calls(torch.nn.Module):
    """Looks its scan up where mamba_ssm has it, twice, and has a block as well."""

    def __init__(self):
        super().__init__()
        self.block, self.inside = Mamba1Block(), FourDirections()

    def forward(self, x):
        place = sys.modules["mamba_ssm.ops.selective_scan_interface"]
        self.inside.scan = lambda *a, **n: place.selective_scan_fn(*a, **n)
        x = self.inside(self.inside(x))
        return self.block(x.flatten(1, 2))


def _with_mamba_ssm(monkeypatch) -> ModuleType:
    """Stand-ins for mamba_ssm's modules, whose scan is ours in torch."""
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    place = ModuleType("mamba_ssm.ops.selective_scan_interface")
    place.selective_scan_fn = selective_scan_in_torch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, place.__name__, place)
    return place


def test_mamba_ssms_own_are_known(monkeypatch):
    """Two calls of one module and a block: three rows, by their modules' names."""
    place = _with_mamba_ssm(monkeypatch)
    quick: dict[str, Any] = {"precisions": ["bf16"], "effort": "quick"}
    report = lyapunov.watch(made(Calls), **quick)(image())
    rows = [(row.kind, row.module) for row in report.exponents.layers]
    assert rows == [
        ("selective_scan", "inside: scan"),
        ("selective_scan", "inside: scan, call 2"),
        ("mamba1", "block"),
    ]
    assert place.selective_scan_fn is selective_scan_in_torch


def test_a_blocks_own_scan_is_no_row(monkeypatch):
    """What a known block calls inside is the block's."""
    place = _with_mamba_ssm(monkeypatch)

    class Calling(Mamba1Block):
        def forward(self, x):
            rows = torch.ones(1, 2, 3)
            place.selective_scan_fn(
                rows, rows, -torch.ones(2, 1), rows[:, None, :1], rows[:, None, :1]
            )
            return super().forward(x)

    quick: dict[str, Any] = {"precisions": ["bf16"], "effort": "quick"}
    report = lyapunov.watch(made(Calling), **quick)(drawn(2, LENGTH, WIDTH))
    assert [row.kind for row in report.exponents.layers] == ["mamba1"]


def _twice_the_skip(*given, **named):
    given = [*given]
    given[5] = 2.0 * given[5]
    return selective_scan_in_torch(*given, **named)


def test_another_function_is_refused():
    network = made(FourDirections)
    network.scan = _twice_the_skip
    with pytest.raises(UsageError, match="another function"):
        lyapunov.watch(network, scans={_twice_the_skip: "selective_scan_fn"})(image())
    network.scan = selective_scan_in_torch


U = torch.ones(1, 2, 5)
GOOD: dict[str, Any] = {
    "u": U,
    "delta": U,
    "A": -torch.ones(2, 3),
    "B": torch.ones(1, 1, 3, 5),
    "C": torch.ones(1, 1, 3, 5),
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"A": torch.ones(2, 3)}, "negative everywhere"),
        ({"A": -torch.ones(2, 3) + 1j}, "complex"),
        ({"B": torch.ones(2, 3)}, "no token changes"),
        ({"C": torch.ones(1, 1, 4, 5)}, "as selective_scan_fn takes them"),
        ({"delta": torch.ones(1, 3, 5)}, "as selective_scan_fn takes them"),
        ({"z": torch.ones(1, 1, 5)}, "z of a scan"),
        ({"D": torch.ones(7)}, "D of a scan has 7"),
        ({"delta_bias": torch.ones(7)}, "the bias of dt has 7"),
        ({"u": torch.ones(2, 5)}, "3 axes"),
    ],
)
def test_arguments_that_are_none(changes, told):
    with pytest.raises(UsageError) as error:
        lyapunov.mixers.selective_scan_call(**(GOOD | changes))
    assert told in f"{error.value.message} {error.value.hint}"


def test_calls_that_are_not_followed():
    x, heads = torch.ones(1, 5, 2, 3), torch.ones(1, 5, 2)
    group = torch.ones(1, 5, 1, 4)
    given: dict[str, Any] = {}
    given |= {"x": x, "dt": heads, "A": -torch.ones(2), "B": group, "C": group}
    given |= {"chunk_size": 4}
    with pytest.raises(UsageError, match="called with seq_idx"):
        lyapunov.mixers.chunk_scan_call(**given, seq_idx=torch.zeros(1, 5))
    with pytest.raises(UsageError, match="a scan of x"):
        lyapunov.mixers.chunk_scan_call(**{**given, "dt": torch.ones(1, 5, 3)})
    network = made(FourDirections)
    for scans, told in (
        ({3: "selective_scan_fn"}, "scans has 3"),
        ({selective_scan_in_torch: "scan"}, "scans has"),
    ):
        with pytest.raises(ArgumentError, match=told):
            lyapunov.watch(network, scans=scans)
    with pytest.raises(UsageError, match="no state-space block"):
        lyapunov.watch(network)

    with pytest.raises(UsageError, match="called otherwise") as error:
        taken_apart("selective_scan_fn", (U,), {"nobody": U})
    assert "delta_softplus" in error.value.hint
