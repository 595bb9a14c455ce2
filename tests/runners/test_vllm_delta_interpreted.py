"""vLLM's own operators of delta rules in Triton's interpreter.

They need what `test_vllm_interpreted` needs, and of vLLM's files
`vllm/third_party/flash_linear_attention/ops` and `vllm/models/kimi_k3/nvidia/ops`, too.
The oracles are NumPy in fp64 (`oracles.networks`), and the kernels in NumPy
(`oracles.kernels.served_delta`).
"""

import json
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.transformers import make, save
from oracles.kernels import served_delta as kernels
from oracles.networks import kimi_linear, qwen3_next
from oracles.tolerances import condition, gamma
from tests.executions.delta_runs import IN_FP32

from .test_vllm_interpreted import UNITS, computed, interpreted, pytestmark, same
from .vllm_runs import Run


__all__ = ["pytestmark"]

SEQ, CHUNK, CUT = 70, 64, 9
SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": False,
    "layer_types": ["linear_attention"] * 2,
}  # fmt: skip
NETWORKS = {
    "qwen3_next": {
        **SMALL, "num_key_value_heads": 1, "head_dim": 16, "mlp_only_layers": [0, 1],
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 1, "linear_num_value_heads": 2,
    },
    "kimi_linear": {
        **SMALL, "mlp_layer_types": ["dense"] * 2, "linear_head_dim": 16,
        "linear_num_heads": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0,
        "num_key_value_heads": 2,
    },
}  # fmt: skip
FORWARDS = {"qwen3_next": qwen3_next.logits, "kimi_linear": kimi_linear.logits}
FLAGS = {"qwen3_next": "--gdn-prefill-backend=triton", "kimi_linear": ""}
DRAFTS = "drafts:4,3"
WAYS = (
    *("whole", "steps", f"chunks:{CUT},rest", f"chunks:{CHUNK},rest"),
    *(f"initial_state:{CUT}", "batched:1", "packed:13", DRAFTS),
)
PRECISIONS = {"qwen3_next": ("fp16",), "kimi_linear": ("fp16", "fp32")}
STORES = 22
"""Tensors that a mixer and an MLP store; no weight has more roundings behind it."""


def named(family: str, precision: str, way: str, state="fp32", lost=False) -> Run:
    return Run(precision, state, way, FLAGS[family], lost)


def runs(family: str) -> list[Run]:
    """All of a network."""
    found = [named(family, p, way) for p in PRECISIONS[family] for way in WAYS]
    found.append(named(family, "fp16", f"chunks:{CUT},rest", lost=True))
    if family == "qwen3_next":
        found += [named(family, "fp16", way, "fp16") for way in ("whole", "steps")]
    return found


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """The family and its folder, with a text."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    save(make(family, **NETWORKS[family]), folder)
    tokens = np.random.default_rng(1).integers(0, SMALL["vocab_size"], SEQ)
    np.save(folder / "tokens.npy", tokens[None])
    return family, folder


@pytest.fixture(scope="module")
def found(network):
    """The family, its folder, and everything that was run, by name."""
    return *network, computed(network[1], runs(network[0]))


def stored(found, precision="fp16", way="whole", state="fp32", lost=False):
    """The arrays of one run."""
    return found[2][named(found[0], precision, way, state, lost).name]


def both(one, other):
    """What both store but logits: (site, array, array)."""
    for name in sorted(set(one) & set(other) - {"logits"}):
        yield name, one[name], other[name]


def held(folder: Path, family: str, precision: str):
    """config.json, and tensors as vLLM has them, in fp64."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    kimi = ("A_log", "dt_bias", "conv1d")
    kept = kimi if family == "kimi_linear" else ("A_log",)
    if precision == "fp16":
        tensors = {
            name: x if any(k in name for k in kept) else x.astype(np.float16)
            for name, x in tensors.items()
        }
    return config, {name: x.astype(np.float64) for name, x in tensors.items()}


def test_logits_are_those_of_fp64_but_for_roundings(found):
    """Assert it of every way, and that a lost state is beyond them."""
    family, folder, _ = found
    tokens = np.load(folder / "tokens.npy")[0]
    for precision in PRECISIONS[family]:
        config, weights = held(folder, family, precision)
        forward = lambda w, tokens, config=config: FORWARDS[family](w, config, tokens)
        logits, unit = forward(weights, tokens), UNITS[precision]
        longest = max(x.shape[-1] for x in weights.values() if x.ndim > 1)
        # fp32 products of chunks are IEEE's in the interpreter
        sums = gamma(16 + longest + 2 * SEQ, UNITS["fp32"])
        rounded = 0.0 if precision == "fp32" else gamma(STORES, unit)
        apart = condition(forward, weights, tokens) * (sums + rounded)
        for way in WAYS:
            off = np.abs(stored(found, precision, way)["logits"][0] - logits).max()
            assert off < apart, (precision, way, off, apart)
            # and no better than the format allows: nothing ran in fp32 instead
            assert precision == "fp32" or off > apart / 1000
    lost = stored(found, way=f"chunks:{CUT},rest", lost=True)
    right = stored(found, way=f"chunks:{CUT},rest")
    assert np.array_equal(lost["logits"][0, :CUT], right["logits"][0, :CUT])
    assert np.abs(lost["logits"] - right["logits"])[0, CUT:].max() > 0.01


