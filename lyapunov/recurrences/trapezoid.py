"""One token of Mamba-3 over the arithmetic: the update of H, and how keys turn.

For the meaning of it see `recurrences.mamba3`.
"""

from ..arithmetic import AbstractArithmetic


def update(at: AbstractArithmetic, state, log_decay, before, now):
    """One token: H after it, not stored.

    **Arguments:**

    - `state`: (heads, head_dim, d_state). `log_decay`: (heads), Delta A.
    - `before`, `now`: each (weight, k, v) of the token before and of this one: weight
      (heads) of its product, without alpha; k (rank, heads, d_state), turned; v (rank,
      heads, head_dim).
    """
    alpha = at.fading(log_decay)
    faded = (at.multiply(before[0], alpha), *before[1:])
    drives = []
    for weight, k, v in (faded, now):
        share = at.view(lambda a: a[:, None], weight)
        drives.append(at.einsum("rhp,rhn->hpn", at.multiply(v, share), k))
    kept = at.multiply(state, at.view(lambda a: a[:, None, None], alpha))
    return at.updated(kept, at.add(drives[0], drives[1]))


def turn(at: AbstractArithmetic, x, cos, sin, *, pairwise: bool):
    """Rotate leading pairs of the last axis; the others stay.

    **Arguments:**

    - `x`: (..., d_state). `cos`, `sin`: (..., angles), at most d_state / 2 of them.
    - `pairwise`: channels 2i and 2i + 1 (SISO kernels); else i and i + d_state / 2
      (MIMO kernels).
    """
    n, half = cos.shape[-1], x.shape[-1] // 2
    take = lambda start, stop, step=1: at.view(lambda a: a[..., start:stop:step], x)
    if pairwise:
        first, second = take(0, 2 * n, 2), take(1, 2 * n, 2)
    else:
        first, second = take(0, n), take(half, half + n)
    one = at.add(at.multiply(first, cos), at.negate(at.multiply(second, sin)))
    other = at.add(at.multiply(first, sin), at.multiply(second, cos))
    if pairwise:
        apart = [at.view(lambda a: a[..., None], part) for part in (one, other)]
        mixed = at.view(
            lambda a: a.reshape(*a.shape[:-2], 2 * n), at.join(apart, axis=-1)
        )
        parts = [mixed, take(2 * n, x.shape[-1])]
    else:
        parts = [one, take(n, half), other, take(half + n, x.shape[-1])]
    return at.join([part for part in parts if part.shape[-1]], axis=-1)
