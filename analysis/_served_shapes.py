"""The state of Mamba-2's 130M and 2.8B shapes by format and period, against fp64.

No network: weights that are drawn remember nothing, so what they would say says
nothing. Heads run by themselves on inputs as at initialisation, and what a store takes
away is followed through the library's own recurrence and roundings.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._served_cases import BYTES, RING, SCALE_BYTES


TOKENS = 2049
STATES = ("bf16", "fp16", "fp16-stochastic", "int16-scaled", "int8-scaled")
STATES += ("fp8_e4m3-scaled",)
PERIODS = (1, 4, RING)


class Shape(NamedTuple):
    """A published Mamba-2."""

    name: str
    layers: int
    d_model: int
    seed: int
    head_dim: int = 64
    d_state: int = 128

    @property
    def heads(self) -> int:
        """All of a layer."""
        return 2 * self.d_model // self.head_dim


SHAPES = (Shape("130M", 24, 768, 1), Shape("2.8B", 64, 2560, 2))


def rows(shape: Shape) -> list[dict[str, Any]]:
    """Every format and period of a shape; an fp32 state is what an exact one is here.

    `by_head`: relative L2 of the outputs of each head, in the order of `memories`.
    """
    found = []
    with jax.enable_x64(True):
        inputs, A, C = drawn(shape)
        exact = followed(inputs, A, C, "fp64", 1)
        for state in STATES:
            for period in PERIODS:
                outputs, last = followed(inputs, A, C, state, period)
                by_head = [
                    _apart(outputs[:, h], exact[0][:, h]) for h in range(shape.heads)
                ]
                found.append(
                    {
                        "shape": shape.name,
                        "state": state,
                        "period": period,
                        "output_rel_l2": _apart(outputs, exact[0]),
                        "state_rel_l2": _apart(last, exact[1]),
                        "by_head": by_head,
                    }
                )
    return found


def memories(shape: Shape) -> list[float]:
    """Tokens in which each head forgets all but 1/e, at its mean dt."""
    with jax.enable_x64(True):
        inputs, A, _ = drawn(shape)
        return np.asarray(-1.0 / (inputs.dt.mean(0) * A)).tolist()


def drawn(shape: Shape):
    """Inputs as at initialisation, held in bf16 as activations are: (tokens first).

    x, B and C are SiLU of 1.5 N(0, 1); dt_bias is softplus's inverse of a dt between
    1e-3 and 1e-1, log-uniform, behind which N(0, 1) / 2 comes from in_proj; A is
    uniform from -16 to -1, as mamba_ssm draws it.
    """
    from lyapunov.formats import BF16, round_to
    from lyapunov.recurrences import Mamba2Inputs

    rng = np.random.default_rng(shape.seed)
    heads, bf16 = shape.heads, BF16.numbers()

    def silu(*sizes: int):
        at = 1.5 * rng.standard_normal(sizes)
        return round_to(at / (1.0 + np.exp(-at)), bf16)

    x = silu(TOKENS, heads, shape.head_dim)
    B, C = (silu(TOKENS, 1, shape.d_state) for _ in range(2))
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), heads))
    bias = dt + np.log(-np.expm1(-dt))
    raw = round_to(0.5 * rng.standard_normal((TOKENS, heads)), bf16)
    A = -jnp.asarray(rng.uniform(1.0, 16.0, heads))
    return Mamba2Inputs(jnp.logaddexp(0.0, raw + bias), x, B), A, C


def followed(inputs, A, C, state: str, period: int) -> tuple[np.ndarray, np.ndarray]:
    """C h at every token, from the state before it is stored, and the last state."""
    from lyapunov.formats import FP64, round_state, state_format_named
    from lyapunov.recurrences import Mamba2Recurrence

    form = FP64 if state == "fp64" else state_format_named(state)
    numbers, recurrence = form.numbers(), Mamba2Recurrence(A)
    shape = (*inputs.x.shape[1:], inputs.B.shape[-1])

    def stored(held, key):
        # a scale is of a channel's states, which come first there
        channels = held.reshape(-1, shape[-1]).T
        return round_state(channels, numbers, key).T.reshape(shape)

    def token(held, at):
        count, one, read, key = at
        new = recurrence.step(held, one)
        output = jnp.einsum("hpn,n->hp", new, read[0])
        last = (count + 1) % period == 0
        return jax.lax.cond(last, stored, lambda h, _: h, new, key), output

    tokens = inputs.x.shape[0]
    keys = jax.random.split(jax.random.PRNGKey(0), tokens)
    over = (jnp.arange(tokens), inputs, C, keys)
    last, outputs = jax.jit(lambda o: jax.lax.scan(token, jnp.zeros(shape), o))(over)
    return np.asarray(outputs), np.asarray(last)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def costs(shape: Shape) -> list[dict[str, Any]]:
    """Bytes of states a sequence, and bytes of states moved a token of one sequence, of
    all layers.

    A step reads and stores its state. A window of drafts reads one and stores one a
    token, all of them accepted here; ReplaySSM reads the state at every token, stores
    it once a ring, and reads half a ring on average.
    """
    channels = shape.heads * shape.head_dim
    row = 2 * (channels + shape.d_state) + 4 * shape.heads
    found = []
    for state in ("fp32", *STATES):
        element, _, variant = state.partition("-")
        one = channels * shape.d_state * BYTES[element]
        one += channels * SCALE_BYTES if "scaled" in variant else 0
        for period in PERIODS:
            if period == 1:
                kept, moved = one, 2.0 * one
            elif period == RING:
                kept = one + RING * row
                moved = one * (1 + 1 / RING) + row * (1 + RING / 2)
            else:
                kept, moved = one * period, one * (1 + period) / period
            found.append(
                {
                    "shape": shape.name,
                    "state": state,
                    "period": period,
                    "kept_bytes": shape.layers * kept,
                    "moved_bytes": shape.layers * moved,
                }
            )
    return found
