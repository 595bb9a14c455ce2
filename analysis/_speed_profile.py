"""Where a GPU's time goes, kernel by kernel, from JAX's profiler."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax


def by_kernel(run: Callable) -> dict:
    """Milliseconds of device time by kernel name, from JAX's profiler."""
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        for path in Path(folder).rglob("*.xplane.pb"):
            data = jax.profiler.ProfileData.from_file(str(path))
            for plane in data.planes:
                if "GPU" not in plane.name:
                    continue
                for line in plane.lines:
                    if "Stream" not in line.name:
                        continue
                    for event in line.events:
                        name = event.name
                        took = event.duration_ns / 1e6
                        totals[name] = totals.get(name, 0.0) + took
    kinds: dict[str, float] = {}
    for name, took in totals.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + took
    largest = sorted(totals.items(), key=lambda item: -item[1])[:40]
    return {"kinds": kinds, "largest": dict(largest)}


def kind_of(name: str) -> str:
    """What a kernel of that name does."""
    low = name.lower()
    if "selective_scan" in low:
        return "scan kernel"
    if "gemm" in low or "cutlass" in low or "dot" in low:
        wide = "dgemm" in low or "f64" in low or "d884" in low or "tensorop_d" in low
        return "matrix products fp64" if wide else "matrix products, other"
    if "memcpy" in low or "memset" in low:
        return "copies"
    return "elementwise and reductions"
