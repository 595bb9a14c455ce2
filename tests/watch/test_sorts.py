"""Assert what `lyapunov.watch` says of every sort of network."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import lyapunov


pytest.importorskip("torch")

import torch

from oracles.networks.mamba_ssm import layer_norm, rms

from .networks import (
    LENGTH,
    WIDTH,
    BothWays,
    FourWays,
    InsideATransformer,
    PostNormUNet,
    Regressor,
    drawn,
    made,
)
from .oracle import of_mamba1, of_mamba2, of_mamba3, seen_by_hooks, weights_of


class Sort(NamedTuple):
    network: type
    inputs: Callable[[], torch.Tensor]
    calls: tuple[str, ...]
    """Names of the blocks, in the order of their calls."""
    exponents: Callable[..., np.ndarray]
    settings: Mapping[str, Any] = MappingProxyType({})
    most: float = 10.0
    """T1 over what was measured."""
    norms: Mapping[int, Callable[..., np.ndarray]] = MappingProxyType({})
    """Of calls behind a norm: it in fp64, on what the norm read."""


def _bytes() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, LENGTH)))


SORTS = {
    "both ways": Sort(
        BothWays,
        _bytes,
        ("forth", "back"),
        of_mamba1,
        norms={0: lambda x, w: layer_norm(x, w["weight"], w["bias"], 1e-5)},
    ),
    "four ways": Sort(
        FourWays, lambda: drawn(2, 4, 8, WIDTH), ("block",) * 4, of_mamba1
    ),
    "post-norm U-net": Sort(
        PostNormUNet, lambda: drawn(2, 2 * LENGTH, WIDTH), ("down", "up"), of_mamba2
    ),
    "regressor": Sort(
        Regressor,
        lambda: drawn(2, LENGTH, WIDTH),
        ("block",),
        lambda read, w: of_mamba3(read, w, angles=2),
        most=100.0,  # its angles add up over the text, and their errors with them
    ),
    "inside a transformer": Sort(
        InsideATransformer,
        lambda: drawn(LENGTH, 2, WIDTH),
        ("block",),
        lambda read, w: of_mamba1(np.swapaxes(read, 0, 1), w),
        {"sequence_first": ["block"]},
        norms={0: lambda x, w: rms(x, w["weight"], 1e-5)},
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=[pytest.mark.slow] * (one == "post-norm U-net"))
        for one in SORTS
    ],
)
def test_exponents_and_bounds(name):
    """Exponents to 1e-12 of NumPy's; no element above its bound, which is near."""
    sort = SORTS[name]
    network = made(sort.network)
    blocks = dict(network.named_modules())
    names = sorted(set(sort.calls))
    with (
        seen_by_hooks(network, names) as read,
        seen_by_hooks(network, ["norm"] * bool(sort.norms)) as before,
    ):
        report = lyapunov.watch(network, precisions=["bf16"], **sort.settings)(
            sort.inputs()
        )
    rows = report.exponents.layers
    titles = []
    for i, (row, block) in enumerate(zip(rows, sort.calls, strict=True)):
        if i in sort.norms:
            read[i] = sort.norms[i](before[i], weights_of(blocks["norm"]))
        wanted = sort.exponents(read[i], weights_of(blocks[block]))
        found = np.array([row.max, row.min], float)
        np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)
        again = sort.calls[:i].count(block)
        titles.append(f"{block}, call {again + 1}" if again else block)
    assert [row.module for row in rows] == titles
    assert [row.layer for row in rows] == list(range(len(rows)))
    (precision,) = report.precisions
    assert precision.count("violations") == 0
    assert precision.count("elements_unbounded") == 0
    for row in precision.layers:
        assert row.local_l2 is not None
        assert row.local_l2 > 0
        assert row.bound_t1_ratio is not None
        assert 1.0 <= row.bound_t1_ratio < sort.most
    assert report.summary.verdict in ("held", "findings")


def test_norm_in_front_is_taken_along():
    """One block reads the norm's output itself, the other a reversed copy of it."""
    network = made(BothWays)
    report = lyapunov.watch(network, precisions=["bf16"], effort="quick")(_bytes())
    told = " ".join(report.assumptions)
    assert "forth is mamba1 behind its norm" in told
    assert "back is mamba1: what it gave" in told


def test_two_forwards_and_blocks_never_called():
    """A context sees every call; what was not called is said."""
    network = made(BothWays)
    network.idle = made(FourWays).block
    with lyapunov.watch(network, precisions=["bf16"], effort="quick") as seen:
        network(_bytes())
        network(_bytes())
    report = seen.report()
    names = [row.module for row in report.exponents.layers]
    assert names == ["forth", "back", "forth, call 2", "back, call 2"]
    first, _, third, _ = report.exponents.layers
    assert first.max == third.max
    assert any("idle was never called" in line for line in report.assumptions)


def test_report_is_saved_and_read(tmp_path):
    """JSON, Markdown, HTML and text, as any report's."""
    network = made(Regressor)
    report = lyapunov.watch(network, precisions=["bf16"], effort="quick")(
        drawn(2, LENGTH, WIDTH)
    )
    for ending in ("json", "md", "html"):
        path = tmp_path / f"report.{ending}"
        report.save(path)
        assert "Regressor in memory" in path.read_text(encoding="utf-8")
    assert "mamba3" in str(report)
