"""Ways to break mamba_ssm's kernels: what they are given, or what they give back.

Each fault replaces one name that mamba_ssm calls by a function around the real one;
nothing is computed anew but what the fault changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple


SCAN = "mamba_ssm.ops.selective_scan_interface"
CONVOLUTION = "causal_conv1d_fwd_function"
SSD = "mamba_ssm.ops.triton.ssd_combined"
STEP1 = "mamba_ssm.modules.mamba_simple"
STEP2 = "mamba_ssm.modules.mamba2"
SISO = "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined"
BLOCK = "mamba_ssm.modules.block"


class Fault(NamedTuple):
    """One broken call."""

    name: str
    module: str
    attribute: str
    broken: Callable
    """(original, arguments, named arguments) -> what the call returns."""
    right: bool = False
    """A control: the same numbers made another way."""


@contextmanager
def patched(fault: Fault | None) -> Iterator[None]:
    """The fault in place, for as long as the block runs."""
    if fault is None:
        yield
        return
    holder = import_module(fault.module)
    original = getattr(holder, fault.attribute)
    # the scan of Mamba-1 is a function of an extension module
    inner = original.fwd if hasattr(original, "fwd") else original

    def call(*given, **named):
        return fault.broken(inner, list(given), named)

    replacement: Any = call
    if inner is not original:
        replacement = SimpleNamespace(fwd=call, bwd=original.bwd)
    setattr(holder, fault.attribute, replacement)
    try:
        yield
    finally:
        setattr(holder, fault.attribute, original)


def argument(place: int | str, change: Callable) -> Callable:
    """A fault of one argument, by position or name."""

    def broken(original, given, named):
        where: Any = named if isinstance(place, str) else given
        where[place] = change(where[place])
        return original(*given, **named)

    return broken


def result(place: int | None, change: Callable) -> Callable:
    """A fault of what comes back; None: the one tensor that does."""

    def broken(original, given, named):
        back = original(*given, **named)
        if place is None:
            return change(back)
        back = list(back)
        back[place] = change(back[place])
        return tuple(back)

    return broken


def to_bf16(x):
    """Through bf16 and back."""
    import torch

    return x.to(torch.bfloat16).to(x.dtype)


def to_fp8(x):
    """Through e4m3 and back."""
    import torch

    return x.to(torch.float8_e4m3fn).to(x.dtype)


def first_zero(x):
    """The first entry is 0."""
    x = x.clone()
    x.view(-1)[0] = 0
    return x


def larger(bits: int) -> Callable:
    """Times 1 + 2^-bits, in fp32."""
    return lambda x: (x.float() * (1.0 + 2.0**-bits)).to(x.dtype).contiguous()


def late(axis: int) -> Callable:
    """Each token has what belongs to the one before."""
    return lambda x: x.roll(1, axis).contiguous()


def none(x):
    """Nothing but zeros."""
    return x * 0


def halves(original, given, named):
    """The scan forgets its state in the middle of the text."""
    import torch

    u, delta, A, B, C, D, z, *rest = given
    middle = u.shape[-1] // 2
    parts = [
        original(
            *(x[..., cut].contiguous() for x in (u, delta)),
            A,
            *(x[..., cut].contiguous() for x in (B, C)),
            D,
            z[..., cut].contiguous(),
            *rest,
        )
        for cut in (slice(None, middle), slice(middle, None))
    ]
    out, gated = (torch.cat([part[i] for part in parts], -1) for i in (0, 2))
    return out, parts[0][1], gated


def one_by_one(original, given, named):
    """Each sequence of the batch in a call of its own: the same numbers."""
    import torch

    u, delta, A, B, C, D, z, *rest = given
    each = [
        original(
            *(x[i : i + 1].contiguous() for x in (u, delta)),
            A,
            *(x[i : i + 1].contiguous() for x in (B, C)),
            D,
            z[i : i + 1].contiguous(),
            *rest,
        )
        for i in range(len(u))
    ]
    return tuple(torch.cat([one[i] for one in each]) for i in range(3))


def gated_twice(original, given, named):
    """silu(z) once more."""
    from torch.nn.functional import silu

    out, states, gated = original(*given, **named)
    return out, states, gated * silu(given[6])


def state_in_fp8(original, given, named):
    """The cache, in bf16 by itself, is rounded after every step."""
    y = original(*given, **named)
    given[0].copy_(to_fp8(given[0]))
    return y


def oldest_lost(original, given, named):
    """The window's oldest token is gone."""
    given[1][..., 1] = 0
    return original(*given, **named)


def chunk_lost(states):
    """The state handed to the second chunk is 0."""
    states = states.clone()
    states[:, 1] = 0
    return states


def residual_in_bf16(original, given, named):
    """The stream is rounded before a layer adds to it."""
    if named.get("residual") is not None:
        named["residual"] = to_bf16(named["residual"])
    return original(*given, **named)


def batch_mixed(x):
    """Each sequence has what belongs to another."""
    return x.roll(1, 0).contiguous()


