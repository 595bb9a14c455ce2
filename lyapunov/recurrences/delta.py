r"""The delta rule with gates: Gated DeltaNet and Kimi Delta Attention.

For each head, with a state S of value_dim x key_dim:

$$S' = S_{t-1} D_t, \quad S_t = S' + \beta_t (v_t - S' k_t) k_t^T,$$

$D_t$ one decay a head (Gated DeltaNet, Yang et al. 2024, arXiv 2412.06464) or one a key
channel (Kimi Delta Attention, arXiv 2510.26692): the state fades, is read at the key,
and what is read is replaced by the value in a share $\beta_t |k_t|^2$.

Exponents. The step Jacobian of a head is $M_t = (1 - \beta_t k_t k_t^T) D_t$ on the
keys, the same for every row of the state: each exponent of the product of M counts
value_dim times. M does not commute from token to token, so there is no closed form; but
$\det M_t = (1 - \beta_t |k_t|^2) \det D_t$ gives their sum, and
$||M_t|| \le \max D_t \max(1, |1 - \beta_t |k_t|^2|)$ bounds the largest.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import Exact
from ..arithmetic._delta import DeltaToken, log_norm_bound
from .base import AbstractKeyRecurrence


class DeltaInputs(NamedTuple):
    """What one token brings to the recurrence, or a sequence of them stacked."""

    log_gate: Float[Array, " heads *key_dim"]
    """Logs of the decays, one a head or one a key channel."""
    rate: Float[Array, " heads"]
    """beta: 0 writes nothing, 1 replaces what a key of norm 1 reads, 2 reflects it."""
    key: Float[Array, "heads key_dim"]
    value: Float[Array, "heads value_dim"]


class DeltaRecurrence(AbstractKeyRecurrence):
    """The state of a delta-rule layer, its inputs given: gates of either shape."""

    def step(self, state: Float[Array, "heads value_dim key_dim"], inputs: DeltaInputs):
        """S D + beta (v - S D k) k^T."""
        decay = jnp.exp(inputs.log_gate)
        token = DeltaToken(decay, inputs.key, inputs.value, inputs.rate)
        return Exact().delta_step(state, token)

    def on_keys(self, vectors: Float[Array, "heads n key_dim"], inputs: DeltaInputs):
        """Vectors D (1 - beta k k^T), a rank-one update; the largest decay apart."""
        log_gate = inputs.log_gate
        largest = _by_key(inputs).max(axis=-1)
        apart = jnp.where(jnp.isneginf(largest), 0.0, largest)
        relative = log_gate - apart.reshape(-1, *[1] * (log_gate.ndim - 1))
        nothing = jnp.zeros(vectors.shape[:2], vectors.dtype)
        token = inputs._replace(log_gate=relative, value=nothing)
        return self.step(vectors, token), apart

    def log_determinant(self, inputs: DeltaInputs):
        """log |1 - beta |k|^2| + sum of log gates; -inf where all that is read goes."""
        gates = jnp.broadcast_to(_by_key(inputs), inputs.key.shape)
        return gates.sum(axis=-1) + jnp.log(jnp.abs(1 - _erased(inputs)))

    def scales_apart(self, inputs: DeltaInputs):
        """The gates, and a write without them."""
        gates = jnp.broadcast_to(_by_key(inputs), inputs.key.shape)
        return gates, inputs._replace(log_gate=jnp.zeros_like(inputs.log_gate))

    def log_norm_bound(self, inputs: DeltaInputs):
        """log max D + log max(1, |1 - beta |k|^2|): the norm itself where D is one."""
        return log_norm_bound(inputs.log_gate, _erased(inputs))


def _by_key(inputs: DeltaInputs) -> Float[Array, " heads #key_dim"]:
    """Log gates with an axis of keys: of length 1 where a head has one."""
    return inputs.log_gate.reshape(len(inputs.rate), -1)


def _erased(inputs: DeltaInputs) -> Float[Array, " heads"]:
    """The share of what the key reads that the write replaces."""
    return inputs.rate * jnp.sum(inputs.key**2, axis=-1)
