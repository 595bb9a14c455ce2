"""Kernels broken on purpose, each in one way, by the tensor where its fault ends."""

import numpy as np

from oracles.kernels.mamba1 import F, Kernel
from oracles.mutants.faults import (
    Mutant,
    as_stored_transposed,
    at_chunks,
    at_random,
    blocks_swapped,
    conv_with,
    dropped,
    epsilon_outside,
    forgetting,
    from_another_sequence,
    gated_with,
    in_the_middle,
    layer_norm,
    low_accumulator,
    low_mean,
    low_operands,
    low_partials,
    low_squares,
    low_steps,
    moved,
    mutant,
    parameter,
    prefix_one_late,
    product,
    projected,
    reset,
    scan_of,
    short,
    store,
    toward_zero,
    twice,
    with_B_and_C,
    wrapped,
)


SUMS = {
    "accumulator in the low format": low_accumulator,
    "split-K partials in the low format": low_partials,
    "last channel never read": short,
}
SITES = ("norm", "xz", "conv", "x_proj", "dt", "gated", "out")
STORES = {
    "stored toward zero": toward_zero,
    "stored through the other format": twice,
    "stored stochastically": at_random,
}
half = lambda k, right, x: np.where(x <= 0, np.log1p(np.exp(x)), x)

MUTANTS: dict[str, Mutant] = {
    # the residual stream
    "residual in the low format": mutant(
        "residual", residual=lambda k, x, y: k.low(x + y)
    ),
    "residual added twice": mutant("residual", residual=lambda k, x, y: x + y + y),
    "residual not added": mutant("residual", residual=lambda k, x, y: x),
    # the norm
    "norm weight skipped": parameter(
        "norm", "norm.weight", lambda k, w: np.ones_like(w)
    ),
    "norm weight plus one": parameter("norm", "norm.weight", lambda k, w: w + 1),
    "norm skipped": mutant("norm", rsqrt=lambda k, m: np.ones_like(k.settled(m))),
    "norm centred": mutant("norm", norm=layer_norm),
    "norm's mean in the low format": mutant("norm", mean_square=low_mean),
    "norm's squares in the low format": mutant("norm", mean_square=low_squares),
    "norm's mean over one too few": mutant(
        "norm", mean_square=lambda k, x: Kernel.mean_square(k, x[:, :-1])
    ),
    "wrong epsilon": mutant(
        "norm", rsqrt=lambda k, m: k.settled(1 / np.sqrt(m + 1e-2))
    ),
    "epsilon outside the root": mutant("norm", rsqrt=epsilon_outside),
    # in_proj
    "in_proj transposed": parameter("xz", "in_proj.weight", as_stored_transposed),
    "x and z swapped": parameter(
        "xz", "in_proj.weight", lambda k, W: np.roll(W, k.inner, axis=0)
    ),
    "channel blocks swapped": parameter("xz", "in_proj.weight", blocks_swapped),
    "last output channel dropped": parameter(
        "xz", "in_proj.weight", lambda k, W: dropped(-1, 0)(W)
    ),
    # the conv
    "conv taps reversed": conv_with(weight=lambda k, w: w[:, ::-1]),
    "conv of the next channel": conv_with(weight=lambda k, w: np.roll(w, 1, axis=0)),
    "conv one token late": conv_with(inputs=lambda k, x: moved(1)(x)),
    "conv one token early": conv_with(inputs=lambda k, x: moved(-1)(x)),
    "conv offset wrapped": conv_with(inputs=wrapped),
    "conv bias dropped": conv_with(bias=lambda k, b: np.zeros_like(b)),
    "conv sum in the low format": conv_with(total=lambda k, x: k.low(x)),
    "conv not activated": conv_with(after=lambda k, x: x),
    "conv with relu": conv_with(after=lambda k, x: np.maximum(x, 0)),
    "conv with a coarse sigmoid": conv_with(
        after=lambda k, x: x * np.clip(x / 6 + F(0.5), 0, 1)
    ),
    "window forgotten half way": forgetting(in_the_middle),
    "window forgotten at chunks": forgetting(at_chunks),
    "window of another sequence": mutant(
        "conv", window=lambda k, x, taps: k.settled(np.flip(x[-(taps - 1) :], axis=0))
    ),
    # x_proj and dt_proj
    "x_proj transposed": parameter("x_proj", "x_proj.weight", as_stored_transposed),
    "dt_proj transposed": parameter("dt", "dt_proj.weight", as_stored_transposed),
    "dt_proj reads B": mutant(
        "dt", dt=lambda k, x: Kernel.dt(k, x[:, k.rank : 2 * k.rank])
    ),
    # dt
    "dt bias dropped": gated_with(step_size=lambda k, right, dt: k.softplus(dt)),
    "dt bias added twice": gated_with(
        step_size=lambda k, right, dt: right(dt + k.w["dt_proj.bias"])
    ),
    "softplus dropped": gated_with(softplus=lambda k, right, x: np.abs(x)),
    "softplus threshold at 0": gated_with(softplus=half),
    "dt limited to 0.1": gated_with(
        step_size=lambda k, right, dt: np.minimum(right(dt), F(0.1))
    ),
    "dt stored low": gated_with(step_size=lambda k, right, dt: k.low(right(dt))),
    "dt of the token before": gated_with(
        step_size=lambda k, right, dt: right(moved(1)(dt))
    ),
    # decays and drives
    "A without exp": gated_with(A=lambda k, right: -np.abs(k.w["A_log"])),
    "A in the low format": gated_with(A=lambda k, right: k.low(right())),
    "A of the states reversed": gated_with(A=lambda k, right: right()[:, ::-1]),
    "exp with base 2": gated_with(exp=lambda k, right, x: np.exp2(x)),
    "exp off by 2^-7": gated_with(exp=lambda k, right, x: right(x) * F(1 - 2**-7)),
    "exp of first order": gated_with(exp=lambda k, right, x: np.maximum(1 + x, 0)),
    "drive without dt": gated_with(
        drive=lambda k, right, step, u, B: right(np.ones_like(step), u, B)
    ),
    "drive in the low format": gated_with(
        drive=lambda k, right, *given: k.low(right(*given))
    ),
    "B and C swapped": with_B_and_C(lambda B, C: (C, B)),
    "B of the token before": with_B_and_C(lambda B, C: (moved(1)(B), C)),
    "C of the token before": with_B_and_C(lambda B, C: (B, moved(1)(C))),
    # the state
    "state stored low": low_steps(lambda k, h: k.low(h)),
    "state stored low after the read-out": low_steps(
        lambda k, h: k.low(h), "before the store"
    ),
    "state read out low": gated_with(
        read_out=lambda k, right, h, C, skip: right(k.low(h), C, skip)
    ),
    "state flushed below 2^-14": low_steps(
        lambda k, h: np.where(np.abs(h) < 2.0**-14, 0, h)
    ),
    "state clipped at 1/4": low_steps(lambda k, h: np.clip(h, -0.25, 0.25)),
    "state forgotten half way": reset(in_the_middle),
    "state forgotten at chunks": reset(at_chunks),
    "state one token late": scan_of(lambda k, a, b: (a, moved(1)(b))),
    "state of another sequence": scan_of(from_another_sequence),
    "chunk's prefix one token late": gated_with(
        scan=lambda k, right, a, b: prefix_one_late(k, a, b)
    ),
    "last state dropped": gated_with(
        read_out=lambda k, right, h, C, skip: right(dropped(-1, 2)(h), C, skip)
    ),
    # read-out and gate
    "D dropped": gated_with(skip=lambda k, right, u: np.zeros_like(u)),
    "D in the low format": gated_with(skip=lambda k, right, u: u * k.low(k.w["D"])),
    "D u in the low format": gated_with(skip=lambda k, right, u: k.low(right(u))),
    "y stored before the gate": gated_with(
        read_out=lambda k, right, *given: k.low(right(*given))
    ),
    "gate dropped": gated_with(gate=lambda k, right, y, z: y),
    "gate not activated": gated_with(gate=lambda k, right, y, z: y * z),
    "gate with a sigmoid": gated_with(gate=lambda k, right, y, z: y / (1 + np.exp(-z))),
    "gate in the low format": gated_with(
        gate=lambda k, right, y, z: y * k.low(k.silu(z))
    ),
    "D u added behind the gate": gated_with(
        read_out=lambda k, right, h, C, skip: right(h, C, np.zeros_like(skip)),
        gated=lambda k, right, xz, u, low, dt: k.out_of(
            right(xz, u, low, dt) + k.skip(u)
        ),
    ),
    # out_proj
    "out_proj transposed": parameter("out", "out_proj.weight", as_stored_transposed),
    "out_proj of swapped channels": parameter(
        "out", "out_proj.weight", lambda k, W: W[:, [1, 0, *range(2, k.inner)]]
    ),
    **projected("xz", "in_proj.weight", SUMS),
    **projected("x_proj", "x_proj.weight", SUMS),
    **projected("out", "out_proj.weight", SUMS),
    **{
        f"{site} {what}": store(site, how)
        for site in SITES
        for what, how in STORES.items()
    },
}

