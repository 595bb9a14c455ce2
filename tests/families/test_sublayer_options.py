"""Gates, latents, norms around 0 and routed experts against NumPy, sublayer alone."""

import numpy as np
import pytest

from lyapunov.arithmetic import Exact
from lyapunov.sublayers import AttentionSizes, ExpertsSizes, MlpSizes
from oracles.networks import kimi_linear, qwen3_next
from oracles.tolerances import U64, condition, gamma

from ..helpers import assert_within


SEQ, WIDTH, HEADS, SIZE = 7, 12, 4, 6
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    import jax

    with jax.enable_x64(True):
        yield


def drawn(shapes, rng):
    """Matrices around 0 and vectors too, by name."""
    return {
        name: rng.normal(size=shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 3.0)
        for name, shape in shapes.items()
    }


def held(sizes, weights, rename, forward, x):
    """Our output within what fp64 may put between it and the oracle's; each counts.

    `rename`: the oracle's tensors from ours, by name.
    """

    def ours(weights):
        p = sizes.parameters(weights.get)
        return np.asarray(sizes.flow(Exact(), x, p, p.initial_state())[0])

    theirs = lambda weights, x: forward(x, rename(weights))
    longest = max(shape.shape[-1] for shape in weights.values())
    allowed = condition(theirs, weights, x) * gamma(40 + 4 * longest, U64)
    expected, found = theirs(weights, x), ours(weights)
    assert allowed < 1e-10 * np.abs(expected).max()
    assert_within(found, expected, allowed, "output")
    for name in weights:
        changed = weights | {name: 1.1 * weights[name][::-1] + 0.01}
        assert np.abs(ours(changed) - found).max() > 1e3 * allowed, name
    assert sizes.count(SEQ).weights == sum(
        w.size for w in weights.values() if w.ndim > 1
    )


def attention(**changes):
    plain = {
        "d_model": WIDTH, "heads": HEADS, "kv_heads": 2, "head_dim": SIZE,
        "rotary": 2, "theta": 100.0, "scale": SIZE**-0.5, "norm_epsilon": EPSILON,
        "norm_front": False,
    }  # fmt: skip
    return AttentionSizes(**{**plain, **changes})


def test_a_gate_of_each_channel_and_norms_of_heads_around_zero(rng):
    """Assert Qwen3-Next's attention, and the offset of the norm in front."""
    sizes = attention(gates=SIZE, norm_offset=1.0, norm_front=True)
    inner, kv = HEADS * SIZE, 2 * SIZE
    weights = drawn(
        {
            "q_proj": (inner, WIDTH), "g_proj": (inner, WIDTH), "k_proj": (kv, WIDTH),
            "v_proj": (kv, WIDTH), "o_proj": (WIDTH, inner), "norm": (WIDTH,),
            "q_norm": (SIZE,), "k_norm": (SIZE,),
        },
        rng,
    )  # fmt: skip

    def rename(w):
        both = [w[name].reshape(HEADS, SIZE, WIDTH) for name in ("q_proj", "g_proj")]
        names = {"q_proj": np.concatenate(both, axis=1).reshape(-1, WIDTH)}
        return {f"{name}.weight": value for name, value in (w | names).items()}

    def forward(x, w):
        config = {
            "head_dim": SIZE, "rms_norm_eps": EPSILON,
            "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 1 / 3},
        }  # fmt: skip
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON)
        return qwen3_next.gated_attention(x * (1 + w["norm.weight"]), w, config)

    held(sizes, weights, rename, forward, rng.normal(size=(SEQ, WIDTH)))


def test_one_gate_a_head(rng):
    """Assert that a gate of a head is one of all of its channels."""
    sizes = attention(gates=1, rotary=0)
    inner, kv = HEADS * SIZE, 2 * SIZE
    shapes = {"q_proj": (inner, WIDTH), "k_proj": (kv, WIDTH), "v_proj": (kv, WIDTH),
              "o_proj": (WIDTH, inner), "g_proj": (HEADS, WIDTH)}  # fmt: skip
    weights = drawn(shapes, rng)
    x = rng.normal(size=(SEQ, WIDTH))

    def run(sizes, weights):
        p = sizes.parameters(weights.get)
        return np.asarray(sizes.flow(Exact(), x, p, p.initial_state())[0])

    each = weights | {"g_proj": np.repeat(weights["g_proj"], SIZE, axis=0)}
    alike = run(attention(gates=SIZE, rotary=0), each)
    np.testing.assert_array_equal(run(sizes, weights), alike)
    without = run(attention(rotary=0), weights | {"g_proj": None})
    assert np.abs(without - alike).max() > 0.1


