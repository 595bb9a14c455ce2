"""Orders in which h_t = a_t h_{t-1} + b_t is computed, over any pair combination.

`combine(first, second)` joins two stretches (a0, b0), (a1, b1) into
(a1 a0, a1 b0 + b1). Given one that rounds, these are executions of the scan; given
one that counts, they say how many additions a term goes through.
"""

import math
from functools import partial

import numpy as np


def exactly(a0, b0, a1, b1):
    return a1 * a0, a1 * b0 + b1


def counting(a0, b0, a1, b1):
    """Additions that the worst term of a stretch went through; `a` is not used."""
    return a0, np.maximum(b0, b1) + 1


def rounding(a0, b0, a1, b1, *, to, fused):
    """Every product and sum rounded by `to`; fused: once for product and sum."""
    product = a1 * b0
    return to(a1 * a0), to((product if fused else to(product)) + b1)


def to_fp32(x):
    return x.astype(np.float32).astype(np.float64)


def to_fp32_flushed(x):
    x = to_fp32(x)
    return np.where(np.abs(x) < 2.0**-126, 0.0, x)


def to_bits(bits, x):
    """Round to so many significand bits, any exponent."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


# fp64 products of fp32 numbers are exact, and so is flushing them
FP32 = {
    "fused": partial(rounding, to=to_fp32, fused=True),
    "unfused": partial(rounding, to=to_fp32, fused=False),
    "flushed": partial(rounding, to=to_fp32_flushed, fused=True),
}
BF16 = partial(rounding, to=partial(to_bits, 8), fused=False)


def sequential(a, b, combine):
    states = []
    one, state = a[0], b[0]
    for t in range(len(a)):
        if t:
            one, state = combine(one, state, a[t], b[t])
        states.append(state)
    return np.stack(states)


def tree(a, b, combine):
    """Hillis and Steele: log2 T rounds, each over the whole sequence."""
    a, b = a.copy(), b.copy()
    step = 1
    while step < len(a):
        new_a, new_b = combine(a[:-step], b[:-step], a[step:], b[step:])
        a = np.concatenate([a[:step], new_a])
        b = np.concatenate([b[:step], new_b])
        step *= 2
    return b


def chunked(a, b, combine, length=16):
    """Chunks on their own, then each entry with the state before its chunk."""
    before, out = None, []
    for first in range(0, len(a), length):
        part_a, part_b = a[first : first + length], b[first : first + length]
        run_a, run_b = [part_a[0]], [part_b[0]]
        for t in range(1, len(part_a)):
            joined = combine(run_a[-1], run_b[-1], part_a[t], part_b[t])
            run_a.append(joined[0])
            run_b.append(joined[1])
        for x, y in zip(run_a, run_b, strict=True):
            out.append(y if before is None else combine(*before, x, y)[1])
        before = (run_a[-1], out[-1])
    return np.stack(out)


def launch(seq: int) -> tuple[int, int]:
    """(threads, items a thread) of mamba_ssm's forward kernel on NVIDIA."""
    for longest, threads, items in [
        (128, 32, 4),
        (256, 32, 8),
        (512, 32, 16),
        (1024, 64, 16),
    ]:
        if seq <= longest:
            return threads, items
    return 128, 16


def block_scan(a, b, combine):
    """CUB's warp-scans block scan, chunk after chunk, as mamba_ssm launches it."""
    seq = len(a)
    threads, items = launch(seq)
    chunk = threads * items
    prefix, out = None, []
    for first in range(0, seq, chunk):
        here = min(chunk, seq - first)
        used = math.ceil(here / items)
        # the tail is (1, 0): it changes nothing and nobody reads it
        shape = (chunk - here, *a.shape[1:])
        part_a = np.concatenate([a[first : first + here], np.ones(shape, a.dtype)])
        part_b = np.concatenate([b[first : first + here], np.zeros(shape, b.dtype)])
        part_a = part_a.reshape(threads, items, *a.shape[1:])
        part_b = part_b.reshape(threads, items, *a.shape[1:])
        # each thread over its items
        own = part_a[:, 0], part_b[:, 0]
        for i in range(1, items):
            own = combine(*own, part_a[:, i], part_b[:, i])
        # Kogge-Stone over the lanes of each warp
        lanes = [x.reshape(threads // 32, 32, *a.shape[1:]) for x in own]
        step = 1
        while step < 32:
            new = combine(
                lanes[0][:, :-step],
                lanes[1][:, :-step],
                lanes[0][:, step:],
                lanes[1][:, step:],
            )
            lanes = [
                np.concatenate([old[:, :step], x], axis=1)
                for old, x in zip(lanes, new, strict=True)
            ]
            step *= 2
        # totals of the warps one after another; then what stands before each thread
        total = None
        for warp in range(threads // 32):
            before_warp = total
            for lane in range(32):
                thread = 32 * warp + lane
                if thread >= used:
                    break
                before = before_warp
                if lane:
                    shuffled = lanes[0][warp, lane - 1], lanes[1][warp, lane - 1]
                    before = shuffled if before is None else combine(*before, *shuffled)
                if prefix is not None:
                    before = prefix if before is None else combine(*prefix, *before)
                running = before
                for i in range(min(items, here - thread * items)):
                    item = part_a[thread, i], part_b[thread, i]
                    running = item if running is None else combine(*running, *item)
                    out.append(running[1])
            aggregate = lanes[0][warp, 31], lanes[1][warp, 31]
            total = aggregate if total is None else combine(*total, *aggregate)
        assert total is not None
        prefix = total if prefix is None else combine(*prefix, *total)
    return np.stack(out)
