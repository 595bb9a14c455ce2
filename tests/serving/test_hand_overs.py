"""Hand-overs between calls of a server are copies, or the audit says which is not.

The servers are stand-ins. A clean run of each hand-over is passed, a fault planted in
each is told in words; what a dump is made of is told by calls alone.
"""

import dataclasses

import numpy as np
import pytest
import torch

from lyapunov._errors import DumpError
from lyapunov.implementations._segment import merged
from lyapunov.implementations.dump.file import File
from lyapunov.questions._audit_ways import ways_of_dump

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


@pytest.mark.parametrize(
    ("flow", "grid"),
    [
        ("mamba_ssm", None),
        ("sglang_emulated SGLANG_MAMBA_CONV_DTYPE=float32", None),
        ("vllm --enforce-eager", 9),
    ],
)
def test_chunks_behind_a_prefix_end_where_they_do_in_the_text(
    models, tmp_path, flow, grid
):
    """Assert it of what is declared of the calls of a dump that begins behind 9 tokens:
    of one kind of chunk, and as it goes on after a first call."""
    server = a_server(models["mamba2"], before={1: lambda one: one.copy(3, 6)})
    server.texts["b"] = server.texts["a"].copy()
    calls = [[part("b", 0, 9, 3)], [part("a", 9, 12, 6)], [part("a", 12, 16, 6)]]
    hook = a_hook(server, implementation=flow)
    server.run(*calls, around=hook)
    model, path = models["mamba2"], tmp_path / "run.npz"
    assert hook.write(path) == "chunks:3,4"
    (way,), _ = ways_of_dump(model, File(path), None)
    own = [
        dataclasses.replace(s, execution=s.execution.of("mamba2")) for s in way.segments
    ]
    found = merged(own, model.config.sublayers[0])
    begins = [0, 3] if len(found) == 2 else [0]
    expected = [None if grid is None else grid + start for start in begins]
    assert [one.execution.form.grid for one in found] == expected


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
