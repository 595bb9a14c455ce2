"""How perturbations grow through one sublayer: a scale for SSMs and attention alike.

Attention has no state of fixed size and so no Lyapunov exponents; what both have is the
derivative of the residual stream behind a sublayer by that in front of it. An SSM's
answer to one perturbed token fades with its decays, attention's with nothing but the
number of tokens that it is spread over.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..arithmetic import Exact
from ..results._check import LayerGrowth
from ..sublayers.residual import Incoming, sublayer


DIRECTIONS = 4


def perturbation_growth(
    flow, incoming: Incoming, p, start, key: Array, *, directions: int = DIRECTIONS
) -> LayerGrowth:
    r"""Measure the gain of one sublayer, and what one perturbed token does later.

    With x the stream in front and y = x + F(x) that behind, and v Gaussian,
    `gain` is $\frac{||Jv|| / ||y||}{||v|| / ||x||}$, a root mean square over
    directions. `response` is, for a v on one token t alone, the relative change of
    what the sublayer adds to the stream k tokens later,
    $\frac{||(Jv)_{t+k} - v_{t+k}|| / ||y_{t+k}||}{||v_t|| / ||x_t||}$.

    **Arguments:**

    - `flow`, `p`, `start`: of the sublayer.
    - `incoming`: of one sequence, (seq, d_model).
    - `key`: for the directions. Each costs two tangents, about five forwards.
    """
    seq = incoming.residual.shape[0]
    token = seq // 4
    distances = [0]
    while token + max(1, 2 * distances[-1]) < seq:
        distances.append(max(1, 2 * distances[-1]))
    gain, found = _growth(flow, incoming, p, start, key, directions, token)
    response = np.asarray(found)
    return LayerGrowth(
        gain=float(gain),
        token=token,
        distances=distances,
        response=[float(response[token + k]) for k in distances],
    )


@eqx.filter_jit
def _growth(flow, incoming, p, start, key, directions: int, token: int):
    stream = incoming.residual + incoming.hidden

    def run(stream):
        given = incoming._replace(residual=stream, hidden=jnp.zeros_like(stream))
        return sublayer(Exact(), flow, given, p, start)[1]

    output, push = jax.linearize(run, stream)
    after = jnp.linalg.norm(stream + output, axis=-1)
    before = jnp.linalg.norm(stream, axis=-1)

    def one(key):
        everywhere = jax.random.normal(key, stream.shape, jnp.float64)
        alone = jnp.zeros_like(stream).at[token].set(everywhere[token])
        whole = jnp.linalg.norm(everywhere + push(everywhere))
        gain = whole * jnp.linalg.norm(before)
        gain = gain / (jnp.linalg.norm(everywhere) * jnp.linalg.norm(after))
        later = jnp.linalg.norm(push(alone), axis=-1) / after
        return gain, later * before[token] / jnp.linalg.norm(alone)

    gains, responses = jax.lax.map(one, jax.random.split(key, directions))
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, axis=0))
    return rms(gains), rms(responses)
