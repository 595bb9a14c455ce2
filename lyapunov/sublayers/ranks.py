"""Sums over channels that several devices share (tensor parallelism).

A device multiplies its own columns of the matrix and stores that part in the format of
the activations; the parts are then added up (vLLM 0.33.0, `RowParallelLinear`: the bias
is the first device's). Its own all-reduce adds in fp32 and rounds once, NCCL rounds
after every addition.
"""

import equinox as eqx

from ..arithmetic import AbstractArithmetic, Weight


def rank_sites(site: str) -> tuple[str, str]:
    """Name what devices store of a sum in front of `site`: their parts, and what is
    added up of them."""
    return f"{site}_part", f"{site}_hop"


def over_ranks(at: AbstractArithmetic, x, weight: Weight, bias, site: str):
    """x W^T + bias of (seq, columns), by `at.form.ranks` devices."""
    ranks, columns = at.form.ranks, weight.matrix.shape[1]
    if ranks == 1:
        return at.matmul(x, weight, bias)
    part, hop = rank_sites(site)
    rows, width, parts = weight.matrix.shape[0], columns // ranks, []
    for rank in range(ranks):
        own = slice(rank * width, (rank + 1) * width)
        columns_of = eqx.tree_at(lambda w: w.matrix, weight, weight.matrix[:, own])
        parts.append(at.matmul(x[..., own], columns_of, None if rank else bias))
    stored = at.store(part, at.join(parts, axis=-1))
    total = stored[..., :rows]
    for rank in range(1, ranks):
        own = slice(rank * rows, (rank + 1) * rows)
        total = at.add(total, stored[..., own], alone=True)
        if rank < ranks - 1:  # the last sum is what is stored behind
            total = at.may_store(hop, total)
    return total
