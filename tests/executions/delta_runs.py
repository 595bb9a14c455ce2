"""Servers' delta rules in NumPy (`kernels.served_delta`), held to their bounds."""

import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.bounds.local import operation_bounds, sublayer_bound, with_operator_norms
from lyapunov.implementations import implementation_named
from lyapunov.implementations._execution import Execution
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.models.held import held
from lyapunov.sublayers import GatedDeltaSizes, KimiDeltaSizes, NetworkConfig
from oracles.kernels import served_delta as kernels
from oracles.kernels.mamba1 import cast

from .ssd_runs import ratio


D_MODEL, CHUNK, SEQ = 24, 32, 70
GATED = GatedDeltaSizes(
    D_MODEL, 2, 4, 16, 8, 4, 1e-6, 1e-6, norm_offset=1.0, chunk=CHUNK
)
KIMI = KimiDeltaSizes(D_MODEL, 2, 16, 16, 4, 1e-6, 1e-6, gate_rank=8, chunk=CHUNK)
SIZES = {"gated_delta": GATED, "kimi_delta": KIMI}
FAMILY = {"gated_delta": "qwen3_next", "kimi_delta": "kimi_linear"}
IN_FP32 = {
    "gated_delta": ("A_log",),
    "kimi_delta": ("A_log", "dt_bias", "conv_weight"),
}


def drawn(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a mixer that remembers: it forgets 2 to 30 % of a state in a token."""
    rng, sizes = np.random.default_rng(seed), SIZES[kind]
    matrix = lambda *shape: rng.normal(size=shape) / np.sqrt(shape[-1])
    kimi = kind == "kimi_delta"
    heads = KIMI.heads if kimi else GATED.value_heads
    keys = sizes.key_dim * (heads if kimi else GATED.key_heads)
    values, d = sizes.value_dim * heads, D_MODEL
    found = {
        "norm": 0.3 * rng.normal(size=d) + (1.0 if kimi else 0.0),
        "q_proj": matrix(keys, d), "k_proj": matrix(keys, d),
        "v_proj": matrix(values, d), "b_proj": matrix(heads, d),
        "conv_weight": matrix(2 * keys + values, 4),
        "A_log": np.log(rng.uniform(0.02, 0.3, heads)),
        "dt_bias": rng.normal(size=keys if kimi else heads),
        "gate_norm": 1 + 0.3 * rng.normal(size=sizes.value_dim),
        "out_proj": matrix(d, values),
    }  # fmt: skip
    if kimi:
        rank = KIMI.gate_rank
        found |= {"f_down": matrix(rank, d), "f_up": matrix(keys, rank)}
        found |= {"g_down": matrix(rank, d), "g_up": matrix(values, rank)}
    else:
        found |= {"z_proj": matrix(values, d), "a_proj": matrix(heads, d)}
    return {name: x.astype(np.float32) for name, x in found.items()}


def network(kind: str) -> NetworkConfig:
    """One of one mixer."""
    offset = getattr(SIZES[kind], "norm_offset", 0.0)
    return NetworkConfig(50, 50, D_MODEL, (SIZES[kind],), norm_offset=offset)


def declared(kind: str, name: str, precision: str, mode: str, state: str) -> Execution:
    """What is declared of a command line."""
    return (
        implementation_named(name)
        .execution(
            network(kind),
            precision,
            architecture=FAMILY[kind],
            mode=mode,
            state_precision=state,
        )
        .of(kind)
    )


def found(
    kind: str, execution: Execution, make, precision: str, seed: int = 0, **options
):
    """What bounds say of a kernel: (violations by site, of T1, T1's ratio)."""
    sizes, raw = SIZES[kind], drawn(kind, seed)
    rng = np.random.default_rng(seed + 100)
    draw = lambda: cast(rng.normal(size=(SEQ, D_MODEL)).astype(np.float32), precision)
    before, hidden = draw(), draw()
    own = kernels.held(raw, precision, IN_FP32[kind])
    stored = make(own, sizes, precision, **options).run(before, hidden)
    wide = lambda x: jnp.asarray(x, jnp.float64)[None]
    kept = {site: wide(x) for site, x in stored.items() if site in execution.sites}
    record = SublayerRecord(0, kind, wide(before), wide(hidden), kept["out"], kept, {})
    with jax.enable_x64(True):
        get = lambda formats: (
            lambda name: (
                jnp.asarray(held(raw[name], name, formats)) if name in raw else None
            )
        )
        exact = sizes.parameters(get(None))
        parameters = with_operator_norms(sizes.parameters(get(execution)))
        bounded = execution, sizes.flow, record, parameters
        start = parameters.initial_state()
        tensors = operation_bounds(*bounded, start)
        t1 = sublayer_bound(*bounded, exact, start).comparison
        t0 = {site: int(np.sum(c.violations)) for site, c in tensors.items()}
        return t0, int(np.sum(t1.violations)), ratio(t1)