def _scan(name: str, broken: Callable, right: bool = False) -> Fault:
    return Fault(name, SCAN, "selective_scan_cuda", broken, right)


def _ssd(name: str, attribute: str, broken: Callable) -> Fault:
    return Fault(name, SSD, attribute, broken)


RESIDUAL = Fault("stream rounded to bf16", BLOCK, "layer_norm_fn", residual_in_bf16)

# arguments of the scan: u, delta, A, B, C, D, z, bias of delta
MAMBA1_PREFILL = [
    _scan("control: one sequence a call", one_by_one, right=True),
    _scan("dt without its bias in one channel", argument(7, first_zero)),
    _scan("state lost in the middle", halves),
    _scan("skip left out", argument(5, none)),
    _scan("gate applied twice", gated_twice),
    _scan("A in fp8", argument(2, to_fp8)),
    _scan("B in fp8", argument(3, to_fp8)),
    _scan("dt in fp8", argument(1, to_fp8)),
    _scan("C one token late", argument(4, late(-1))),
    _scan("B of another sequence", argument(3, batch_mixed)),
    Fault(
        "window one token late",
        SCAN,
        CONVOLUTION,
        argument(0, late(-1)),
    ),
    Fault(
        "convolution without its bias",
        SCAN,
        CONVOLUTION,
        argument(2, none),
    ),
    RESIDUAL,
]
MAMBA1_DECODE = [
    Fault("state rounded to fp8", STEP1, "selective_state_update", state_in_fp8),
    Fault("state not decayed", STEP1, "selective_state_update", argument(3, none)),
    Fault("skip left out", STEP1, "selective_state_update", argument(6, none)),
    Fault("window's oldest token lost", STEP1, "causal_conv1d_update", oldest_lost),
    RESIDUAL,
]
MAMBA2_PREFILL = [
    _ssd("states of chunks not decayed", "_state_passing_fwd", argument(1, none)),
    _ssd("a chunk's state lost", "_state_passing_fwd", result(0, chunk_lost)),
    _ssd("sums of log decays in bf16", "_chunk_cumsum_fwd", result(0, to_bf16)),
    _ssd("dt in fp8", "_chunk_cumsum_fwd", result(1, to_fp8)),
    _ssd("B of the states in fp8", "_chunk_state_fwd", argument(0, to_fp8)),
    _ssd("C B in fp8", "_bmm_chunk_fwd", result(None, to_fp8)),
    _ssd("skip left out", "_chunk_scan_fwd", argument("D", none)),
    _ssd("C one token late", "_chunk_scan_fwd", argument(4, late(1))),
    RESIDUAL,
]
MAMBA2_DECODE = [
    Fault("state rounded to fp8", STEP2, "selective_state_update", state_in_fp8),
    Fault("state not decayed", STEP2, "selective_state_update", argument(3, none)),
    Fault("window's oldest token lost", STEP2, "causal_conv1d_update", oldest_lost),
]
# arguments: C, B, x, A dt, dt, lambda, biases of C and B, angles, D, z
MAMBA3_PREFILL = [
    Fault("lambda left out", SISO, "mamba3_siso_fwd", argument(5, none)),
    Fault("nothing turns", SISO, "mamba3_siso_fwd", argument(8, none)),
    Fault("skip left out", SISO, "mamba3_siso_fwd", argument(9, none)),
    Fault("angles one token late", SISO, "mamba3_siso_fwd", argument(8, late(1))),
    Fault("B without its bias", SISO, "mamba3_siso_fwd", argument(7, none)),
]
FAULTS = {
    ("mamba1", "prefill"): MAMBA1_PREFILL,
    ("mamba1", "decode"): MAMBA1_DECODE,
    ("mamba2", "prefill"): MAMBA2_PREFILL,
    ("mamba2", "decode"): MAMBA2_DECODE,
    ("mamba3", "prefill"): MAMBA3_PREFILL,
}

# Where a factor 1 + 2^-k goes, for the smallest that is still seen.
FACTORS = {
    ("mamba1", "prefill"): {
        "x": lambda k: _scan("x", argument(0, larger(k))),
        "dt before its bias": lambda k: _scan("dt", argument(1, larger(k))),
        "A": lambda k: _scan("A", argument(2, larger(k))),
        "B": lambda k: _scan("B", argument(3, larger(k))),
        "z": lambda k: _scan("z", argument(6, larger(k))),
    },
    ("mamba2", "prefill"): {
        "dt": lambda k: _ssd("dt", "_chunk_cumsum_fwd", result(1, larger(k))),
        "log decays": lambda k: _ssd("A", "_chunk_cumsum_fwd", result(0, larger(k))),
        "states": lambda k: _ssd("s", "_state_passing_fwd", result(0, larger(k))),
        "C B": lambda k: _ssd("CB", "_bmm_chunk_fwd", result(None, larger(k))),
    },
    ("mamba3", "prefill"): {
        "C": lambda k: Fault("C", SISO, "mamba3_siso_fwd", argument(0, larger(k))),
        "dt": lambda k: Fault("dt", SISO, "mamba3_siso_fwd", argument(4, larger(k))),
    },
}
