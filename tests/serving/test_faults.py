"""A fault planted in what a stand-in server hands on is told in the right words."""

import numpy as np
import pytest
import torch

from .conftest import a_hook, a_server, hand_overs
from .stand_in import part
from .test_hand_overs import CLEAN, drafted, prefilled, steps


def lose(server):
    for one in server.mixers:
        one.kv_cache[1][3] = 0


def narrow(dtype):
    def cast(server):
        for one in server.mixers:
            window = one.kv_cache[0][3]
            window.copy_(window.to(dtype).to(window.dtype))

    return cast


class Stale:
    """A block as it was, put back later."""

    def keep(self, server):
        self.kept = [[x[3].clone() for x in one.kv_cache] for one in server.mixers]

    def put(self, server):
        for one, (window, state) in zip(server.mixers, self.kept, strict=True):
            one.kv_cache[0][3], one.kv_cache[1][3] = window, state


STALE = Stale()
LONG = [*prefilled(5, 9), *steps("a", 9, 12, 3)]
WITH_B = [[part("b", 0, 6, 4)], *prefilled(5)]
SHARED = [
    [part("a", 0, 5, 3), part("b", 0, 6, 3)],
    [part("a", 5, 6, 3, step=True), part("b", 6, 7, 3, step=True)],
]
ABOVE = [*drafted((1, 1))]
ABOVE[2] = [ABOVE[2][0]._replace(accepted=3)]
FAULTS = {
    "a lost state": (
        LONG, {2: lose}, 0, "call 3 began with is not what call 2 left",
        "it is all zero: the state was lost",
    ),
    "a lost state of a prefill": (
        LONG, {1: lose}, 0, "call 2 began with is not what call 1 left", "all zero",
    ),
    "a block of another request": (
        [*WITH_B, *steps("a", 5, 7, 4)], {}, 0,
        "call 2 began with is not what call 1 left (prefill to decode, block copied",
        "block 4, which it read, was another request's",
    ),
    "a block of a request beside it": (
        [[part("a", 0, 5, 3), part("b", 0, 6, 4)], *steps("a", 5, 7, 4)], {}, 0,
        "call 2 began with is not what call 1 left",
        "block 4, which it read, was another request's",
    ),
    "a state that two requests share": (
        SHARED, {}, 0, "call 2 began with is not what the convolution read before",
        "its block of the cache is shared with another request",
    ),
    "a rejected draft's state": (
        ABOVE, {}, 2, "call 3 began with is not what call 2 left (draft window",
        "call 2 left behind 8 tokens, of a draft that was rejected",
    ),
    "a stale state after pre-emption": (
        LONG, {2: STALE.keep, 4: STALE.put}, 0,
        "call 5 began with is not what call 4 left",
        "it is what call 2 left behind 9 tokens",
    ),
    "a window in fp8": (
        LONG, {2: narrow(torch.float8_e4m3fn)}, 0,
        "the window that call 3 began with is not what call 2 left",
        "the window holds fp8_e4m3, where bf16 is declared",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told(models, served, kind, name):
    """Assert which call, and what it looks like; what is before it is held."""
    calls, before, spec, what, like = FAULTS[name]
    cache = torch.float32 if spec else torch.bfloat16
    server = a_server(
        models[kind], precision="bf16", cache=cache, spec=spec, before=before
    )
    model, path, _ = served(kind, *calls, server=server)
    held = hand_overs(model, path)
    wrong = [one for one in held if not one.held]
    assert wrong, "nothing was said"
    told = f"{wrong[0]}; {wrong[0].looks_like}; {wrong[0].note}"
    assert what in told
    assert like in told
    assert all(one.held for one in held[: held.index(wrong[0])])


def test_a_shared_block_is_a_fault_by_itself(served):
    """Assert it where nothing differs: what was left is what the other one wrote."""
    model, path, _ = served("mamba1", *SHARED)
    arrays = {k: v for k, v in np.load(path).items() if not k.endswith(".xz")}
    np.savez(path, **arrays)
    (held,) = hand_overs(model, path)
    assert (held.held, held.differing) == (False, 0)
    assert "is another request's as well" in str(held)


def test_a_block_shared_between_steps_is_written_down(served):
    """Assert it of steps that agree bit for bit, which are not written else."""
    calls = [*prefilled(5), *steps("a", 5, 8, 3)]
    calls[3] = [*calls[3], part("b", 0, 1, 3, step=True)]
    model, path, _ = served("mamba1", *calls)
    *_, held = hand_overs(model, path)
    assert (held.how, held.call, held.held) == ("decode to decode", 4, False)
    assert "shared with another request" in held.looks_like


def test_inputs_that_were_computed_anew_accuse_no_older_window(models, served):
    """Assert that a window is held to the inputs of its own calls: another kernel may
    round those that are computed again otherwise."""

    def otherwise(server):
        for one in server.mixers:
            one.in_proj.weight.mul_(1.01)

    calls, *_ = CLEAN["g pre-emption"]
    server = a_server(models["mamba2"], precision="bf16", before={4: otherwise})
    model, path, _ = served("mamba2", *calls, server=server)
    held = hand_overs(model, path)
    assert [one.held for one in held] == [True, True]
    assert held[0].elements < held[1].elements


def test_a_fault_is_there_without_the_dump_knowing(models, served):
    """Assert that a bit in one state of one layer is one element of the report."""
    model, path, _ = served("mamba1", *LONG, precision="bf16")
    arrays = dict(np.load(path))
    arrays["layer.1.handed.1.taken.state"].view(np.uint32)[3, 2] ^= 1
    np.savez(path, **arrays)
    held = hand_overs(model, path)
    assert [one.differing for one in held] == [1, 0]
    assert (held[0].first_layer, held[0].first_tensor) == (1, "state")


def test_a_window_is_held_to_the_inputs(models, served):
    """Assert that a window kept in bf16 under an fp16 model is caught though left and
    taken agree, and is right where it is declared, or by the server's flags."""
    flagged = "vllm --enforce-eager --mamba-cache-dtype bfloat16"
    for said, right in (
        ({}, False),
        ({"window_precision": "bf16"}, True),
        ({"implementation": "vllm --enforce-eager"}, False),
        ({"implementation": flagged}, True),
    ):
        server = a_server(
            models["mamba2"], precision="fp16", window_dtype=torch.bfloat16
        )
        hook = a_hook(server, **said)
        server.run(*prefilled(5, 9), around=hook)
        _, path, _ = served("mamba2", *prefilled(5), precision="fp16")
        hook.write(path)
        (held,) = hand_overs(models["mamba2"], path)
        assert held.held == right
        assert ("window holds bf16, where fp16" in (held.looks_like or "")) != right


def test_a_resumed_request_begins_empty(models, served):
    """Assert that a state taken in front of the first token is to be zeros."""
    model, _, hook = served("mamba1", *prefilled(5, 9), write=False)
    recorder = hook.recorder
    taken = recorder.calls[1].taken
    again = recorder.call(0, 9, step=False, ids=np.arange(9) % 40, took_block=3)
    again.taken.update(taken)
    again.rows.update(
        {k: np.concatenate([recorder.calls[0].rows[k], v])
         for k, v in recorder.calls[1].rows.items()}
    )  # fmt: skip
    path = served("mamba1", *prefilled(5))[1]
    assert recorder.write(path) == "whole"
    *_, held = hand_overs(model, path)
    assert (held.held, held.how, held.token) == (False, "pre-emption", 0)
    assert "is not an empty one" in str(held)


def test_a_state_that_the_server_forgot(models, served):
    """Assert that a call that a kernel is told to begin from zeros has lost it."""
    model, path, hook = served("mamba1", *prefilled(5, 9), write=False)
    call = hook.recorder.calls[1]
    call.empty = True
    nothing = {k: type(v)(*map(np.zeros_like, v)) for k, v in call.taken.items()}
    call.taken = nothing
    hook.write(path)
    (held,) = hand_overs(model, path)
    assert not held.held
    assert "all zero" in held.looks_like
    assert "the server began it without a state" in held.note


def test_what_was_computed_again_is_compared(models, served):
    """Assert that pre-emption's tokens are counted, and how many outputs differ."""
    calls, *_ = CLEAN["g from a block"]
    before = CLEAN["g from a block"][1]
    server = a_server(models["mamba2"], precision="bf16", before=before)
    model, path, _ = served("mamba2", *calls, server=server)
    note = hand_overs(model, path)[-1].note
    # 4 to 6 by prefills of other lengths, 6 to 9 by steps before
    assert note.startswith("5 tokens were computed again: ")
    apart, of = note.split(": ")[1].split(" elements")[0].split(" of ")
    assert of == str(5 * 2 * model.config.d_model)
    assert 0 <= int(apart) <= int(of)
