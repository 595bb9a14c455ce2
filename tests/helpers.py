"""Tolerances that are derived, a comparison that says where it failed, programs."""

import contextlib
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from lyapunov.arithmetic._programs import forget
from lyapunov.command._progress import BACKEND_COMPILE
from lyapunov.implementations import HeadRecord, SublayerRecord
from lyapunov.implementations._trace import Trace
from lyapunov.implementations.transformers._cache import cache_argument
from oracles.tolerances import gamma


__all__ = [
    "assert_within",
    "forget_programs",
    "gamma",
    "given_cache",
    "not_none",
    "programs_compiled",
]

T = TypeVar("T")


def forget_programs() -> None:
    """Have whatever comes next compiled anew."""
    eqx.clear_caches()
    jax.clear_caches()
    forget()


def given_cache(module: Any, cache: Any) -> dict[str, Any]:
    """A cache of transformers as keyword arguments of a call; nothing for None."""
    name = cache_argument(module)
    return {} if cache is None or name is None else {name: cache}


def not_none(x: T | None) -> T:
    """What a test knows to be there, such as a figure of a report."""
    assert x is not None
    return x


def of_sublayer(record: SublayerRecord | HeadRecord | None) -> SublayerRecord:
    """A record that is not a trace's last."""
    assert isinstance(record, SublayerRecord)
    return record


def parted(trace: Trace) -> tuple[list[SublayerRecord], HeadRecord]:
    """A trace's sublayers, and its head."""
    *sublayers, head = trace
    assert isinstance(head, HeadRecord)
    return list(map(of_sublayer, sublayers)), head


@contextlib.contextmanager
def programs_compiled():
    """Names of what XLA compiles, or reads from its cache, inside."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **about):
        if event == BACKEND_COMPILE:
            name = str(about.get("fun_name", event))
            found.append(name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_within(actual, expected, tolerance, what: str = "") -> None:
    """Fail with the worst place, both values and how far over the tolerance it is.

    `tolerance` is absolute and elementwise, or a scalar.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    distance = np.abs(actual - expected)
    limit = np.broadcast_to(tolerance, distance.shape)
    if np.all(distance <= limit):
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.where(distance <= limit, 0.0, distance / limit)
    place = np.unravel_index(np.nanargmax(over), over.shape)
    raise AssertionError(
        f"{what} at {place}: {actual[place]!r} against {expected[place]!r}, "
        f"off by {distance[place]:.3g}, allowed {limit[place]:.3g} "
        f"({over[place]:.3g} times)"
    )
