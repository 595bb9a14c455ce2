"""Kernels that keep to what is declared, each in its own way.

Everything that the declaration leaves open is chosen: the bracketing of the scan, fused
or not, errors of elementary functions up to their edge, orders of sums, flushing.
"""

from typing import NamedTuple

import numpy as np

from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, scan_depth
from oracles import scan_orders
from oracles.checkpoints.hard import SEQ
from oracles.kernels import mamba1 as kernel
from oracles.kernels.mamba1 import F, Kernel


SCANS = ("block_scan", "tree", "chunked", "bracketing")
ROUNDINGS = ("fused", "unfused", "flushed")
ERRORS = ("none", "random", "high", "low", "alternating")
SUMS = ("one rounding", "sequential", "pairwise", "blocks of 16", "permuted", "split-K")
REDUCTIONS = ("pairwise", "permuted", "lanes")
MODELS = ("plain", "dt", "A", "repeated", "outliers", "stored in bf16", "overflow")
PRECISIONS = ("bf16", "fp16", "fp32")


class Variant(NamedTuple):
    """One way to be right, on one model."""

    index: int
    scan: str
    rounding: str
    error: str
    sum: str
    reduction: str
    model: str
    seed: int
    precision: str

    def __str__(self):
        return "-".join(str(x) for x in self).replace(" ", "_")


def variants(count: int, precisions=PRECISIONS) -> list[Variant]:
    """So many, drawn with fixed seeds; no two executions are the same."""
    drawn = []
    for i in range(count):
        rng = np.random.default_rng([2024, i])
        lists = (SCANS, ROUNDINGS, ERRORS, SUMS, REDUCTIONS, MODELS)
        scan, rounding, error, sums, reduction, model = map(rng.choice, lists)
        seed = int(rng.integers(0, 6))
        drawn.append(
            Variant(
                i,
                str(scan),
                str(rounding),
                str(error),
                str(sums),
                str(reduction),
                str(model),
                seed,
                precisions[i % len(precisions)],
            )
        )
    return drawn


