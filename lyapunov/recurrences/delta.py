r"""The delta rule with gates: Gated DeltaNet and Kimi Delta Attention.

For each head, with a state S of key_dim x value_dim:

$$S' = D_t S_{t-1}, \quad S_t = S' + \beta_t k_t (v_t - S'^T k_t)^T,$$

$D_t$ one decay a head (Gated DeltaNet, Yang et al. 2024, arXiv 2412.06464) or one a key
channel (Kimi Delta Attention, arXiv 2510.26692): the state fades, is read at the key,
and what is read is replaced by the value in a share $\beta_t |k_t|^2$.

Exponents. The step Jacobian of a head is $M_t = (1 - \beta_t k_t k_t^T) D_t$ on the
keys, the same for every column of the state: each exponent of the product of M counts
value_dim times. M does not commute from token to token, so there is no closed form; but
$\det M_t = (1 - \beta_t |k_t|^2) \det D_t$ gives their sum, and
$||M_t|| \le \max D_t \max(1, |1 - \beta_t |k_t|^2|)$ bounds the largest.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Exact
from .base import AbstractKeyRecurrence


class DeltaInputs(NamedTuple):
    """What one token brings to the recurrence, or a sequence of them stacked."""

    log_gate: Float[Array, " heads *key_dim"]
    """Logs of the decays, one a head or one a key channel."""
    rate: Float[Array, " heads"]
    """beta: 0 writes nothing, 1 replaces what a key of norm 1 reads, 2 reflects it."""
    key: Float[Array, "heads key_dim"]
    value: Float[Array, "heads value_dim"]


def update(at: AbstractArithmetic, state, log_gate, rate, key, value):
    """One token: the state after it, not stored.

    **Arguments:**

    - `state`: (heads, key_dim, value_dim).
    - `log_gate`: (heads, 1) or (heads, key_dim), at most 0.
    - `rate`: (heads). `key`: (heads, key_dim). `value`: (heads, value_dim).
    """
    gate = at.view(lambda g: g[..., None], at.fading(log_gate))
    kept = at.multiply(state, gate)
    read = at.einsum("hkv,hk->hv", kept, key)
    rest = at.add(value, at.negate(read))
    write = at.multiply(rest, at.view(lambda b: b[:, None], rate))
    return at.add(kept, at.einsum("hk,hv->hkv", key, write))


class DeltaRecurrence(AbstractKeyRecurrence):
    """The state of a delta-rule layer, its inputs given: gates of either shape."""

    def step(self, state: Float[Array, "heads key_dim value_dim"], inputs: DeltaInputs):
        """D S + beta k (v - k^T D S)^T."""
        return update(Exact(), state, _by_key(inputs), *inputs[1:])

    def on_keys(self, columns: Float[Array, "heads key_dim n"], inputs: DeltaInputs):
        """(1 - beta k k^T) D columns, a rank-one update; the largest decay apart."""
        largest = _by_key(inputs).max(axis=-1)
        apart = jnp.where(jnp.isneginf(largest), 0.0, largest)
        nothing = jnp.zeros((len(columns), columns.shape[-1]), columns.dtype)
        relative = _by_key(inputs) - apart[:, None]
        token = inputs._replace(log_gate=relative, value=nothing)
        return self.step(columns, token), apart

    def log_determinant(self, inputs: DeltaInputs):
        """log |1 - beta |k|^2| + sum of log gates; -inf where all that is read goes."""
        gates = jnp.broadcast_to(_by_key(inputs), inputs.key.shape)
        return gates.sum(axis=-1) + jnp.log(jnp.abs(1 - _erased(inputs)))

    def log_norm_bound(self, inputs: DeltaInputs):
        """log max D + log max(1, |1 - beta |k|^2|): the norm itself where D is one."""
        largest = _by_key(inputs).max(axis=-1)
        return largest + jnp.log(jnp.maximum(1.0, jnp.abs(1 - _erased(inputs))))


def _by_key(inputs: DeltaInputs) -> Float[Array, " heads #key_dim"]:
    """Log gates with an axis of keys: of length 1 where a head has one."""
    return inputs.log_gate.reshape(len(inputs.rate), -1)


def _erased(inputs: DeltaInputs) -> Float[Array, " heads"]:
    """The share of what the key reads that the write replaces."""
    return inputs.rate * jnp.sum(inputs.key**2, axis=-1)
