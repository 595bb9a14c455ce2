"""What a Mamba-3 sublayer computes (mamba_ssm 2.3.2, `modules/mamba3.py`).

No convolution; B and C are normalised, biased and turned by an angle that the tokens
add up, the state takes in two tokens at a time (`recurrences.mamba3`), and with a rank
above 1 (MIMO) every head reads and writes as many outer products. The middle goes token
by token or chunk by chunk (`mamba3_scan`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    as_stored,
    with_biases,
    within,
)
from .mamba3_scan import Token, by_rank, chunked_scan, token_scan
from .norm import Norm, front, norm_of, normalise
from .sites import FRONT


class Mamba3Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Channels of x, z and y are head-major, (heads x head_dim) = d_inner.
    """

    norm: Norm | None
    in_proj: Weight
    """Rows z, x (d_inner each), B, C (rank groups d_state each), dt, A, lambda (heads
    each), angles; of width d_model."""
    dt_bias: Float[Array, " heads"]
    B_bias: Float[Array, "rank heads d_state"]
    C_bias: Float[Array, "rank heads d_state"]
    B_norm: Norm
    C_norm: Norm
    D: Float[Array, " heads"]
    mimo_x: Float[Array, "rank heads head_dim"] | None
    """What x, z and y are multiplied with for each rank; None for SISO."""
    mimo_z: Float[Array, "rank heads head_dim"] | None
    mimo_o: Float[Array, "rank heads head_dim"] | None
    gate_norm: Float[Array, "heads head_dim"] | None
    """Of each head before the gate; None: the gate alone."""
    out_proj: Weight
    """(d_model, d_inner)."""
    gate_norm_epsilon: float = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    angles: int = eqx.field(static=True)
    """Pairs of channels of B and C that turn."""
    least_rate: float = eqx.field(static=True)
    """The smallest -A."""
    chunk: int = eqx.field(static=True, default=64)
    """Tokens of a chunk, where it runs in chunks."""

    def initial_state(self) -> "Mamba3State":
        """What is carried before the first token of a text."""
        return initial_state(self)


class Mamba3State(eqx.Module):
    """What a decode step carries."""

    angle: Any
    """(heads, angles)."""
    state: Any
    """(heads, head_dim, d_state)."""
    keys: Any
    """(rank, heads, d_state): B of the last token, biased and turned."""
    values: Any
    """(heads, head_dim): x of the last token."""


def initial_state(p: Mamba3Parameters) -> Mamba3State:
    """Zeros, as at the start of a text."""
    rank, heads, d_state = p.B_bias.shape
    head_dim = p.out_proj.matrix.shape[1] // heads
    return Mamba3State(
        angle=jnp.zeros((heads, p.angles)),
        state=jnp.zeros((heads, head_dim, d_state)),
        keys=jnp.zeros((rank, heads, d_state)),
        values=jnp.zeros((heads, head_dim)),
    )