def bracketing(a, b, combine, rng):
    """Halves of random size, each scanned on its own, then joined."""
    if len(a) == 1:
        return a, b
    cut = int(np.clip(rng.integers(len(a) // 3, 2 * len(a) // 3 + 1), 1, len(a) - 1))
    first, rest = (
        bracketing(a[s], b[s], combine, rng)
        for s in (slice(None, cut), slice(cut, None))
    )
    last = (np.broadcast_to(x[-1], rest[0].shape) for x in first)
    joined = combine(*last, *rest)
    return tuple(np.concatenate(pair) for pair in zip(first, joined, strict=True))


def states(name, a, b, combine, index):
    """All states, in the named order."""
    if name == "bracketing":
        return bracketing(a, b, combine, np.random.default_rng(index))[1]
    if name == "chunked":
        return scan_orders.chunked(a, b, combine, length=8)
    return getattr(scan_orders, name)(a, b, combine)


def additions(name, index, seq=SEQ) -> int:
    """Most additions that a term of this order goes through."""
    ones = np.zeros(seq)
    return int(states(name, ones, ones, scan_orders.counting, index).max())


class Right(Kernel):
    """The kernel as a variant has it."""

    def __init__(self, w, variant: Variant):
        super().__init__(w, variant.precision, fused=variant.rounding != "unfused")
        self.variant = variant
        self.rng = np.random.default_rng(variant.index)
        assert additions(variant.scan, variant.index) <= scan_depth(SEQ)

    def settled(self, x):
        x = np.asarray(x).astype(F)
        if self.variant.rounding == "flushed":
            return np.where(np.abs(x) < 2.0**-126, F(0), x)
        return x

    def off(self, true, budget):
        """An fp32 number within the budget around true values given in fp64."""
        share = {
            "none": lambda: np.zeros(true.shape),
            "random": lambda: self.rng.uniform(-1, 1, true.shape),
            "high": lambda: np.ones(true.shape),
            "low": lambda: -np.ones(true.shape),
            "alternating": lambda: np.where(np.arange(true.size) % 2, 1.0, -1.0),
        }[self.variant.error]()
        found = (true + share.reshape(true.shape) * budget).astype(F)
        # the last rounding is within the budget, too, if there is room for it
        beyond = np.abs(found - true) > budget
        inward = np.nextafter(found, true.astype(F))
        return self.settled(np.where(beyond, inward, found))

    def exp(self, x):
        x = x.astype(np.float64)
        true = np.exp(x)
        wide = true * (KERNEL.exp_relative + KERNEL.exp_argument * np.abs(x))
        # declared: a decay is at most 1
        return np.where(x <= 0, np.minimum(self.off(true, wide), F(1)), true.astype(F))

    def softplus(self, x):
        x = x.astype(np.float64)
        true, slope = np.logaddexp(0, x), 1 / (1 + np.exp(-x))
        by_argument = KERNEL.softplus_argument * np.abs(x) * slope
        return self.off(true, true * KERNEL.softplus_relative + by_argument)

    def silu(self, x):
        x = x.astype(np.float64)
        true = x / (1 + np.exp(-x))
        relative = KERNEL.silu_relative + KERNEL.silu_argument * np.abs(x)
        return self.off(true, np.abs(true) * relative)

    def rsqrt(self, mean_square):
        # the mean and epsilon are fp32 numbers already
        true = 1 / np.sqrt(self.settled(mean_square + F(self.epsilon)).astype(float))
        return self.off(true, true * KERNEL.rsqrt_relative)

    def A(self):
        x = self.w["A_log"].astype(np.float64)
        true = np.exp(x)
        wide = true * (KERNEL.exp_relative + KERNEL.exp_argument * np.abs(x))
        return -self.off(true, wide)

    def mean_square(self, x):
        squares = self.settled(x * x)
        if self.variant.reduction == "permuted":
            squares = squares[:, self.rng.permutation(x.shape[1])]
        if self.variant.reduction == "lanes":
            parts = np.split(squares, range(4, x.shape[1], 4), axis=1)
            sums = np.stack([self.serially(part) for part in parts], axis=1)
            return (self.pairwise(sums) / F(x.shape[1]))[:, None]
        return (self.pairwise(squares) / F(x.shape[1]))[:, None]

    def serially(self, terms):
        total = terms[:, 0]
        for i in range(1, terms.shape[1]):
            total = self.settled(total + terms[:, i])
        return total

    def pairwise(self, terms):
        while terms.shape[1] > 1:
            last = terms[:, terms.shape[1] // 2 * 2 :]
            even = terms[:, : terms.shape[1] // 2 * 2]
            joined = self.settled(even[:, ::2] + even[:, 1::2])
            terms = np.concatenate([joined, last], axis=1)
        return terms[:, 0]

    def matmul(self, x, name):
        out = [self.row(x, row) for row in self.w[name]]
        return np.stack(out, axis=1)

    def row(self, x, row):
        """One output: exact products of fp32 numbers, held in fp64."""
        how = self.variant.sum
        products = x.astype(np.float64) * row
        if how == "one rounding":
            return self.settled(products.sum(axis=1))
        if how == "permuted":
            products = products[:, self.rng.permutation(len(row))]
        if how == "blocks of 16":
            return self.in_blocks(products)
        products = self.settled(products)
        if how == "pairwise":
            return self.pairwise(products)
        if how == "split-K":
            half = max(1, len(row) // 2)
            parts = (products[:, :half], products[:, half:])
            sums = [self.serially(part) for part in parts if part.shape[1]]
            return self.settled(sum(sums[1:], sums[0]))
        return self.serially(products)

    def in_blocks(self, products):
        """Tensor cores: a block's sum, then the blocks', bits cut off each time."""
        total = np.zeros(len(products))
        for first in range(0, products.shape[1], 16):
            exact = total + products[:, first : first + 16].sum(axis=1)
            total = cut_off(exact)
        return self.settled(total)

    def scan(self, a, b):
        combine = scan_orders.FP32[self.variant.rounding]
        wide = a.astype(np.float64), b.astype(np.float64)
        name, index = self.variant.scan, self.variant.index
        return self.settled(states(name, *wide, combine, index))

    def read_out(self, h, C, skip):
        total = None if self.variant.index % 2 else skip
        for n in self.rng.permutation(self.n):
            if total is None:
                total = self.settled(h[:, :, n] * C[:, n, None])
            else:
                total = self.fma(total, h[:, :, n], C[:, n, None])
        assert total is not None
        return self.settled(total + skip) if self.variant.index % 2 else total


def cut_off(x):
    """24 significand bits, toward zero; subnormals as they are."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)


def run(weights, tokens, variant: Variant, layers: int):
    """(stream, output before, stored tensors) of every layer."""
    rows = weights["backbone.embeddings.weight"].astype(F)
    records = []
    with np.errstate(all="ignore"):
        before = kernel.cast(rows, variant.precision)[tokens]
        hidden = np.zeros_like(before)
        for i in range(layers):
            held = kernel.held(kernel.layer_weights(weights, i), variant.precision)
            stored = Right(held, variant).run(before, hidden)
            records.append((before, hidden, stored))
            before, hidden = stored["residual"], stored["out"]
    return records
