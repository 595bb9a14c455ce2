"""transformers' networks in every way, in fp32 and without this library's arithmetic:
each way gives the whole text's logits, but for the library's named defects."""

import numpy as np
import pytest

from lyapunov.implementations._implementation import RefusedError, installed
from lyapunov.implementations._ways import parse_variant
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS, NO_LIMITS


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SEQ, CUT, CHUNK = 12, 6, 4
WAYS = (
    *("steps", "batched:1", "chunks:5", f"initial_state:{CUT}", "padded_left:3"),
    *(f"padded_left:3,{CUT}", "padded_right:3", f"padded_right:3,{CUT}"),
)
BEYOND_ROUNDING = 2.0**-14
"""Of the largest logit; fp32 explains some 2^-19 in networks as small."""
QUICK = {("mamba2", "one group"), ("gpt_neox", "parallel")}
FIRST_SCAN_ONLY = ("falcon_mamba", "jamba", "zamba")
"""Whose scan takes no initial state."""
NO_CACHE = {("rwkv", "halved, more channels"), ("xlstm", "narrow keys, low caps")}
"""Whose cache has the channels of the stream, or keys in multiples of 64."""
WITHOUT_RECURRENCE = ("gpt_neox", "llama", "olmo", "olmo2")


def wrong(family, network) -> dict[str, int]:
    """Ways that transformers 5.24 gets wrong, and the first token that shows it."""
    if family in WITHOUT_RECURRENCE:
        return {}
    found = {f"padded_right:3,{CUT}": CUT}
    if family in FIRST_SCAN_ONLY:
        found["chunks:5"] = 5
    biased = any(n.endswith("in_proj.bias") for n, _ in network.named_parameters())
    if biased or family in ("rwkv", "xlstm"):  # or read no mask at all
        found |= dict.fromkeys(("padded_left:3", f"padded_left:3,{CUT}"), 0)
    return found


def refuses(family, name, way) -> bool:
    """Ways that need what transformers' own cache has no room for, or cannot do."""
    cached = way not in ("batched:1", "padded_left:3", "padded_right:3")
    if (family, name) in NO_CACHE:
        return cached
    # a step of a batch is multiplied by itself
    return family == "rwkv" and way.startswith("padded") and cached


@pytest.mark.skipif(
    (installed("transformers") or ())[:2] != (5, 24), reason="defects of 5.24"
)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_every_way_is_the_whole_text_or_a_named_defect(family, name):
    """Assert agreement of logits, or from which token on they differ."""
    from lyapunov.implementations.transformers._calls import called, of_no_token
    from lyapunov.implementations.transformers.ways import planned
    from oracles.checkpoints.transformers import make

    settings = CONFIGURATIONS[family][name] | NO_LIMITS.get(family, {})
    chunks = {k: CHUNK for k in settings if k.endswith("chunk_size")}
    network = make(family, **{**settings, **chunks})
    tokens = np.random.default_rng(0).integers(3, network.config.vocab_size, (1, SEQ))
    # a Nemotron-H without attention counts no tokens, and takes no positions then
    uncounted = family == "nemotron_h" and "attention" not in network.config.layer_types
    differs, refused = {}, set()
    with torch.no_grad():
        whole = network(torch.tensor(tokens), use_cache=False).logits[0]
        for way in WAYS:
            plan = planned(tokens, parse_variant(way))
            if uncounted and len(plan) > 1:
                with pytest.raises(ValueError, match="get_seq_length"):
                    called(torch, network, plan, {})
                continue
            steps = way == "steps"
            if refuses(family, name, way):
                with pytest.raises(RefusedError):
                    called(torch, network, plan, {})
                refused.add(way)
                continue
            cache = of_no_token(torch, network, tokens) if steps else None
            (logits,) = called(torch, network, plan, {}, cache)
            apart = (logits - whole).abs().amax(-1) / whole.abs().max()
            beyond = (apart > BEYOND_ROUNDING).nonzero().flatten().tolist()
            if beyond:
                differs[way] = beyond[0]
    expected = wrong(family, network)
    if uncounted:
        expected = {way: at for way, at in expected.items() if "," not in way}
    left = [way for way in WAYS if way in expected and way not in refused]
    assert differs == {way: expected[way] for way in left}