def test_company_and_a_cut_at_a_chunk_change_no_bit(found):
    """An fp32 cache holds what registers held."""
    for precision in PRECISIONS[found[0]]:
        whole = stored(found, precision)
        for way in ("batched:1", "packed:13"):
            other = stored(found, precision, way)
            # torch's silu in fp32 is another at the end of an array: that of an MLP
            first = {n: x for n, x in whole.items() if n.startswith("0.")}
            assert same(first, {n: other[n] for n in first}), way
            assert precision == "fp32" or same(whole, other), way
        cut = stored(found, precision, f"chunks:{CHUNK},rest")
        for name, one, other in both(whole, cut):
            np.testing.assert_array_equal(one, other, name)


def test_chunks_begin_with_a_call(found):
    """Assert that a cut inside a chunk changes bits behind it alone."""
    whole, cut = stored(found), stored(found, way=f"chunks:{CUT},rest")
    changed = False
    for name, one, other in both(whole, cut):
        if name.endswith("k_decayed"):
            continue  # from their token to the chunk's end, which is nearer now
        np.testing.assert_array_equal(one[:, :CUT], other[:, :CUT], name)
        changed = changed or not np.array_equal(one, other)
    assert changed


def test_drafts_are_the_same_steps(found):
    """Kimi's bit for bit; the other's kernel takes its roots otherwise, which is seen
    where a value is just beside a tie."""
    for name, one, other in both(stored(found, way="steps"), stored(found, way=DRAFTS)):
        differ = np.mean(one != other)
        assert differ == 0.0 or found[0] == "qwen3_next", name
        assert differ < 0.05, name


def test_a_cache_in_fp16_rounds_at_each_step(found):
    if found[0] != "qwen3_next":
        pytest.skip("Kimi Linear's is in fp32 alone")
    fine, coarse = (stored(found, way="steps", state=s) for s in ("fp32", "fp16"))
    apart = np.abs(fine["0.scan_output"] - coarse["0.scan_output"])
    assert not apart[:, 0].any()  # the first token is read before the state is stored
    assert apart[:, 1:].any()
    whole, other = (stored(found, state=s) for s in ("fp32", "fp16"))
    assert same(whole, other)  # within a call it stays in registers


def test_what_is_stored_is_in_the_models_format(found):
    sites = {"norm", "residual", "q", "k", "v", "z", "rate_logit", "conv", "q_unit"}
    sites |= {"k_unit", "inverse", "w", "u", "scan_output", "gated", "out"}
    own = {"gate_logit"}
    if found[0] == "kimi_linear":
        own = {"forget_low", "forget", "z_low", "k_decayed"}
    arrays = stored(found)
    assert {n[2:] for n in arrays if n.startswith("0.")} == sites | own
    mlp = {"norm", "residual", "up", "gate", "activated", "hidden", "out"}
    assert {n[2:] for n in arrays if n.startswith("1.")} == mlp
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, array.astype(np.float16), name)


def differing(found, way: str, **changed) -> dict[str, float]:
    """Shares of numbers, by site of the second mixer, which the kernels in NumPy have
    otherwise; but for `changed` on equal inputs and with the interpreter's products."""
    family, folder, _ = found
    model, arrays = lyapunov.load(folder), stored(found, way=way)
    sizes, raw = model.config.sublayers[2], dict(model.raw_parameters(2))
    made = kernels.Kimi if sizes.kind == "kimi_delta" else kernels.Delta
    ieee = {"pairs_in_tf32": False, "merges_in_tf32": False}
    own = type("Own", (made,), ieee | changed)(
        kernels.held(raw, "fp16", IN_FP32[sizes.kind]), sizes, "fp16",
        cache="fp32", steps=way == "steps", eager=family == "kimi_linear",
    ).run(arrays["1.residual"][0], arrays["1.out"][0])  # fmt: skip
    shares = {}
    for site, mine in own.items():
        if (theirs := arrays.get(f"2.{site}")) is not None:
            shares[site] = float(np.mean(mine.reshape(theirs[0].shape) != theirs[0]))
    return shares


OTHER = {
    "whole": {"pairs_in_tf32": True, "merges_in_tf32": True},
    "steps": {"unit_stored": kernels.Delta.out_of},
}
"""Kernels that these are not: with tensor cores' products, and with keys in fp16."""


@pytest.mark.parametrize("way", OTHER)
def test_the_kernels_in_numpy_are_these(found, way):
    """Assert that of the second mixer few numbers are others: those just beside a tie,
    and what reads such a one, many fewer than those of another kernel."""
    shares, others = differing(found, way), differing(found, way, **OTHER[way])
    assert len(shares) >= (13 if way == "whole" else 10)
    behind = {"inverse", "u", "w", "scan_output", "gated", "out"} & shares.keys()
    for site, share in shares.items():
        if site not in behind:
            assert share < 0.01, (site, share)
    for site in behind:
        assert shares[site] < others[site] / 2, (site, shares, others)
        assert others[site] > 0.1


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_every_tensor_is_within_its_bounds(network, tmp_path, mode):
    """Assert it of a check, whose bounds are of what is declared of vLLM."""
    family, folder = network
    out = tmp_path / "report.json"
    interpreted(
        *("-m", "lyapunov", folder, "--tokens", folder / "tokens.npy"),
        *("--measure", f"vllm {FLAGS[family]}".strip(), "--mode", mode),
        *("--precision", "fp16", "--output", out, "--quiet"),
    )
    (one,) = json.loads(out.read_text())["precisions"]
    assert one["measured_by"].startswith("vllm")
    layers = one["layers"]
    assert len(layers) == 4
    assert all(layer["violations"] == 0 for layer in layers)
