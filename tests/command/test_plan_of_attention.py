"""What is planned for attention over long texts, beside what its programs need."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov._xla import little_memory
from lyapunov.bounds import local, passes
from lyapunov.implementations import executions_for
from lyapunov.implementations.emulated import runner
from lyapunov.models import Model
from lyapunov.questions._plan import _stage_bytes
from lyapunov.sublayers.attention import AttentionSizes
from lyapunov.sublayers.config import NetworkConfig
from lyapunov.sublayers.residual import Incoming


GRANITE = AttentionSizes(
    d_model=2048, heads=32, kv_heads=8, head_dim=64, rotary=0, theta=1e4,
    scale=0.015625, norm_epsilon=1e-5,
)  # fmt: skip


def planned(tokens: int, batch: int = 1) -> dict[str, int]:
    config = SimpleNamespace(d_model=2048, vocab_size=100, sublayers=[GRANITE])
    model = cast(Model, SimpleNamespace(config=config, sublayers=[None]))
    return _stage_bytes(model, (batch, tokens), 1, 1, 1)


@pytest.mark.parametrize("stage", ["reference", "run", "T0 and T1", "T3", "T2", "T4"])
def test_a_long_text_is_planned_by_its_tokens(stage):
    """Assert that twice the tokens are less than twice the memory, and not the square.

    Of 32 heads at 32k tokens the scores alone are 256 GiB.
    """
    short, long = planned(2**14)[stage], planned(2**15)[stage]
    assert short < long < 2 * short
    assert long < 32 * 2**30
    two = planned(2**14, batch=2)[stage]
    assert short < two < 2 * short


def test_no_step_down_where_blocks_begin():
    """Assert that a text in blocks is planned at least half of the longest at once."""
    most = 724
    assert GRANITE.count(most).scores == 0 < GRANITE.count(most + 1).scores
    before, after = planned(most)["T0 and T1"], planned(most + 1)["T0 and T1"]
    assert before / 4 < after < 2 * before


def compiled(run, *given, **options) -> int:
    """Bytes of a program's arguments, results and temporaries."""
    program = jax.jit(run, **options).lower(*given).compile()
    found: Any = program.memory_analysis()
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes
    return sum(sizes) + found.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [512, 8192])
def test_the_plan_is_what_the_programs_need(tokens):
    """Assert T0 and T1 of one sublayer to take what is planned, or up to a fourth."""
    rng = np.random.default_rng(0)
    wide, narrow = 2048, 512
    arrays = {
        "norm": np.ones(wide),
        "q_proj": rng.normal(size=(wide, wide)),
        "k_proj": rng.normal(size=(narrow, wide)),
        "v_proj": rng.normal(size=(narrow, wide)),
        "o_proj": rng.normal(size=(wide, wide)),
    }
    get = lambda name: None if name not in arrays else jnp.asarray(arrays[name])
    p = GRANITE.parameters(get)
    config = NetworkConfig(100, 100, wide, (GRANITE,))
    (network,) = executions_for(config, ["bf16"], architecture="granitemoehybrid")
    own = network.of("attention")
    numbers, start = passes.numbers_of(own), p.initial_state()
    stream = jax.ShapeDtypeStruct((1, tokens, wide), jnp.float64)
    incoming = Incoming(stream, stream)
    flow, maker = GRANITE.flow, passes.Interpreter(own, tokens, True)
    run = lambda sites, i, p, s, key: runner._run_layer.__wrapped__(
        flow, sites, i, p, s, key, own.chunked, own.chunks_at_once
    )
    key = jax.random.key(0)
    stored = jax.eval_shape(run, numbers.sites, incoming, p, start, key)[2]
    assert ("scores" in stored) == (tokens == 512)
    t0 = lambda inputs, p, s: local._operations.__wrapped__(flow, maker, inputs, p, s)
    inputs = local._Inputs(numbers, incoming, stored)
    t1 = lambda n, i, p, s: passes.bounded_pass.__wrapped__(
        flow, maker, n, passes.without_error(i), p, s
    )
    found = compiled(t0, inputs, p, start, **little_memory())
    found += compiled(t1, numbers, incoming, p, start)
    assert found <= planned(tokens)["T0 and T1"] <= 4 * found, found / 2**30
