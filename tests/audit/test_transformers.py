"""transformers' own code, run in every way: rounding is called so, and bugs as well.

Whether a way is broken in the installed version is told apart from the audit: in fp32
its logits then differ from the whole text's by far more than 2^-24 can explain.
"""

import numpy as np
import pytest
import torch

from lyapunov.implementations._implementation import installed
from lyapunov.implementations.transformers._built import from_weights
from lyapunov.implementations.transformers._cache import cache_of
from lyapunov.questions._audit_verdict import Z_LIMIT
from lyapunov.results._audit import BUG, CONSISTENT

from ..helpers import given_cache
from .conftest import SEQ


# every way of running a text is compiled: about ten seconds each
pytestmark = pytest.mark.slow


HALF = SEQ // 2
RIGHT = ("whole", "steps", "padded_left:5", "batched:1", f"initial_state:{HALF}")
# A right execution's z: rounding is not random, and d_model here is 16 only.
USUAL_Z = Z_LIMIT * 2 / 3


@pytest.mark.parametrize(
    "precision",
    [
        "bf16",
        pytest.param("fp16", marks=pytest.mark.slow),
        pytest.param("fp32", marks=pytest.mark.slow),
    ],
)
def test_right_ways_are_rounding(audited, precision):
    """Assert no violation, z far from suspicious, and the kinds of calls declared."""
    found = audited(*RIGHT, precision=precision)
    assert list(found) == list(RIGHT)
    for name, run in found.items():
        assert run.verdict == CONSISTENT, (name, run.first_violation)
        assert run.violations == 0
        assert run.first_violation is None
        assert run.z <= USUAL_Z
        assert 0 < run.ratio <= 1
        assert run.tokens == SEQ
    assert [len(found[name].executions) for name in RIGHT] == [1, 1, 1, 1, 2]
    # 16-bit stores are seen, and come close to their bounds
    if precision != "fp32":
        assert max(x.ratio_t0 for x in found["whole"].layers) > 0.9


def fp32_logits(model, tokens, way):
    """Logits of the text in fp32 torch, whole or in the way that is in question."""
    network = from_weights(model, "fp32", "cpu")[1]
    ids = torch.as_tensor(tokens[None])
    with torch.no_grad():
        if way == "whole":
            return network(ids).logits[0].numpy()
        if way == "chunks":
            first = network(ids[:, :HALF], use_cache=True)
            cached = given_cache(network, cache_of(first))
            rest = network(ids[:, HALF:], **cached, use_cache=True)
            return torch.cat([first.logits, rest.logits], 1)[0].numpy()
        pads = torch.zeros((1, 3), dtype=ids.dtype)
        mask = torch.cat([torch.ones_like(ids[:, :HALF]), pads], 1)
        given = torch.cat([ids[:, :HALF], pads], 1)
        first = network(given, attention_mask=mask, use_cache=True)
        cached = given_cache(network, cache_of(first))
        out = [first.logits[:, :HALF]]
        for t in range(HALF, SEQ):
            out.append(network(ids[:, t : t + 1], **cached, use_cache=True).logits)
        return torch.cat(out, 1)[0].numpy()


@pytest.mark.parametrize(
    ("way", "variant", "tensor"),
    [
        ("chunks", f"chunks:{HALF}", "gated"),
        ("padded", f"padded_right:3,{HALF}", "conv"),
    ],
)
def test_what_the_library_loses_is_found(setting, audited, way, variant, tensor):
    """Assert "bug" exactly where fp32 shows one: at its first token and tensor.

    A second call over several tokens starts from no state; a prompt with padding on
    the right leaves the padding in the convolution's window and decays the state.
    """
    model, _, tokens = setting
    whole = fp32_logits(model, tokens, "whole")
    other = fp32_logits(model, tokens, way)
    broken = np.abs(whole - other).max() > 2**-14 * np.abs(whole).max()
    run = audited(variant)[variant]
    assert run.verdict == (BUG if broken else CONSISTENT)
    if broken:
        first = run.first_violation
        assert (first.layer, first.token, first.tensor) == (0, HALF, tensor)
        assert first.measured > first.bound
        # 5.24 is the newest that was looked at
        assert (run.known is not None) == (
            (installed("transformers") or ())[:2] <= (5, 24)
        )
        np.testing.assert_array_equal(whole[:HALF].argmax(-1), other[:HALF].argmax(-1))


def test_a_way_that_there_is_not_says_why(audited):
    """Assert that packed texts are not run, with the reason."""
    run = audited("whole", "packed:9")["packed:9"]
    assert run.verdict == "not run"
    assert "packed" in run.reason
    assert run.layers == []


def test_logits_are_shown_beside_each_other(audited):
    """Assert both comparisons, and that a run is not compared with itself."""
    found = audited("whole", "padded_left:5")
    assert [x.against for x in found["whole"].logits] == ["fp64 reference"]
    beside = [x.against for x in found["padded_left:5"].logits]
    assert beside == ["fp64 reference", "whole"]
    assert 0 < found["whole"].logits[0].rel_l2 < 2**-4