# What does nothing on the given model, and why.
EQUIVALENT: dict[str, tuple[str, Mutant]] = {
    "operands of in_proj in TF32": (
        "numbers of 16 bits have at most 11 significant ones, which TF32 holds",
        product("xz", "in_proj.weight", low_operands(11)),
    ),
    "state forgotten at 2048": (
        "the sequence ends before",
        reset(lambda length: list(range(2048, length, 2048))),
    ),
    "softplus threshold at 88": (
        "log(1 + exp(x)) and x are one number in fp32 from 17 on",
        gated_with(softplus=lambda k, right, x: np.log1p(np.exp(np.minimum(x, 88)))),
    ),
    "NaN read as 0": (
        "there is none",
        conv_with(inputs=lambda k, x: np.nan_to_num(x)),
    ),
    "dt limited to [0, inf]": (
        "softplus is never negative",
        gated_with(step_size=lambda k, right, dt: np.maximum(right(dt), 0)),
    ),
    "state flushed below 2^-126": (
        "declared",
        low_steps(lambda k, h: np.where(np.abs(h) < 2.0**-126, 0, h)),
    ),
    "exp off by 1 ulp": (
        "declared",
        gated_with(exp=lambda k, right, x: right(x) * k.kind(1 - 2**-23)),
    ),
}


def make(w, precision, mutation=None, **options) -> Kernel:
    """The named mutant, or the right kernel."""
    if mutation is None:
        return Kernel(w, precision, **options)
    return MUTANTS[mutation].kernel(w, precision, **options)
