"""Scans that are called alone: their arguments as rows of tokens, and a `Mixer`.

As `mamba_ssm.ops.selective_scan_interface.selective_scan_fn` and
`mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined` of mamba_ssm 2.3.2 take
them; ports of either are called alike.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .._errors import UsageError
from ..models._from_torch import copied
from ..sublayers import ChunkScanSizes, SelectiveScanSizes
from ._mixer import Mixer, as_array


class ScanCall(NamedTuple):
    """One call of a scan."""

    mixer: Mixer
    read: Float[np.ndarray, "batch seq width"]
    """What the tokens brought, side by side."""


def selective_scan_call(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> ScanCall:
    """Take the arguments of `selective_scan_fn` apart.

    **Arguments:** (batch, channels, seq) for `u`, `delta` and `z`; `A`, (channels,
    d_state), real and negative; `B` and `C`, (batch, d_state, seq) or (batch, groups,
    d_state, seq); `D` and `delta_bias`, (channels).

    **Raises:** `UsageError` for another shape, a complex A, and B or C that no token
    changes.
    """
    del return_last_state
    given = {"u": u, "delta": delta, "B": B, "C": C}
    u, delta, B, C = (_tokens(name, value) for name, value in given.items())
    rates = _rates(A, 2)
    channels, d_state = rates.shape
    batch, _, seq = _shape(u, "u", 3)
    of_groups = []
    for name, value in (("B", B), ("C", C)):
        grouped = value[:, None] if value.ndim == 3 else value
        if grouped.ndim != 4 or grouped.shape[0] != batch or grouped.shape[3] != seq:
            raise UsageError(
                f"{name} of a scan has shape {value.shape}",
                hint="(batch, d_state, seq) or (batch, groups, d_state, seq): what no "
                "token changes is not followed",
            )
        of_groups.append(grouped)
    groups = of_groups[0].shape[1]
    fits = (
        u.shape[1] == channels
        and delta.shape == u.shape
        and of_groups[1].shape == of_groups[0].shape
        and of_groups[0].shape[2] == d_state
        and channels % groups == 0
    )
    if not fits:
        raise UsageError(
            f"a scan of u {u.shape}, delta {delta.shape}, A {rates.shape}, B {B.shape} "
            f"and C {C.shape}",
            hint="as selective_scan_fn takes them",
        )
    flat = [g.reshape(batch, groups * d_state, seq) for g in of_groups]
    parts = [u, delta, *flat]
    if z is not None:
        parts.append(_alike(_tokens("z", z), u, "z"))
    weights = _weights(rates, D, delta_bias, channels, channels)
    sizes = SelectiveScanSizes(
        channels=channels,
        d_state=d_state,
        groups=groups,
        softplus=bool(delta_softplus),
        gated=z is not None,
        dt_biased=delta_bias is not None,
    )
    rows = _side_by_side([np.swapaxes(part, 1, 2) for part in parts])
    return ScanCall(Mixer(sizes, weights), rows)


def chunk_scan_call(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    chunk_size: int,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> ScanCall:
    """Take the arguments of `mamba_chunk_scan_combined` apart.

    **Arguments:** `x` and `z`, (batch, seq, heads, head_dim); `dt`, (batch, seq,
    heads); `A` and `dt_bias`, (heads); `B` and `C`, (batch, seq, groups, d_state);
    `D`, (heads) or (heads, head_dim).

    **Raises:** `UsageError` for another shape, and for texts that begin in the middle.
    """
    del return_final_states, return_varlen_states
    begun = {"initial_states": initial_states, "seq_idx": seq_idx}
    begun["cu_seqlens"] = cu_seqlens
    for name, value in begun.items():
        if value is not None:
            raise UsageError(
                f"a scan was called with {name}, which is not followed",
                hint="whole sequences, each from a state of zeros",
            )
    given = {"x": x, "dt": dt, "B": B, "C": C}
    x, dt, B, C = (_tokens(name, value) for name, value in given.items())
    rates = _rates(A, 1)
    heads = len(rates)
    batch, seq, _, head_dim = _shape(x, "x", 4)
    _, _, groups, d_state = _shape(B, "B", 4)
    fits = (
        x.shape[2] == heads
        and dt.shape == (batch, seq, heads)
        and B.shape == C.shape == (batch, seq, groups, d_state)
        and heads % groups == 0
    )
    if not fits:
        raise UsageError(
            f"a scan of x {x.shape}, dt {dt.shape}, A {rates.shape}, B {B.shape} and C "
            f"{C.shape}",
            hint="as mamba_chunk_scan_combined takes them",
        )
    flat = lambda a: a.reshape(batch, seq, -1)
    parts = [flat(x), dt, flat(B), flat(C)]
    if z is not None:
        parts.append(flat(_alike(_tokens("z", z), x, "z")))
    low, high = (float(limit) for limit in dt_limit)
    sizes = ChunkScanSizes(
        heads=heads,
        head_dim=head_dim,
        d_state=d_state,
        chunk=int(chunk_size),
        groups=groups,
        softplus=bool(dt_softplus),
        gated=z is not None,
        dt_biased=dt_bias is not None,
        dt_limit=(low, high),
    )
    weights = _weights(rates, D, dt_bias, heads, heads * head_dim)
    return ScanCall(Mixer(sizes, weights), _side_by_side(parts))


SCANS: Mapping[str, Callable[..., ScanCall]] = {
    "selective_scan_fn": selective_scan_call,
    "mamba_chunk_scan_combined": chunk_scan_call,
}
"""Functions that are called alike, by name."""


def channels_last(kind: str, wrote: np.ndarray) -> np.ndarray:
    """What a scan gave, as (batch, seq, channels)."""
    if kind == "selective_scan":
        return np.ascontiguousarray(np.swapaxes(wrote, 1, 2))
    return wrote.reshape(*wrote.shape[:2], -1)


def taken_apart(name: str, given: tuple, named: Mapping[str, Any]) -> ScanCall:
    """The call of a scan from its arguments.

    **Raises:** `UsageError` for arguments that it does not take.
    """
    take = SCANS[name]
    try:
        inspect.signature(take).bind(*given, **named)
    except TypeError as error:
        raise UsageError(
            f"{name} was called otherwise than mamba_ssm's: {error}",
            hint=f"{name}{inspect.signature(take)}",
        ) from None
    return take(*given, **named)


def _tokens(name: str, value: Any) -> np.ndarray:
    """An argument on the host, in its own type."""
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(value, torch.Tensor)
    array = copied(value) if is_tensor else np.asarray(value)
    if array.dtype.kind not in "fV" or array.size == 0:
        raise UsageError(
            f"{name} of a scan is of {array.dtype} and shape {array.shape}",
            hint="real floats; a complex scan is not followed",
        )
    return array


def _rates(A: Any, axes: int) -> np.ndarray:
    """A in fp64.

    **Raises:** `UsageError` where it is complex or does not decay.
    """
    rates = _tokens("A", A).astype(np.float64)
    if rates.ndim != axes or not (rates < 0).all():
        raise UsageError(
            f"A of a scan has shape {rates.shape} and a largest entry of "
            f"{rates.max():.3g}",
            hint=f"{axes} axes, and negative everywhere: -exp(A_log)",
        )
    return rates


def _shape(array: np.ndarray, name: str, axes: int) -> tuple[int, ...]:
    if array.ndim != axes:
        raise UsageError(
            f"{name} of a scan has shape {array.shape}", hint=f"{axes} axes"
        )
    return array.shape


def _alike(array: np.ndarray, other: np.ndarray, name: str) -> np.ndarray:
    if array.shape != other.shape:
        raise UsageError(
            f"{name} of a scan has shape {array.shape}", hint=f"{other.shape}"
        )
    return array


def _weights(
    rates: np.ndarray, D: Any, bias: Any, rows: int, channels: int
) -> dict[str, np.ndarray]:
    """A, D and the bias of dt by canonical name."""
    weights = {"A_log": np.log(-rates)}
    skip = np.zeros(rows) if D is None else as_array("D", D).reshape(-1)
    if skip.size not in (rows, channels):
        raise UsageError(f"D of a scan has {skip.size} entries", hint=f"{rows}")
    weights["D"] = skip
    if bias is not None:
        weights["dt_bias"] = as_array("dt_bias", bias).reshape(-1)
        if weights["dt_bias"].size != rows:
            raise UsageError(
                f"the bias of dt has {weights['dt_bias'].size} entries", hint=f"{rows}"
            )
    return weights


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """What tokens bring, in the widest type of its parts."""
    widest = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return np.concatenate([part.astype(widest) for part in parts], axis=-1)
