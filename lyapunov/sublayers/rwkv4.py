"""What time mixing of RWKV-4 computes (Peng et al. 2023, arXiv 2305.13048).

After `RwkvSelfAttention` of transformers 5.24 (`modeling_rwkv.py`): sums of values and
of their weights e^k, both fading by a constant of the channel, and read as a quotient.
Both are held over a running maximum, so that no exponential overflows; the maximum
itself is in neither the quotient nor the exponents (`rules.log_weights`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..arithmetic._log_weights import LOG_WEIGHTS, QUOTIENT, UNDER_SCALE
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Dynamics,
    Get,
    HandedOn,
    with_biases,
    within,
)
from .norm import Norm, front, norm_of
from .sites import FRONT
from .token_blocks import in_token_blocks, tokens_at_once
from .token_shift import MIXED, token_shift


NO_TOKEN = -1e38
"""The maximum before the first token, as transformers has it."""


class Rwkv4Parameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Norm | None
    mix: tuple[Float[Array, " d_model"], ...]
    """The present token's share in what keys, values and receptances are made of."""
    k_proj: Weight
    """(width, d_model)."""
    v_proj: Weight
    r_proj: Weight
    time_decay: Float[Array, " width"]
    """Log of the rate."""
    time_first: Float[Array, " width"]
    """Added to the present token's key."""
    out_proj: Weight
    """(d_model, width)."""

    def initial_state(self) -> "Rwkv4State":
        """What is carried before the first token of a text."""
        width = self.time_decay.shape[0]
        return Rwkv4State(
            window=jnp.zeros((1, self.mix[0].shape[0])),
            state=jnp.zeros((2, width)),
            top=jnp.full((width,), NO_TOKEN),
        )


class Rwkv4State(eqx.Module):
    """What a decode step carries."""

    window: Any
    """(1, d_model), what was normalised last."""
    state: Any
    """(2, width): weighted values and weights, over e^top."""
    top: Any
    """(width)."""


def rwkv4(at: AbstractArithmetic, residual, p: Rwkv4Parameters, start: Rwkv4State):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the stream before the norm.
    - `start`: window, sums and maximum before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    widest = 3 * max(p.mix[0].shape[0], p.time_decay.shape[0])
    return in_token_blocks(at, _rwkv4, residual, p, start, widest=widest)


def _rwkv4(at: AbstractArithmetic, residual, p: Rwkv4Parameters, start: Rwkv4State):
    log_decay = at.negate(at.store("decay_rate", at.exp(p.time_decay)))
    x = front(at, residual, p.norm)
    mixed, window = token_shift(at, x, start.window, p.mix)
    put = lambda site, i, rows: at.store(site, at.matmul(mixed[:, i], rows))
    key, value = put("k", 0, p.k_proj), put("v", 1, p.v_proj)
    receptance = at.sigmoid(put("receptance_logit", 2, p.r_proj))
    receptance = at.store("receptance", receptance)
    ones = jnp.ones((1, p.time_decay.shape[0]))

    def token(at, carried, given):
        state, top = carried
        key, value = given
        drive = at.join([at.view(lambda a: a[None], value), at.carry(ones)])
        now = at.add(key, p.time_first)
        share = at.apply(LOG_WEIGHTS, top, jnp.zeros(top.shape), now)
        read = at.add(at.multiply(share[0], state), at.multiply(share[1], drive))
        read = at.apply(UNDER_SCALE, read, share[2])
        y = at.apply(QUOTIENT, read[0], read[1])
        share = at.apply(LOG_WEIGHTS, top, log_decay, key)
        # the states of a channel come last
        flip = lambda x: at.view(jnp.transpose, x)
        kept, new = at.multiply(share[0], state), at.multiply(share[1], drive)
        top, state = share[2], flip(at.updated(flip(kept), flip(new)))
        state = at.apply(UNDER_SCALE, state, top)
        at.observe("state", state)
        state = at.store_under("state", state, top)
        top, flipped = at.store_scale("state_top", top, flip(state))
        return (at.carry(flip(flipped)), at.carry(top)), y

    carried = at.carry(start.state), at.carry(start.top)
    (state, top), y = at.scan(token, carried, (key, value))
    y = at.store("scan_output", y)
    y = at.multiply(receptance, y, alone=at.stores("receptance"))
    out = at.matmul(at.store("gated", y), p.out_proj)
    return at.store("out", out), Rwkv4State(window, state, top)


@final
@dataclass(frozen=True)
class Rwkv4Sizes(AbstractSublayer):
    """One time mixing with the norm before it.

    **Arguments:**

    - `width`: channels of the recurrence.
    - `halvings`: how often transformers has halved the stream in front of it, and its
        output, exactly; `norm_epsilon` is that of the stream as it would be.
    - `norm_front`: whether there is a norm before it.
    """

    d_model: int
    width: int
    norm_epsilon: float
    halvings: int = 0
    norm_front: bool = True

    kind: ClassVar = "rwkv4"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(rwkv4)
    sites: ClassVar = (
        "decay_rate", *FRONT, *MIXED, "k", "v", "receptance_logit", "receptance",
        "state", "state_top", "scan_output", "gated", "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "rwkv4",
        "mixers",
        projections="k_proj v_proj r_proj out_proj",
        recurrence="time_decay time_first mix_k mix_v mix_r",
        norms=with_biases("norm"),
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """What was normalised last, both sums, and their maximum, which is in fp32."""
        return (
            HandedOn("window", "window", ("norm",)),
            HandedOn("state", "state", ("state",)),
            HandedOn("top", "state", ("state_top",)),
        )

    def parameters(self, get: Get) -> Rwkv4Parameters:
        """Put the flow's parameters together from stored ones."""
        return Rwkv4Parameters(
            norm=norm_of(get, "norm", self.norm_epsilon, True)
            if self.norm_front
            else None,
            mix=tuple(get(f"mix_{name}") for name in "kvr"),
            time_decay=get("time_decay"),
            time_first=get("time_first"),
            **{
                name: Weight(get(name))
                for name in ("k_proj", "v_proj", "r_proj", "out_proj")
            },
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        wide = 3 * max(self.d_model, self.width)
        return Counts(
            weights=4 * self.d_model * self.width,
            channels=wide,
            scores=0,
            states=2 * self.width,
            at_once=batch * tokens_at_once(wide, 1, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a channel, of values and of weights, whatever the tokens."""
        batch, seq = observed["state"].shape[:2]
        with np.errstate(over="ignore"):  # what forgets all at once
            log_decay = -np.exp(raw["time_decay"].astype(np.float64).ravel())
        return Dynamics(2, np.broadcast_to(log_decay, (batch, seq, self.width)))