def mamba3(at: AbstractArithmetic, residual, p: Mamba3Parameters, start: Mamba3State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: what is carried before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    x = front(at, residual, p.norm)
    out, after = mamba3_mixer(at, x, p, start)
    return at.store("out", out), after


def mamba3_mixer(at: AbstractArithmetic, x, p: Mamba3Parameters, start: Mamba3State):
    """The mixer on a normalised input (seq, d_model)."""
    rank, heads, d_state = p.B_bias.shape
    d_inner, seq = p.out_proj.matrix.shape[1], x.shape[0]
    wide = rank * p.groups * d_state
    projected = at.store("xz", at.matmul(x, p.in_proj))
    parts, first = [], 0
    for width in (d_inner, d_inner, wide, wide, heads, heads, heads, p.angles):
        parts.append(projected[..., first : first + width])
        first += width
    z, x, B, C, dt, rate, trapezoid, angle = parts
    z = at.store("z_cast", at.view(lambda a: a.reshape(seq, heads, -1), z))
    x = at.store("x_cast", at.view(lambda a: a.reshape(seq, heads, -1), x))

    dt = at.store("dt_biased", at.add(dt, p.dt_bias, alone=at.stores("dt_biased")))
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)
    rate = at.clip(at.softplus(rate), p.least_rate, math.inf)
    log_decay = at.negate(at.multiply(rate, dt))
    at.observe("log_decay", log_decay)

    def normed(x, norm, name):
        apart = at.view(lambda a: a.reshape(seq, rank, p.groups, d_state), x)
        apart = at.store(f"{name}_cast", normalise(at, apart, norm, f"{name}_norm"))
        return at.view(lambda a: jnp.repeat(a, heads // p.groups, axis=-2), apart)

    token = Token(
        dt=dt,
        log_decay=log_decay,
        trapezoid=at.store("trapezoid_cast", trapezoid),
        angle=at.store("angle_cast", angle),
        B=at.store("B_biased", at.add(normed(B, p.B_norm, "B"), p.B_bias)),
        C=at.store("C_biased", at.add(normed(C, p.C_norm, "C"), p.C_bias)),
        x=x,
    )
    scan = chunked_scan if at.form.chunked else token_scan
    y, after = scan(at, token, p, start)
    y = at.store("scan_output", y)

    fused = at.form.chunked and p.mimo_o is not None and p.gate_norm is None
    if p.gate_norm is not None:
        hat = at.store("gate_norm_hat", at.rms_normalise(y, p.gate_norm_epsilon))
        y = at.multiply(hat, p.gate_norm, alone=at.stores("gate_norm_hat"))
    gate = at.store("silu_z", at.silu(by_rank(at, z, p.mimo_z)))
    if fused:
        gate = at.may_store("gate_product", at.multiply(gate, p.mimo_o))
    y = at.store("gated_rank", at.multiply(y, gate))
    if fused:
        y = sum_of_ranks(at, y)
    elif p.mimo_o is not None:
        y = at.einsum("lrhp,rhp->lhp", y, p.mimo_o)
    y = at.store("gated", at.view(lambda a: a.reshape(seq, -1), y))
    out = at.matmul(at.store("gated_cast", y), p.out_proj)
    return out, after


def sum_of_ranks(at: AbstractArithmetic, y):
    """The ranks one after another, in a register of the model's format."""
    total = y[:, 0]
    for r in range(1, y.shape[1]):
        total = at.add(at.may_store("rank_sum", total), y[:, r])
    return total


@final
@dataclass(frozen=True)
class Mamba3Sizes(AbstractSublayer):
    """One Mamba-3 mixer with the norm before it.

    **Arguments:**

    - `heads`, `groups`: as in `Mamba2Sizes`.
    - `rank`: outer products that a head adds at each token; None for SISO, whose
        kernels turn other pairs of channels.
    - `angles`: pairs of channels of B and C that turn.
    - `least_rate`: the smallest -A.
    - `gate_norm`: whether each head is normalised before the gate.
    - `mixer_norm_epsilon`: of the norms over B, over C and before the gate.
    - `chunk`: tokens that a chunk of the chunked form has.
    - `norm_centred`: whether the norm in front is a LayerNorm.
    - `norm_front`: whether there is one.
    """

    d_model: int
    d_inner: int
    d_state: int
    heads: int
    groups: int
    rank: int | None
    angles: int
    least_rate: float
    norm_epsilon: float
    mixer_norm_epsilon: float
    gate_norm: bool = False
    norm_centred: bool = False
    norm_front: bool = True
    chunk: int = 64

    kind: ClassVar = "mamba3"
    recurrent: ClassVar = True
    joins_calls: ClassVar = False  # a call's last token is not weighed by the next
    flow: ClassVar = staticmethod(mamba3)
    # what makes dt is named behind what stands beside it in the projection
    sites: ClassVar = (
        *FRONT, "xz", "z_cast", "x_cast", "B_norm_hat", "B_norm", "B_cast",
        "C_norm_hat", "C_norm", "C_cast", "trapezoid_cast", "angle_cast", "B_biased",
        "C_biased", "trapezoid", "dt_cast", "gamma_ahead", "key_weight", "angle_sum",
        "dt_biased", "softplus", "k_weighed", "v_ranked", "chunk_state", "CB_decayed",
        "k_decayed", "v_decayed", "CB_product", "CB_operand", "CB", "CBv", "CBv_sum",
        "CBv_weighed", "of_the_token", "state", "scan_output", "silu_z",
        "gate_norm_hat", "gate_product", "gated_rank", "rank_sum", "gated",
        "gated_cast", "q_turned", "k_turned", "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "mamba3",
        "mixers",
        projections="in_proj out_proj",
        biases="B_bias C_bias",
        recurrence="dt_bias D mimo_x mimo_z mimo_o",
        norms=f"{with_biases('norm', 'B_norm', 'C_norm')} gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The angle and the state, and the last token, which the next one takes in."""
        return (
            HandedOn("angle", "state", ("angle_sum",)),
            HandedOn("state", "state", ("state",)),
            HandedOn("keys", "state", ("k_turned",)),  # turned by the angle
            HandedOn("values", "window", ("x_cast",)),
        )

    def parameters(self, get: Get) -> Mamba3Parameters:
        """Put the flow's parameters together from stored ones."""

        def by_rank(name):
            array = get(name)  # stored with heads first
            return None if array is None else jnp.swapaxes(array, 0, 1)

        gate_norm = get("gate_norm")
        return Mamba3Parameters(
            norm=norm_of(get, "norm", self.norm_epsilon, self.norm_centred)
            if self.norm_front
            else None,
            in_proj=Weight(get("in_proj")),
            dt_bias=get("dt_bias"),
            B_norm=norm_of(get, "B_norm", self.mixer_norm_epsilon, False),
            C_norm=norm_of(get, "C_norm", self.mixer_norm_epsilon, False),
            D=get("D"),
            gate_norm=None if gate_norm is None else gate_norm.reshape(self.heads, -1),
            out_proj=Weight(get("out_proj")),
            gate_norm_epsilon=self.mixer_norm_epsilon,
            groups=self.groups,
            angles=self.angles,
            least_rate=self.least_rate,
            chunk=self.chunk,
            B_bias=jnp.swapaxes(get("B_bias"), 0, 1),
            C_bias=jnp.swapaxes(get("C_bias"), 0, 1),
            mimo_x=by_rank("mimo_x"),
            mimo_z=by_rank("mimo_z"),
            mimo_o=by_rank("mimo_o"),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length, batch
        rank = self.rank or 1
        rows = 3 * self.d_inner + 2 * rank * self.groups * self.d_state
        rows += 3 * self.heads + self.angles
        biases = 2 * rank * self.heads * self.d_state
        of_ranks = 0 if self.rank is None else 3 * rank * self.d_inner
        return Counts(
            weights=self.d_model * rows + biases + of_ranks,
            channels=rank * max(self.d_inner, self.heads * self.d_state),
            scores=0,
            states=self.d_inner * self.d_state,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one log decay a head, of a rate that depends on the token.

        The angle's exponent, 0 whatever the weights, and those of the last key and
        value, -inf, are not counted (see `recurrences.mamba3`).
        """
        dt = np.asarray(observed["dt"], np.float64)
        log_decay = np.asarray(observed["log_decay"], np.float64)
        # the rate that gives each head its exponent
        rates = (log_decay.mean(axis=(0, 1)) / dt.mean(axis=(0, 1)))[:, None]
        ones = {name: raw[name] for name in ("B_bias", "C_bias")}
        used = {"ones": ones, "per_head": True}
        return Dynamics(
            self.d_inner // self.heads * self.d_state,
            log_decay,
            dt,
            rates,
            as_stored(raw, "dt_bias", "D") | used,
        )