@pytest.mark.parametrize("q_rank", [0, 3])
def test_latents_of_keys_values_and_queries(rng, q_rank):
    """Assert Kimi Linear's attention; channels that heads share lead in ours."""
    nope, shared, value, rank = 4, 2, 5, 3
    sizes = attention(
        kv_heads=HEADS, rotary=0, kv_rank=rank, shared_key=shared, value_dim=value,
        q_rank=q_rank,
    )  # fmt: skip
    shapes = {
        "q_proj": (HEADS * SIZE, q_rank or WIDTH), "kv_down": (rank + shared, WIDTH),
        "kv_down_norm": (rank,), "k_proj": (HEADS * nope, rank),
        "v_proj": (HEADS * value, rank), "o_proj": (WIDTH, HEADS * value),
    }  # fmt: skip
    if q_rank:
        shapes |= {"q_down": (q_rank, WIDTH), "q_down_norm": (q_rank,)}

    def rename(w):
        q = w["q_proj"].reshape(HEADS, SIZE, -1)
        q = np.concatenate([q[:, shared:], q[:, :shared]], axis=1)
        of_q = "q_b_proj" if q_rank else "q_proj"
        parts = [w[name].reshape(HEADS, -1, rank) for name in ("k_proj", "v_proj")]
        return {
            f"{of_q}.weight": q.reshape(HEADS * SIZE, -1),
            "kv_a_proj_with_mqa.weight": w["kv_down"],
            "kv_a_layernorm.weight": w["kv_down_norm"],
            "kv_b_proj.weight": np.concatenate(parts, axis=1).reshape(-1, rank),
            "o_proj.weight": w["o_proj"],
            "q_a_proj.weight": w.get("q_down"),
            "q_a_layernorm.weight": w.get("q_down_norm"),
        }

    def forward(x, w):
        config = {"num_attention_heads": HEADS, "qk_nope_head_dim": nope,
                  "kv_lora_rank": rank}  # fmt: skip
        return kimi_linear.latent_attention(x, w, config)

    held(sizes, drawn(shapes, rng), rename, forward, rng.normal(size=(SEQ, WIDTH)))


SHARED = MlpSizes(WIDTH, 5, "silu", True, EPSILON, norm_front=False)


def expert_weights(rng, experts, hidden, **more):
    shapes = {
        "norm": (WIDTH,), "router": (experts, WIDTH), "up": (experts, hidden, WIDTH),
        "gate": (experts, hidden, WIDTH), "down": (experts, WIDTH, hidden),
        "shared_up": (5, WIDTH), "shared_gate": (5, WIDTH), "shared_down": (WIDTH, 5),
        **more,
    }  # fmt: skip
    return drawn(shapes, rng)


def renamed(w, shared):
    return {
        "norm.weight": w["norm"],
        "gate.weight": w["router"],
        "experts.gate_up_proj": np.concatenate([w["gate"], w["up"]], axis=1),
        "experts.down_proj": w["down"],
        **{
            f"{shared}.{name}_proj.weight": w[f"shared_{name}"]
            for name in ("up", "gate", "down")
        },
    }


def test_an_expert_of_all_tokens_that_each_weighs(rng):
    """Assert Qwen3-Next's experts, behind a norm around 0."""
    sizes = ExpertsSizes(
        WIDTH, 3, 4, 2, "softmax", True, "silu", True, EPSILON, norm_offset=1.0,
        shared=SHARED, shared_routed=True,
    )  # fmt: skip
    weights = expert_weights(rng, 4, 3, shared_router=(1, WIDTH))

    def rename(w):
        share = {"shared_expert_gate.weight": w["shared_router"]}
        return renamed(w, "shared_expert") | share

    def forward(x, w):
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON)
        return qwen3_next.moe(x * (1 + w["norm.weight"]), w, {"num_experts_per_tok": 2})

    held(sizes, weights, rename, forward, rng.normal(size=(SEQ, WIDTH)))


def test_experts_of_the_best_groups(rng):
    """Assert the choice among groups, by their two best, where it is another one."""
    groups, best = 3, 1
    sizes = ExpertsSizes(
        WIDTH, 3, 12, 3, "sigmoid", True, "silu", True, EPSILON, shared=SHARED,
        groups=groups, chosen_groups=best, routed_multiplier=2.5,
    )  # fmt: skip
    weights = expert_weights(rng, 12, 3, router_bias=(12,))
    config = {"num_expert_group": groups, "topk_group": best, "moe_renormalize": True,
              "num_experts_per_token": 3, "routed_scaling_factor": 2.5}  # fmt: skip

    def rename(w):
        bias = {"gate.e_score_correction_bias": w["router_bias"]}
        fused = renamed(w, "shared_experts")
        return fused | bias

    def forward(x, w, **changes):
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON)
        return kimi_linear.moe(x * w["norm.weight"], w, config | changes)

    x = rng.normal(size=(SEQ, WIDTH))
    held(sizes, weights, rename, forward, x)
    free = forward(x, rename(weights), topk_group=groups)
    assert np.abs(free - forward(x, rename(weights))).max() > 0.01
