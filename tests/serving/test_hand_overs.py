"""Hand-overs between calls of a server are copies, or the audit says which is not.

The servers are stand-ins. A clean run of each hand-over is passed, a fault planted in
each is told in words; what a dump is made of is told by calls alone.
"""

import numpy as np
import pytest
import torch

from lyapunov._errors import DumpError
from lyapunov.implementations.dump.file import File

from .conftest import a_hook, a_server, hand_overs
from .stand_in import part, quantised


def steps(request, first, stop, block):
    """Calls of a token each."""
    return [[part(request, t, t + 1, block, step=True)] for t in range(first, stop)]


def prefilled(*ends, block=3):
    """Calls of request a's tokens up to each end."""
    starts = (0, *ends)
    return [[part("a", i, j, block)] for i, j in zip(starts, ends, strict=False)]


# what is run, what is done in front of a call -> way, kinds of hand-overs
CLEAN = {
    "a prefill to prefill": (
        prefilled(5, 11), {}, "chunks:5,6", ["prefill to prefill"],
    ),
    "b at a chunk's border": (
        prefilled(16, 20), {}, "chunks:16,4", ["prefill to prefill"],
    ),
    "c prefill to decode": (
        [*prefilled(5), *steps("a", 5, 9, 3)], {}, "initial_state:5",
        ["prefill to decode"],
    ),
    "d a rest of one token": (
        [*prefilled(8), *steps("a", 8, 9, 3)], {}, "initial_state:8",
        ["prefill to decode"],
    ),
    "f a block's border": (
        [*prefilled(8), *steps("a", 8, 10, 3), *steps("a", 10, 12, 4)],
        {3: lambda server: server.copy(3, 4)}, "initial_state:8",
        ["prefill to decode", "decode to decode, block copied"],
    ),
    "g pre-emption": (
        [*prefilled(6), *steps("a", 6, 9, 3), [part("a", 0, 9, 5)],
         *steps("a", 9, 11, 5)], {}, "initial_state:9",
        ["prefill to decode", "prefill to decode"],
    ),
    "g from a block": (
        [*prefilled(4, 6), *steps("a", 6, 9, 3), [part("a", 4, 9, 5)]],
        {1: lambda server: server.copy(3, 8), 5: lambda server: server.copy(8, 5)},
        "chunks:4,5", ["prefill to prefill", "prefill to decode", "pre-emption"],
    ),
    "j beside others": (
        [[part("b", 0, 6, 4)],
         [part("a", 0, 5, 3), part("b", 6, 7, 4, step=True)],
         [part("a", 5, 6, 3, step=True), part("c", 0, 7, 5),
          part("b", 7, 8, 4, step=True)]], {}, "initial_state:5",
        ["prefill to decode"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_hand_over_is_held(models, served, kind, name):
    """Assert way, kinds, and that states and windows of both layers were compared."""
    calls, before, way, kinds = CLEAN[name]
    server = a_server(
        models[kind], precision="bf16", cache=torch.bfloat16, before=before
    )
    model, path, found = served(kind, *calls, server=server)
    assert found == way
    held = hand_overs(model, path)
    assert [one.how for one in held] == kinds
    sizes = model.config.sublayers[0]
    channels = server.mixers[0].conv1d.weight.shape[0]
    for one in held:
        assert one.held, one
        assert (one.differing, one.unseen, one.layers) == (0, 0, 2)
        window = (sizes.d_conv - 1) * channels
        counted = 1 if "pre-empt" in name or name.startswith("g") else 2
        least = 2 * (sizes.d_inner * sizes.d_state + counted * window)
        assert one.elements >= least


def test_rows_are_those_of_the_request(models, served):
    """Assert that a request packed beside others leaves the rows that it has alone."""
    calls, *_ = CLEAN["j beside others"]
    alone = [[one for one in parts if one.request == "a"] for parts in calls]
    files = []
    for some in (calls, [parts for parts in alone if parts]):
        _, path, _ = served("mamba1", *some, precision="bf16")
        files.append(np.load(path))
    names = [n for n in files[0].files if n.startswith("layer") and "handed" not in n]
    # residual, hidden, norm, xz, gated, output; the first has no sum of its own
    assert len(names) == 6 + 7
    for name in files[1].files:
        if "sharing" not in name:
            np.testing.assert_array_equal(files[0][name], files[1][name], name)


def drafted(accepted, *, block=3, window=3):
    """A prompt of 5, and windows of 3 tokens of which so many are accepted in turn."""
    blocks = tuple(range(block, block + window))
    calls, start, before = [[part("a", 0, 5, block)]], 5, 1
    for count in (*accepted, 1):
        share = part("a", start, start + window, *blocks, step=True, accepted=before)
        calls.append([share])
        start, before = start + count, count
    return calls


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
@pytest.mark.parametrize("accepted", [(1, 1), (2, 3), (3, 1)])
def test_drafts_accepted_in_part(models, served, kind, accepted):
    """Assert h: rows of rejected tokens are dropped, and what counts is what steps
    give, bit for bit."""
    model, path, way = served(kind, *drafted(accepted), spec=2)
    last = 5 + sum(accepted) + 1
    assert way == "initial_state:5"
    assert File(path).tokens.shape == (1, last)
    held = hand_overs(model, path)
    assert [one.how for one in held][1:] == ["draft window"] * len(accepted)
    assert all(one.held and not one.differing for one in held)
    calls = [*prefilled(5), *steps("a", 5, last, 3)]
    _, other, _ = served(kind, *calls)
    one, two = np.load(path), np.load(other)
    np.testing.assert_array_equal(one["layer.1.output"], two["layer.1.output"])


def test_drafts_through_a_narrow_cache_are_no_way(served):
    """Assert an error that says so: the state goes unrounded through a window."""
    with pytest.raises(DumpError, match="without a rounding") as error:
        served("mamba1", *drafted((2, 1)), spec=2, cache=torch.bfloat16)
    assert "draft window 5 to 8" in error.value.message
    # one token at a time is what a step is
    assert served("mamba1", *drafted((1, 1)), spec=2, cache=torch.bfloat16)


def test_a_prefix_hit_begins_behind_it(models, served):
    """Assert e: the dump begins where the request does, with the state that it took."""
    server = a_server(models["mamba2"], before={1: lambda one: one.copy(3, 6)})
    server.texts["b"] = server.texts["a"].copy()
    calls = [[part("b", 0, 8, 3)], [part("a", 8, 14, 6)], *steps("a", 14, 16, 6)]
    model, path, way = served("mamba2", *calls, server=server)
    dump = File(path)
    assert (way, dump.begins_at, dump.tokens.shape) == ("initial_state:6", 8, (1, 8))
    first, second = hand_overs(model, path)
    assert (first.how, first.source, first.token) == ("prefix hit", None, 0)
    assert first.held
    assert first.unseen == 4  # nobody watched who left it
    assert (second.how, second.token, second.held) == ("prefill to decode", 6, True)
    start = dump.start(model, 0, model.start(model.parameters(0)))
    state = np.load(path)["layer.0.handed.0.taken.state"]
    np.testing.assert_array_equal(start.state, state.reshape(-1, 8).T)


def test_two_machines_are_one_request(models, tmp_path):
    """Assert i: what one recorder left is held to what the other took."""
    first, second = (a_server(models["mamba1"]) for _ in range(2))
    hooks = [a_hook(server) for server in (first, second)]
    first.run(*prefilled(7), around=hooks[0])
    for one, other in zip(first.mixers, second.mixers, strict=True):
        for tensor, target in zip(one.kv_cache, other.kv_cache, strict=True):
            target[5] = tensor[3]
    second.run(*steps("a", 7, 9, 5), around=hooks[1])
    both = hooks[0].recorder.followed_by(hooks[1].recorder)
    path = tmp_path / "both.npz"
    assert both.write(path) == "initial_state:7"
    (held,) = hand_overs(models["mamba1"], path)
    assert (held.how, held.held, held.unseen) == ("to another machine", True, 0)
    # a byte that is lost on the way
    hooks[1].recorder.calls[0].taken[1].state[0, 0] += 1
    hooks[0].recorder.followed_by(hooks[1].recorder).write(path)
    (held,) = hand_overs(models["mamba1"], path)
    assert (held.held, held.differing, held.first_layer) == (False, 1, 1)


@pytest.mark.parametrize("fault", ["", "another axis", "no rounding of the scale"])
def test_a_prefix_hit_through_int8(models, tmp_path, fault):
    """Assert that half a step of a row is allowed there, and scales over states, or
    integers cut off instead of rounded, are not."""

    def store(server):
        for one in server.mixers:
            windows, states = one.kv_cache
            windows[6] = windows[3]
            states[6] = BROKEN[fault](states[3])

    server = a_server(models["mamba2"], sglang=True)
    server.texts["b"] = server.texts["a"].copy()
    donor, hook = (a_hook(server, name, through_int8=True) for name in "ba")
    server.run([part("b", 0, 8, 3)], around=donor)
    server.before = {0: store}
    server.run([part("a", 8, 14, 6)], around=hook)
    path = tmp_path / "run.npz"
    hook.recorder.behind(donor.recorder).write(path)
    (held,) = hand_overs(models["mamba2"], path)
    assert (held.how, held.unseen) == ("prefix hit through int8", 0)
    assert held.held == (not fault)
    # a copy of bytes would have been something else
    hook = a_hook(server, "a")
    server.run([part("a", 8, 14, 6)], around=hook)
    hook.recorder.behind(donor.recorder).write(path)
    (held,) = hand_overs(models["mamba2"], path)
    assert (held.how, held.held) == ("prefix hit", False)
    assert "the request with that prefix left" in str(held)


def cut_off(state):
    scale = state.abs().amax(-2, keepdim=True) / 127
    return torch.trunc(state / scale) * scale


BROKEN = {
    "": quantised,
    "another axis": lambda state: quantised(state.mT.contiguous()).mT,
    "no rounding of the scale": cut_off,
}


# ---- faults: calls, what is done in front of which, words of the finding


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
    taken agree, and is right where it is declared."""
    for declared, right in ((None, False), ("bf16", True)):
        server = a_server(
            models["mamba2"], precision="fp16", window_dtype=torch.bfloat16
        )
        hook = a_hook(server, window_precision=declared)
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
