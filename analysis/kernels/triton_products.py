"""A product of matrices by Triton's dot."""

from typing import Any

import triton
import triton.language as tl


@triton.jit
def product_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    terms,
    rows: tl.constexpr,
    columns: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = a b for a of (rows, terms) and b of (terms, columns), in one program."""
    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    step = tl.arange(0, BLOCK)
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for start in range(0, terms, BLOCK):
        a = tl.load(a_ptr + row[:, None] * terms + (start + step)[None, :])
        b = tl.load(b_ptr + (start + step)[:, None] * columns + column[None, :])
        total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(out_ptr + row[:, None] * columns + column[None, :], total)


def product(a, b, out, precision: str) -> None:
    """out = a b, summed in blocks of at most 64 terms."""
    rows, terms = a.shape
    block = min(64, terms)
    kernel: Any = product_kernel
    kernel[(1,)](a, b, out, terms, rows, b.shape[1], BLOCK=block, PRECISION=precision)
