"""What is planned for sublayers over long texts, beside what their programs need."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov._xla import little_memory
from lyapunov.bounds import adjoint, local, passes
from lyapunov.bounds._way_back import Pulls
from lyapunov.exponents import _growth
from lyapunov.implementations import executions_for
from lyapunov.implementations.emulated import runner
from lyapunov.models import Model
from lyapunov.questions._effort import EFFORTS
from lyapunov.questions._plan import COMPILED_BYTES, COMPILING
from lyapunov.questions._plan_memory import (
    BASE_BYTES,
    STREAMS_AROUND,
    Memory,
    memory_of,
)
from lyapunov.sublayers import AttentionSizes, Mamba2Sizes, MlpSizes, NetworkConfig
from lyapunov.sublayers.residual import Incoming
from lyapunov.sublayers.token_blocks import tokens_at_once


WIDTH = 2048
# Granite-4-H-micro's.
GRANITE = {
    "attention": AttentionSizes(
        d_model=WIDTH, heads=32, kv_heads=8, head_dim=64, rotary=0, theta=1e4,
        scale=0.015625, norm_epsilon=1e-5, out_multiplier=0.22,
    ),
    "mlp": MlpSizes(WIDTH, 8192, "silu", True, 1e-5, out_multiplier=0.22),
    "mamba2": Mamba2Sizes(
        WIDTH, 4096, 128, 64, 1, 4, 256, 1e-5, 1e-5, out_multiplier=0.22
    ),
}  # fmt: skip
# Entries a token that the emulator stores, in fp32: of the stream, and inside.
STORED = {
    "attention": 7 * WIDTH + 2 * 512,
    "mlp": 6 * WIDTH + 4 * 8192,
    "mamba2": 3 * WIDTH + 8512 + 4352 + 2 * 4096,
}
STAGES = ("reference", "run", "T0 and T1", "T3", "T2", "T4", "growth")


def planned(kinds, tokens: int, batch: int = 1, effort="standard") -> Memory:
    sublayers = tuple(GRANITE[kind] for kind in kinds)
    config = NetworkConfig(100_352, 100_352, WIDTH, sublayers)
    executions = executions_for(config, ["bf16"], architecture="granitemoehybrid")
    model = cast(Model, SimpleNamespace(config=config, sublayers=sublayers))
    stored = {kind: 4 * batch * tokens * STORED[kind] for kind in kinds}
    given = dataclasses.replace(EFFORTS[effort], readouts=1)
    return memory_of(model, (batch, tokens), executions, given, stored)


@pytest.mark.parametrize("kind", GRANITE)
@pytest.mark.parametrize("stage", STAGES)
def test_a_long_text_is_planned_by_its_tokens(kind, stage):
    """Assert that twice the tokens are at most twice the memory, and not the square.

    Of 32 heads at 32k tokens the scores alone are 256 GiB; of the MLP T1 held 39.
    """
    short, long = planned([kind], 2**14), planned([kind], 2**15)
    assert short.of(stage) < long.of(stage) <= 2 * short.of(stage)
    assert long.of(stage) < 16 * 2**30
    two = planned([kind], 2**14, batch=2)
    assert short.of(stage) <= two.of(stage) <= 2 * short.of(stage)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("attention", 724),
        ("mlp", tokens_at_once(8192)),
        ("mamba2", tokens_at_once(8512, 256)),
    ],
)
def test_no_step_down_where_blocks_begin(kind, most):
    """Assert that a text in blocks is planned at least half of the longest at once."""
    if kind == "attention":
        assert GRANITE[kind].count(most).scores == 0
        assert GRANITE[kind].count(most + 1).scores > 0
    at_once, after = (planned([kind], n).at_work["T0 and T1"] for n in (most, most + 1))
    assert at_once / 4 < after < 2 * at_once


@pytest.mark.parametrize(
    ("effort", "most"), [("quick", 13), ("standard", 24), ("full", 27)]
)
def test_a_granite_hybrid_of_32k_tokens_fits(effort, most):
    """Assert the plan of 36 Mamba-2, 4 attentions and 40 MLPs, in GiB, bf16."""
    layers = ["mamba2", "mlp"] * 36 + ["attention", "mlp"] * 4
    found = planned(layers, 2**15, effort=effort)
    stages = {
        "quick": ["reference", "run", "measured", "T3"],
        "standard": ["reference", "run", "T0 and T1", "T3", "growth"],
        "full": [*STAGES, "floor"],
    }[effort]
    assert found.alone
    total = BASE_BYTES + COMPILED_BYTES * sum(COMPILING[name].cold for name in stages)
    total += found.peak(stages)
    assert (most - 4) * 2**30 < total < most * 2**30, total / 2**30


# --- Compiled --------------------------------------------------------------------


def temporaries(run, *given, **options) -> int:
    """Bytes that a program holds beside its arguments and results."""
    program = jax.jit(run, **options).lower(*given).compile()
    found: Any = program.memory_analysis()
    return found.temp_size_in_bytes


def drawn(kind: str) -> dict[str, np.ndarray]:
    shapes = {
        "mlp": {"up": (8192, WIDTH), "gate": (8192, WIDTH), "down": (WIDTH, 8192)},
        "attention": {
            **dict.fromkeys(("q_proj", "o_proj"), (WIDTH, WIDTH)),
            **dict.fromkeys(("k_proj", "v_proj"), (512, WIDTH)),
        },
        "mamba2": {
            **{"in_proj": (8512, WIDTH), "out_proj": (WIDTH, 4096)},
            **{"conv_weight": (4352, 4), "conv_bias": (4352,), "gate_norm": (4096,)},
            **dict.fromkeys(("dt_bias", "A_log", "D"), (64,)),
        },
    }
    return {
        "norm": np.ones(WIDTH),
        **{name: np.ones(shape) for name, shape in shapes[kind].items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [512, 8192])
@pytest.mark.parametrize("kind", GRANITE)
def test_the_plan_is_what_the_programs_need(kind, tokens):
    """Assert T0, T1, T2 and growth of one sublayer to take no more than is planned.

    And T1 no less than a fifth: the plan tells something.
    """
    sizes, arrays = GRANITE[kind], drawn(kind)
    get = lambda name: None if name not in arrays else jnp.asarray(arrays[name])
    p, flow = sizes.parameters(get), sizes.flow
    config = NetworkConfig(100, 100, WIDTH, (sizes,))
    (network,) = executions_for(config, ["bf16"], architecture="granitemoehybrid")
    own = network.of(kind)
    numbers, start = passes.numbers_of(own), p.initial_state()
    stream = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float64)
    one = jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float64)
    incoming, maker = Incoming(stream, stream), passes.Interpreter(own, tokens, True)
    seeds = np.zeros(3, int)
    run = lambda sites, i, p, s, seeds: runner.run_rounded.__wrapped__(
        sizes, sites, {}, i, p, s, None, seeds, own.form, False
    )
    stored = jax.eval_shape(run, numbers.sites, incoming, p, start, seeds)[2]
    entries = sum(math.prod(x.shape[2:]) for name, x in stored.items())
    if kind != "attention":
        assert entries == STORED[kind]
    assert ("scores" in stored) == (kind == "attention" and tokens == 512)
    t0 = lambda inputs, p, s: local._operations.__wrapped__(flow, maker, inputs, p, s)
    inputs = local._Inputs(numbers, incoming, stored)
    t1 = lambda n, i, p, s: passes.bounded_pass.__wrapped__(flow, maker, n, i, p, s)
    t2 = lambda n, i, pulls, p, s: adjoint._through_sublayer.__wrapped__(
        flow, n, i, pulls, p, s, False, own.form
    )
    growth = lambda i, p, s, key: _growth._growth.__wrapped__(
        flow, i, p, s, key, 4, tokens // 4
    )
    plan = planned([kind], tokens).at_work
    in_t0 = temporaries(t0, inputs, p, start, **little_memory())
    exact = jax.eval_shape(passes.without_error, incoming)
    in_t1 = temporaries(t1, numbers, exact, p, start)
    # what goes in and comes out, and the text's own stored tensors, come on top
    around = STREAMS_AROUND * 8 * tokens * WIDTH
    room = plan["T0 and T1"] - around - 4 * tokens * STORED[kind]
    # and so do the weights that the programs are given, as held and as they are
    room -= 2 * 8 * sizes.count(tokens).weights
    both = max if 4 * tokens * STORED[kind] > 2**29 else sum
    assert both([in_t0, in_t1]) <= room <= 5 * in_t1, (in_t0, in_t1, room)
    pull: Any = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float64)
    pulls = Pulls(pull, pull, pull)
    given = [numbers.sites], Incoming(one, one), pulls, p, start
    assert temporaries(t2, *given) <= plan["T2"]
    found = temporaries(growth, Incoming(one, one), p, start, jax.random.key(0))
    assert found <= plan["growth"]
