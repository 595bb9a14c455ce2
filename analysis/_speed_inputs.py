"""What `analysis.speed` runs on: sizes, random parameters, records, a scan's inputs."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Bounded, Rounded, Weight
from lyapunov.implementations import SublayerRecord
from lyapunov.sublayers.mamba1 import Mamba1Parameters, initial_state, mamba1
from lyapunov.sublayers.norm import Norm
from lyapunov.sublayers.residual import Incoming, sublayer


class Shape(NamedTuple):
    """Sizes of the benchmark."""

    batch: int = 8
    seq: int = 2048
    layers: int = 24
    d_model: int = 768
    d_inner: int = 1536
    d_state: int = 16
    dt_rank: int = 48
    vocabulary: int = 50280
    rounds: int = 5
    square: int = 8192
    copied: int = 2**27


ON_CPU = Shape(batch=1, seq=512, layers=2, rounds=3)
SMALL = Shape(2, 32, 2, 16, 32, 16, 4, 64, 2, 64, 2**12)


class Place(NamedTuple):
    """A layer for a record."""

    layer: int
    kind: str = "mamba1"


def parameters(shape: Shape, seed: int) -> Mamba1Parameters:
    """Random ones, as Mamba is initialised, in fp32 numbers."""
    rng = np.random.default_rng(seed)
    held = lambda x: jnp.asarray(np.asarray(x, np.float32), jnp.float64)
    matrix = lambda rows, columns: Weight(
        held(rng.uniform(-1, 1, (rows, columns)) / columns**0.5)
    )
    d_inner, d_state, rank = shape.d_inner, shape.d_state, shape.dt_rank
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), d_inner))
    return Mamba1Parameters(
        norm=Norm(jnp.ones(shape.d_model, jnp.float64), None, 1e-5),
        in_proj=matrix(2 * d_inner, shape.d_model),
        in_proj_bias=None,
        conv_weight=held(rng.uniform(-0.5, 0.5, (d_inner, 4))),
        conv_bias=held(rng.uniform(-0.5, 0.5, d_inner)),
        x_proj=matrix(rank + 2 * d_state, d_inner),
        dt_proj=matrix(d_inner, rank),
        dt_bias=held(dt + np.log(-np.expm1(-dt))),
        A_log=held(np.log(np.tile(np.arange(1.0, d_state + 1), (d_inner, 1)))),
        D=jnp.ones(d_inner, jnp.float64),
        out_proj=matrix(shape.d_model, d_inner),
        out_proj_bias=None,
    )


def rounded(p: Mamba1Parameters, execution) -> Mamba1Parameters:
    """The projections in the execution's format; the rest stays in fp32."""
    fmt = execution.parameter_format("in_proj").name
    cast = lambda x: jnp.asarray(jnp.asarray(x, fmt), jnp.float64)
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    fmt = names[fmt]
    is_weight = lambda x: isinstance(x, Weight)
    return jax.tree.map(
        lambda x: Weight(cast(x.matrix)) if is_weight(x) else x, p, is_leaf=is_weight
    )


def incoming(shape: Shape, batch: int | None = None) -> Incoming:
    """A stream in fp32 numbers."""
    rng = np.random.default_rng(1)
    size = (batch or shape.batch, shape.seq, shape.d_model)
    draw = lambda: jnp.asarray(
        np.asarray(rng.normal(size=size), np.float32), jnp.float64
    )
    return Incoming(draw(), draw())


@eqx.filter_jit
def _emulated(sites, given: Incoming, p, start):
    def one(given):
        at = Rounded(sites)
        _, output, _ = sublayer(at, mamba1, given, p, start)
        return jnp.asarray(output, jnp.float64), at.records

    return jax.vmap(one)(given)


def record_of(execution, given: Incoming, p) -> SublayerRecord:
    """What the execution would have stored, emulated."""
    output, stored = _emulated(execution.site_numbers(), given, p, initial_state(p))
    return SublayerRecord.of(Place(0), given, output, stored, {})


def scan_operands(shape: Shape, bounded: bool, batch: int):
    """dt, u, B, C, A, D, state of sizes that trained layers have."""
    rng = np.random.default_rng(2)
    size = (batch, shape.seq)

    def value(x):
        x = jnp.asarray(x)
        return Bounded(x, jnp.abs(x) * 2.0**-9) if bounded else x

    return (
        value(np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (*size, shape.d_inner)))),
        value(rng.normal(size=(*size, shape.d_inner))),
        value(rng.normal(size=(*size, shape.d_state))),
        value(rng.normal(size=(*size, shape.d_state))),
        value(-np.tile(np.arange(1.0, shape.d_state + 1)[:, None], shape.d_inner)),
        jnp.ones(shape.d_inner),
        jnp.zeros((shape.d_state, shape.d_inner)),
    )
