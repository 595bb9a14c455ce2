"""Parameters place by place: the next is read while the present one is at work."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._devices import chosen_device, has_gpu
from .._errors import LyapunovError
from .held import keeps, rounded


WAITED = "/lyapunov/parameters/waited"
"""The event of JAX's monitoring that says how long was waited for parameters."""
LARGE = 2**24
"""Bytes from which another program is cheaper than the way."""


class Held:
    """Hold the parameters of one place, as stored, and each in fp64 once it is asked
    for.

    **Arguments:**

    - `raw`: as stored, by name.
    """

    def __init__(self, raw: dict[str, np.ndarray]):
        self.raw = raw
        self._arrays: dict[tuple[str, str | None], Array] = {}

    def array(self, name: str, formats) -> Array:
        """Make a parameter in fp64, once for each format; what a format leaves as it
        is, is the array of no format."""
        key = name, None if formats is None else formats.parameter_format(name).name
        if key in self._arrays:
            return self._arrays[key]
        raw = self.raw[name]
        if formats is None:
            made = _widened(raw)
        else:
            fmt = formats.parameter_format(name)
            own = None if keeps(raw, fmt) else rounded(raw, fmt)
            if own is None or np.array_equal(own, raw.astype(np.float64)):
                made = self.array(name, None)
            else:
                made = jax.device_put(own)
        # another thread may have been sooner
        return self._arrays.setdefault(key, made)


def _widened(raw: np.ndarray) -> Array:
    """In fp64, on the device. To a GPU a large array goes as it is stored, a quarter of
    the bytes, and is widened there: exact, subnormal numbers as well.

    What has arrived is held to what was read: in one check of an 8B model on an H200
    all figures from one sublayer on were NaN, in the same check repeated none, and why
    is not known.

    **Raises:** `LyapunovError` where it arrives as something else three times.
    """
    if raw.nbytes < LARGE or raw.dtype == np.float64 or not has_gpu():
        return jax.device_put(raw.astype(np.float64))
    bits = np.dtype(f"uint{8 * raw.itemsize}")
    read = int(np.sum(raw.view(bits), dtype=np.uint64))
    for _ in range(3):
        there = jax.block_until_ready(jax.device_put(raw))
        wide = jax.block_until_ready(jnp.asarray(there, jnp.float64))
        stored = jax.lax.bitcast_convert_type(there, bits)
        arrived = int(jnp.sum(stored, dtype=jnp.uint64))
        same = bool(jnp.all(wide == jnp.asarray(there, jnp.float64)))
        if (arrived == read and same) or not np.all(np.isfinite(raw)):
            return wide
    raise LyapunovError(
        f"weights of {raw.nbytes} bytes arrive on the device as others than were read",
        hint="is its memory sound? nvidia-smi -q -d ECC; or --device cpu",
    )


class ReadAhead:
    """Read places; where one comes after its neighbour, the one behind it is read,
    widened and put on the device in a thread beside.

    Nothing but the present place and the next is held. What cannot be read is told to
    whoever asks for it, not sooner.

    **Arguments:**

    - `read`: parameters as stored, by place.
    - `places`: in order; others may be asked for as well.
    - `ahead`: False where nothing may be read before it is asked for.
    """

    def __init__(
        self,
        read: Callable[[Any], dict[str, np.ndarray]],
        places: Sequence[Any],
        *,
        ahead: bool = True,
    ):
        self._read = read
        self._places = places if ahead else ()
        self._reader = ThreadPoolExecutor(1, "lyapunov-reader")
        self._asking = Lock()
        self._present: tuple[Any, Held] | None = None
        self._before: int | None = -1
        self._next: tuple[Any, Future] | None = None

    def at(self, place: Any) -> Held:
        """Give the parameters of a place; the last one asked for stays in memory."""
        with self._asking:
            if self._present is not None and self._present[0] == place:
                return self._present[1]
            self._present = None
            found = self._taken(place)
            self._present = place, found
            self._begin_behind(place)
            return found

    def _taken(self, place: Any) -> Held:
        """What was read ahead, or what is read now."""
        begun, self._next = self._next, None
        began = time.monotonic()
        if begun is not None and begun[0] == place:
            found = begun[1].result()
        else:
            found = Held(self._read(place))
        jax.monitoring.record_event_duration_secs(WAITED, time.monotonic() - began)
        return found

    def _begin_behind(self, place: Any) -> None:
        """Read on, from the first or in the direction that `place` was come to."""
        now = self._places.index(place) if place in self._places else None
        before, self._before = self._before, now
        if now is None or before is None or abs(now - before) != 1:
            return
        further = 2 * now - before
        if 0 <= further < len(self._places):
            behind = self._places[further]
            work = self._reader.submit(self._whole, behind, chosen_device())
            self._next = behind, work

    def _whole(self, place: Any, device: Any) -> Held:
        """Read a place, and widen all of it, for whoever computes on that device."""
        with jax.enable_x64(True), jax.default_device(device):
            found = Held(self._read(place))
            for name in found.raw:
                found.array(name, None)
        return found
