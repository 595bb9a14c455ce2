r"""What a network under `torch.compile` promises, and what of it can be held to bounds.

Inductor makes one kernel of several operations. Inside one it computes in fp32,
whatever the format, so that what eager torch rounds may be kept as it is; which,
depends on what it joins. A bound that is not centred covers both: at a store a value
moves by at most a rounding, or not at all (`arithmetic.rules.storage`). Nothing else is
rounded: the operations are those of the graph, in decompositions whose extra fp32
roundings (a constant's reciprocal for a division, a scale split over two factors) are
at most four for one, and whose exponential is off by at most 20 units in the last place
(`fexp_u20` of fused attention; elsewhere Sleef's, 1). Softplus and silu are logarithm,
exponential and a quotient of these: 2 units and three roundings. With
`-ffp-contract=off` nothing is joined further.

What a kernel reads may be another version of a tensor than the one that is written to
memory: rounded here, computed anew and kept in fp32 there. Products of matrices are no
part of such kernels (without `max-autotune`): what they put out, and what they alone
read, has one version (`PRODUCTS`), and so has what a sublayer adds to the stream. Two
of the stream are apart by D_k <= D_(k-1) + 2 u (|r_k| + D_(k-1)), r_k the sum behind k
sublayers, both of which may have been rounded.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import Bounded
from ..sublayers.config import NetworkConfig
from ._execution import Execution


KINDS = ("mamba1", "mamba2", "attention", "mlp")
"""Of sublayers whose graph depends on no value; a router's does."""
PRODUCTS = frozenset(
    (
        *("norm", "xz", "x_proj", "gated", "out"),
        *("q", "k", "v", "q_down", "kv_down", "output_gate", "up", "gate", "hidden"),
        *("read", "read_gated"),
    )
)
"""Sites that products of matrices put out, or that nothing else reads."""
MOST_STEPS = 128
"""Of Mamba-1's scans over all sublayers: in transformers they are Python loops, of
which the compiler makes one graph, some 2 s of a core each step."""
UNIT = 2.0**-22
EXP = 2.0**-18


def compiled(execution: Execution) -> Execution:
    """The same network as `torch.compile` runs it, on a CPU."""
    constants = execution.constants
    constants = dataclasses.replace(
        constants,
        unit=max(UNIT, constants.unit),
        exp_relative=max(EXP, constants.exp_relative),
    )
    return dataclasses.replace(
        execution,
        name=f"{execution.name}, compiled",
        compiled=True,
        constants=constants,
        **execution.mapped(compiled),
        assumptions=(
            *execution.assumptions,
            "torch.compile with inductor on a CPU, by default options, of the network "
            "with what is watched among its outputs",
            "compiled: a value may be kept in fp32 where a store would round it; "
            "products of matrices are calls of their own, which store; elsewhere at "
            "most four fp32 roundings stand for one, exponentials within 20 ulp",
        ),
    )


def not_compiled(config: NetworkConfig, seq: int) -> str | None:
    """Why the compiled run of `seq` tokens is not held to bounds; None where it is."""
    sublayers: Any = config.sublayers
    kinds = {sizes.kind for sizes in sublayers}
    other = sorted(kinds - set(KINDS))
    if other:
        return f"what torch.compile makes of {', '.join(other)} is not followed"
    apart = (s.beside or s.aside or s.embedded or not s.adds_out for s in sublayers)
    if any(apart) or config.embedding_multiplier != 1.0:
        return (
            "what joins the stream is scaled, normalised or added to something before: "
            "several versions of it may be in a compiled network"
        )
    scans = sum(sizes.kind == "mamba1" for sizes in sublayers)
    if scans * seq > MOST_STEPS:
        return (
            f"torch.compile unrolls Mamba-1's scans, {scans * seq:,} steps here; "
            f"try --length {max(1, MOST_STEPS // scans)} or fewer"
        )
    return None


class Versions:
    """How far versions of the stream are apart, sublayer by sublayer.

    **Arguments:**

    - `execution`: of the run.
    """

    def __init__(self, execution: Execution):
        self._execution = execution
        self._apart: Float[Array, "batch seq d_model"] | None = None

    def read(self, record: Any) -> Any:
        """The record's `incoming`, its stream with the error that a version may have;
        as it is, where there is one version of all.

        **Arguments:**

        - `record`: of the next sublayer, a `SublayerRecord`.
        """
        incoming = record.incoming
        if not self._execution.compiled:
            return incoming
        apart = self._apart
        if apart is None:
            apart = jnp.zeros_like(record.residual)
        form = self._execution.at(record).sites["residual"]
        size = jnp.abs(record.residual + record.hidden) + apart
        rounding = form.unit_roundoff * (size + form.smallest_normal)
        self._apart = apart + 2.0 * rounding
        return incoming._replace(residual=Bounded(record.residual, apart))
