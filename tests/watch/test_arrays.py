"""Assert what is said of blocks and scans that are handed over as arrays."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import ArgumentError, UsageError
from oracles.networks.mamba3 import mamba3, shapes
from oracles.networks.mamba_ssm import mamba1, mamba2


SEQ = 24
HOW: dict[str, Any] = {"activation": "silu", "weightless_norm_epsilon": None}


def normal(*shape: int, seed: int = 0, scale: float = 0.5) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def mamba1_weights() -> dict[str, np.ndarray]:
    """By the names of modules: 8 wide, 16 channels of 4 states, rank 2."""
    shapes = {
        "in_proj.weight": (32, 8), "conv1d.weight": (16, 1, 4), "conv1d.bias": (16,),
        "x_proj.weight": (10, 16), "dt_proj.weight": (16, 2), "dt_proj.bias": (16,),
        "A_log": (16, 4), "D": (16,), "out_proj.weight": (8, 16),
    }  # fmt: skip
    return {
        name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())
    }


def canonical(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {
        "conv1d.weight": "conv_weight",
        "conv1d.bias": "conv_bias",
        "dt_proj.bias": "dt_bias",
        "norm.weight": "gate_norm",
    }
    found = {
        names.get(name, name.removesuffix(".weight")): value
        for name, value in weights.items()
    }
    return found | {"conv_weight": found["conv_weight"][:, 0]}


def test_a_block_of_arrays_is_verified_and_checked():
    """NumPy ran it; no element is above its bound."""
    weights, x = mamba1_weights(), normal(2, SEQ, 8, seed=50)
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    wrote = np.stack([mamba1(row.astype(np.float64), wide, {}) for row in x])
    mixer = lyapunov.mixer("mamba1", canonical(weights), **HOW)
    told = lyapunov.check_mixer(mixer, x, wrote.astype(np.float32), precisions=["bf16"])
    assert "what it gave in fp32" in told.assumptions[0]
    assert told.precisions[0].count("violations") == 0
    silent = lyapunov.check_mixer(mixer, x[0], measure="none")
    assert "not verified, no output was given" in silent.assumptions[0]
    assert silent.tokens.batch == 1
    with pytest.raises(UsageError, match="another function"):
        lyapunov.check_mixer(mixer, x, wrote[:, ::-1].astype(np.float32))


def test_a_scan_of_arrays():
    """B and C of two groups, a gate, an offset: exponents to 1e-12."""
    u, delta, z = (normal(2, 8, SEQ, seed=i) for i in range(3))
    B, C = (normal(2, 2, 4, SEQ, seed=i) for i in (3, 4))
    A, D, bias = -np.exp(normal(8, 4, seed=5)), normal(8, seed=6), normal(8, seed=7)
    call = lyapunov.mixers.selective_scan_call(u, delta, A, B, C, D, z, bias, True)
    wide = [a.astype(np.float64) for a in (u, delta, A, B, C, D, z, bias)]
    dt = np.logaddexp(0.0, wide[1] + wide[7][:, None])
    report = lyapunov.check_mixer(call, output=_scan(dt, *wide), name="directions")
    (row,) = report.exponents.layers
    wanted = wide[2] * dt.mean(axis=(0, 2))[:, None]
    found = np.array([row.max, row.min], float)
    np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)
    assert row.module == "directions"
    for precision in report.precisions:
        assert precision.count("violations") == 0


def _scan(dt, u, delta, A, B, C, D, z, bias) -> np.ndarray:
    del delta, bias
    B, C = (np.repeat(x, 4, axis=1) for x in (B, C))
    state, y = np.zeros((*u.shape[:2], 4)), np.zeros_like(u)
    for t in range(u.shape[2]):
        decay = np.exp(dt[..., t, None] * A)
        state = decay * state + (dt * u)[..., t, None] * B[..., t]
        y[..., t] = (state * C[..., t]).sum(-1)
    out = (y + D[:, None] * u) * z / (1 + np.exp(-z))
    return out.astype(np.float32)


def test_what_does_not_fit():
    mixer = lyapunov.mixer("mamba1", canonical(mamba1_weights()), **HOW)
    x = normal(SEQ, 8)
    tries: list[tuple[Any, ...]] = [
        ("inputs of shape", mixer, normal(SEQ, 7)),
        ("inputs of shape", mixer, normal(1, 8)),
        ("no inputs", mixer),
        ("output of shape", mixer, x, normal(SEQ, 7)),
        ("not finite", mixer, np.full((SEQ, 8), np.inf)),
        ("check_mixer was given", "mamba1", x),
    ]
    for told, *given in tries:
        with pytest.raises(UsageError, match=told) as error:
            lyapunov.check_mixer(*given)
        assert error.value.hint
    with pytest.raises(UsageError, match="takes no layers"):
        lyapunov.check_mixer(mixer, x, layers=[0])
    u, group = np.ones((1, 2, 5)), np.ones((1, 1, 3, 5))
    call = lyapunov.mixers.selective_scan_call(u, u, -np.ones((2, 3)), group, group)
    with pytest.raises(UsageError, match="was given inputs"):
        lyapunov.check_mixer(call, x)


def test_weights_that_are_no_block():
    good = canonical(mamba1_weights())
    tries: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("no x_proj", {k: v for k, v in good.items() if k != "x_proj"}, HOW),
        ("an unknown 'y'", good | {"y": good["D"]}, HOW),
        ("D has shape", good | {"D": normal(3)}, HOW),
        ("nothing says activation", good, {}),
        ("activation is 'gelu'", good, HOW | {"activation": "gelu"}),
        ("has no option 'chunk'", good, HOW | {"chunk": 3}),
        ("D is of int64", good | {"D": np.ones(16, int)}, HOW),
    ]
    for told, weights, how in tries:
        with pytest.raises(UsageError, match=told) as error:
            lyapunov.mixer("mamba1", weights, **how)
        assert error.value.hint
    with pytest.raises(ArgumentError, match="kind"):
        lyapunov.mixer("mamba4", good)


def test_a_block_of_flax():
    """Mamba-2 of `mamba2_jax` (nnx), where it is installed."""
    modeling = pytest.importorskip("mamba2_jax.modeling")
    jnp = pytest.importorskip("jax.numpy")
    nnx = pytest.importorskip("flax.nnx")
    sizes = {"hidden_size": 8, "state_size": 4, "head_dim": 4, "chunk_size": 8}
    config = modeling.Mamba2Config(num_hidden_layers=1, vocab_size=9, **sizes)
    block = modeling.Mamba2Mixer(config, layer_idx=0, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(1, SEQ, 8))
    wrote = block(x)
    wrote = wrote[0] if isinstance(wrote, tuple) else wrote
    held = lambda p: np.asarray(p[...])
    weights = {
        "in_proj": held(block.in_proj.kernel).T,
        "conv_weight": held(block.conv1d.conv.kernel)[:, 0].T,
        "dt_bias": held(block.dt_bias),
        "A_log": held(block.A_log),
        "D": held(block.D),
        "gate_norm": held(block.norm.weight),
        "out_proj": held(block.out_proj.kernel).T,
    }
    if block.conv1d.conv.bias is not None:
        weights["conv_bias"] = held(block.conv1d.conv.bias)
    how: dict[str, Any] = {"groups": 1, "chunk": 8, "norm_groups": 1}
    how |= {"dt_limit": (0.0, np.inf), "gate_norm_epsilon": config.layer_norm_epsilon}
    mixer = lyapunov.mixer(
        "mamba2", weights, activation="silu", norm_before_gate=False, **how
    )
    report = lyapunov.check_mixer(mixer, x, wrote, measure="none")
    assert "block is mamba2: what it gave in" in report.assumptions[0]


@pytest.mark.parametrize("mimo", [False, True])
def test_mamba3_of_flax(mimo):
    """`mamba3_jax` 1.0.1 (nnx), where it is installed: all the tensors, and another
    function, the decay with a heavy tail of mamba_ssm after 2.3.2."""
    modeling = pytest.importorskip("mamba3_jax.modeling")
    jnp = pytest.importorskip("jax.numpy")
    nnx = pytest.importorskip("flax.nnx")
    sizes = {"hidden_size": 8, "state_size": 8, "head_dim": 4, "chunk_size": 8}
    sizes |= {"is_mimo": True, "mimo_rank": 2} if mimo else {}
    config = modeling.Mamba3Config(num_hidden_layers=1, vocab_size=9, **sizes)
    block = modeling.Mamba3Mixer(config, layer_idx=0, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(1, SEQ, 8))
    wrote = block(x)
    wrote = wrote[0] if isinstance(wrote, tuple) else wrote
    held = lambda p: np.asarray(p[...])
    plain = ["dt_bias", "B_bias", "C_bias", "D"]
    plain += ["mimo_x", "mimo_z", "mimo_o"] * mimo
    weights = {name: held(getattr(block, name)) for name in plain}
    weights |= {"in_proj": held(block.in_proj.kernel).T}
    weights |= {"out_proj": held(block.out_proj.kernel).T}
    weights |= {
        name: held(getattr(block, name).weight) for name in ("B_norm", "C_norm")
    }
    mixer = lyapunov.mixer(
        "mamba3",
        weights,
        groups=block.ngroups,
        chunk=8,
        least_rate=block.A_floor,
        mixer_norm_epsilon=config.bcnorm_eps,
    )
    with pytest.raises(UsageError, match="another function"):
        lyapunov.check_mixer(mixer, x, wrote, measure="none")


def test_mamba3_of_several_ranks_is_verified_in_fp32():
    """Of its prefill in fp32 nothing is declared; of its steps there is."""
    ssm = {"d_state": 8, "headdim": 4, "ngroups": 1, "is_mimo": True, "mimo_rank": 2}
    named = shapes({"ssm_cfg": ssm, "d_model": 8, "vocab_size": 1, "n_layer": 1})
    prefix = "backbone.layers.0.mixer."
    weights = {
        name.removeprefix(prefix): normal(*shape, seed=i)
        for i, (name, shape) in enumerate(named.items())
        if name.startswith(prefix)
    }
    x = normal(1, SEQ, 8)
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    wrote = mamba3(x[0].astype(np.float64), wide, ssm)[None].astype(np.float32)
    mixer = lyapunov.mixer(
        "mamba3",
        {name.removesuffix(".weight"): array for name, array in weights.items()},
        groups=1,
        chunk=8,
        least_rate=1e-4,
        mixer_norm_epsilon=1e-5,
    )
    report = lyapunov.check_mixer(mixer, x, wrote, measure="none")
    assert "what it gave in fp32" in report.assumptions[0]


@pytest.mark.slow
def test_mamba2_of_arrays_with_its_norm_on_the_other_side():
    """The option decides, and the output tells whether it was right."""
    rng = np.random.default_rng(9)
    heads, inner, wide = 4, 16, 2 * 2 * 8
    shapes = {
        "in_proj.weight": (2 * inner + wide + heads, 8), "dt_bias": (heads,),
        "conv1d.weight": (inner + wide, 1, 4), "conv1d.bias": (inner + wide,),
        "A_log": (heads,), "D": (heads,), "norm.weight": (inner,),
        "out_proj.weight": (8, inner),
    }  # fmt: skip
    weights = {n: 0.5 * rng.normal(size=shape) for n, shape in shapes.items()}
    ssm = {"ngroups": 2, "d_state": 8, "norm_before_gate": True}
    x = normal(1, SEQ, 8).astype(np.float64)
    wrote = mamba2(x[0], weights, ssm)[None]
    how: dict[str, Any] = {"groups": 2, "chunk": 8, "norm_groups": 2}
    how |= {"dt_limit": (0.0, np.inf), "gate_norm_epsilon": 1e-5, "activation": "silu"}
    make = lambda before: lyapunov.mixer(
        "mamba2", canonical(weights), norm_before_gate=before, **how
    )
    report = lyapunov.check_mixer(make(True), x, wrote, measure="none")
    assert report.exponents.layers[0].max is not None
    with pytest.raises(UsageError, match="another function"):
        lyapunov.check_mixer(make(False), x, wrote, measure="none")
