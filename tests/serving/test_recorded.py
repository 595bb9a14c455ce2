"""What a recorder and its hooks refuse, what calls amount to, logits, and responses."""

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lyapunov
from lyapunov._errors import DumpError, UsageError
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.dump.file import File
from lyapunov.serving import (
    Recorder,
    forward_hook,
    of_sglang,
    of_vllm,
    sglang_hook,
    vllm_hook,
    write_logprobs,
)
from lyapunov.serving._calls import counting, way

from ..helpers import parted
from .conftest import SEQ, a_hook, a_server
from .mixers import Block, Network
from .stand_in import part
from .test_hand_overs import drafted, prefilled, steps


FLOW: Any = {"implementation": "mamba_ssm", "precision": "fp32"}


def recorded(*calls):
    """A recorder of calls (start, stop, whether it is a step)."""
    recorder = Recorder(**FLOW)
    for start, stop, step in calls:
        recorder.call(start, stop, step=step, ids=np.arange(start, stop))
    return recorder.calls


P, S = False, True
WAYS = {
    "whole": [(0, 8, P)],
    "steps": [(0, 1, S), (1, 2, S)],
    "initial_state:5": [(0, 5, P), (5, 6, S), (6, 7, S)],
    "chunks:5,3": [(0, 5, P), (5, 8, P)],
    "chunks:4": [(0, 4, P), (4, 8, P), (8, 12, P)],
    "chunks:5,4,1": [(0, 5, P), (5, 9, P), (9, 10, S), (10, 11, S)],
    # decoding, and then a prompt that goes on
    "chunks:5,1,1,4": [(0, 5, P), (5, 6, S), (6, 7, S), (7, 11, P)],
    # pre-emption: from the beginning, and from a block
    "initial_state:7": [(0, 5, P), (5, 6, S), (0, 7, P), (7, 8, S)],
    "chunks:3,4": [(0, 5, P), (5, 6, S), (3, 7, P)],
    # of a window three were accepted, of the last one its first token
    "initial_state:4": [(0, 4, P), (4, 8, S), (7, 10, S)],
}


@pytest.mark.parametrize("name", WAYS)
def test_calls_amount_to_ways(name):
    """Assert the way, and that its calls are the tokens and kinds that were seen."""
    calls = recorded(*WAYS[name])
    spans = counting(calls)
    found = way(calls, spans, rounds=False)
    assert found == name
    tokens = {}
    for span in spans:
        step = calls[span.call].step
        tokens |= dict.fromkeys(range(span.start, span.stop), step)
    assert list(tokens) == list(range(len(tokens)))
    told = {
        token: call.decode
        for call in parse_variant(found).calls(len(tokens), first_is_step=True)
        for token in range(call.start, call.stop)
    }
    assert told == tokens


NO_WAYS = {
    "no call": ([], "no call of the request"),
    "a gap": ([(0, 5, P), (6, 8, P)], "tokens 5 to 6 were in no call"),
    "a single token": ([(0, 5, P), (5, 6, P)], "a single token behind others"),
    "a step first": ([(0, 1, S), (1, 5, P)], "the first token was a step"),
}


@pytest.mark.parametrize("name", NO_WAYS)
def test_what_amounts_to_no_way_is_an_error(name):
    """Assert an error that lists the calls, with a hint."""
    calls, words = NO_WAYS[name]
    calls = recorded(*calls)
    with pytest.raises(DumpError, match=words) as error:
        way(calls, counting(calls), rounds=False)
    assert error.value.hint
    for call in calls:
        assert str(call) in error.value.message


def test_more_pieces_than_a_name_holds():
    """Assert an error, and none where the last size repeats."""
    many = [(0, 5, P)]
    for i in range(200):
        many += [(5 + 4 * i, 8 + 4 * i, P), (8 + 4 * i, 9 + 4 * i, S)]
    calls = recorded(*many)
    with pytest.raises(DumpError, match="more than a name can hold"):
        way(calls, counting(calls), rounds=False)
    calls = recorded((0, 5, P), (5, 8, P), *((8 + i, 9 + i, S) for i in range(500)))
    assert way(calls, counting(calls), rounds=False) == "chunks:5,3,1"


def test_unknown_flows_and_calls_are_refused(tmp_path):
    """Assert the errors of a recorder."""
    with pytest.raises(UsageError, match="no flow is known"):
        Recorder(implementation="no such stack", precision="bf16")
    recorder = Recorder(**FLOW)
    with pytest.raises(DumpError, match="from 3 to before 3"):
        recorder.call(3, 3, step=False)
    recorder.call(0, 4, step=False)
    with pytest.raises(DumpError, match="3 rows in a prefill from 0 to 4"):
        recorder.rows(0, "output", np.zeros((3, 2)))
    with pytest.raises(DumpError, match="tokens of a prefill from 0 to 4"):
        recorder.write(tmp_path / "run.npz")
    recorder.calls[0].ids = np.arange(4)
    with pytest.raises(DumpError, match="no tensor in them") as error:
        recorder.write(tmp_path / "run.npz")
    assert "--enforce-eager" in error.value.hint
    with pytest.raises(DumpError, match=r"would be a \.npz"):
        recorder.write(tmp_path / "run.safetensors")


def test_compiled_engines_are_refused(models):
    """Assert a refusal where hooks would not fire, and where they see a part."""
    server = a_server(models["mamba1"])
    parallel = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}

    def worker(eager, **changed):
        config = SimpleNamespace(
            model_config=SimpleNamespace(enforce_eager=eager),
            parallel_config=SimpleNamespace(**(parallel | changed)),
        )
        return SimpleNamespace(**vars(server.worker), vllm_config=config)

    with pytest.raises(UsageError, match="CUDA graphs") as error:
        vllm_hook(worker(False), **FLOW)
    assert "--enforce-eager" in error.value.hint
    assert "write_logprobs" in error.value.hint
    for name in parallel:
        with pytest.raises(UsageError, match="sees a part"):
            vllm_hook(worker(True, **{name: 2}), **FLOW)
    assert vllm_hook(worker(True), **FLOW)
    server.mixers[0].kv_cache = (*server.mixers[0].kv_cache, torch.zeros(1))
    with pytest.raises(UsageError, match="use-replayssm"):
        a_hook(server)
    del server.network.layers
    with pytest.raises(UsageError, match="has no MambaMixer or MambaMixer2"):
        vllm_hook(server.worker, **FLOW)


def test_a_graph_that_is_replayed_is_an_error(models, tmp_path):
    """Assert that logits without any call of the model write no empty dump."""
    server = a_server(models["mamba1"])
    hook = a_hook(server)
    with hook, torch.no_grad():
        server.network.compute_logits(torch.zeros(1, 16))
    with pytest.raises(DumpError, match="no hook has seen the request") as error:
        hook.write(tmp_path / "run.npz")
    assert "--enforce-eager" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_hooks_leave_the_model_as_it_was(models):
    """Assert that nothing is left on it, and that outputs are the same."""
    for sglang in (False, True):
        server = a_server(models["mamba2"], sglang=sglang)
        before = dict(vars(server.network)), [dict(vars(m)) for m in server.mixers]
        hook = a_hook(server)
        server.run(*prefilled(5), around=hook)
        assert not hook.watching
        after = dict(vars(server.network)), [dict(vars(m)) for m in server.mixers]
        assert [set(x) for x in after[1]] == [set(x) | {"dt"} for x in before[1]]
        assert set(before[0]) == set(after[0])
        for module in server.network.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def test_which_request_has_to_be_said(models):
    """Assert a refusal of a batch of two without a name, and of blocks with more."""
    server = a_server(models["mamba1"])
    both = [[part("a", 0, 5, 3), part("b", 0, 5, 4)]]
    with pytest.raises(UsageError, match="the batch has 2 requests"):
        server.run(*both, around=a_hook(server, request=None))
    server.run(*prefilled(5), around=a_hook(server, request=None))
    blocks = [*server.network.layers, torch.nn.Identity()]
    hybrid = Network(server.model, blocks, torch.float32)
    worker = SimpleNamespace(model_runner=SimpleNamespace(
        get_model=lambda: hybrid, input_batch=SimpleNamespace(req_ids=["a"])
    ))  # fmt: skip
    with pytest.raises(UsageError, match="2 mixers in 3 blocks"):
        vllm_hook(worker, **FLOW)
    names = {"layers.0.mixer": 0, "layers.1.mixer": 2}
    hook = vllm_hook(worker, sublayers=names, **FLOW)
    assert [one.layer for one in hook._mixers] == [0, 2]
    del blocks[0].norm
    with pytest.raises(UsageError, match="has no norm or input_layernorm"):
        vllm_hook(worker, sublayers=names, **FLOW)
    assert isinstance(blocks[0], Block)


@pytest.mark.parametrize("sglang", [False, True])
def test_what_is_recorded_is_what_a_network_computes(models, tmp_path, sglang):
    """Assert against the fp64 reference: rows of a packed batch, and logits."""
    server = a_server(models["mamba2"], sglang=sglang)
    hook = a_hook(server)
    server.run(
        [part("b", 0, 6, 4), part("a", 0, 5, 3)],
        [part("b", 6, 7, 4, step=True), part("a", 5, 9, 3)],
        [part("a", 9, 10, 3, step=True), part("b", 7, 8, 4, step=True)],
        around=hook,
    )
    path = tmp_path / "run.npz"
    assert hook.write(path) == "chunks:5,4,1"
    model = models["mamba2"]
    dump = File(path)
    dump.check(model)
    tokens = server.texts["a"][:10]
    np.testing.assert_array_equal(dump.tokens, tokens[None])
    assert dump.state_precision == "fp32"
    records, head = parted(lyapunov.trace(model, tokens))
    arrays = np.load(path)
    for record in records:
        own = arrays[f"layer.{record.layer}.output"]
        # fp32's own error over 10 tokens of sums of 64 terms, far above
        np.testing.assert_allclose(own, np.asarray(record.output)[0], atol=2e-5)
        residual = arrays[f"layer.{record.layer}.residual"]
        hidden = arrays[f"layer.{record.layer}.hidden"]
        stream = np.asarray(record.residual + record.hidden)[0]
        np.testing.assert_allclose(residual + hidden, stream, atol=2e-5)
    if not sglang:  # the stand-in's head reads an unnormalised stream
        assert arrays["positions"].tolist() == [4, 8, 9]
        assert arrays["logits"].shape == (3, model.config.padded_vocab_size)
    assert head is not None


def test_logits_of_a_draft_are_of_its_tokens(models, tmp_path):
    """Assert that rows of rejected tokens are dropped, by the rows they are made of."""
    server = a_server(models["mamba1"], spec=2)
    hook = a_hook(server)
    server.run(*drafted((2, 1)), around=hook)
    hook.write(tmp_path / "run.npz")
    arrays = np.load(tmp_path / "run.npz")
    assert len(arrays["tokens"]) == 9
    assert arrays["positions"].tolist() == [4, 5, 6, 7, 8]
    other = a_server(models["mamba1"])
    hook = a_hook(other)
    other.run(*prefilled(5), *steps("a", 5, 9, 3), around=hook)
    hook.write(tmp_path / "steps.npz")
    expected = np.load(tmp_path / "steps.npz")
    assert expected["positions"].tolist() == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(arrays["logits"], expected["logits"])


def test_a_recorder_travels(models, tmp_path):
    """Assert that what a worker pickles writes the same dump elsewhere."""
    server = a_server(models["mamba1"], precision="bf16", cache=torch.bfloat16)
    hook = a_hook(server)
    server.run(*prefilled(5, 9), around=hook)
    hook.write(tmp_path / "here.npz")
    pickle.loads(pickle.dumps(hook.recorder)).write(tmp_path / "there.npz")
    one, other = (np.load(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert one.files == other.files
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])
    assert one["state_precision"] == "bf16"
    assert one["layer.0.handed.1.taken.state"].dtype == np.uint16


def test_sglangs_own_option_writes_a_dump(models, tmp_path):
    """Assert that what `--forward-hooks` makes waits for the tokens and writes."""
    path = tmp_path / "run.npz"
    with pytest.raises(UsageError, match="was not told path and tokens"):
        forward_hook({})
    settings: dict[str, Any] = {**FLOW, "state_precision": "fp32", "request": "a"}
    hook = forward_hook({**settings, "path": str(path), "tokens": 8})
    server = a_server(models["mamba2"], sglang=True)
    server.network.register_forward_hook(hook)
    server.run([part("c", 0, 3, 7)])  # the server's warm-up
    server.run(*prefilled(5), *steps("a", 5, 12, 3))
    dump = File(path)
    dump.check(models["mamba2"])
    assert dump.tokens.shape == (1, 8)
    assert str(dump.runs["whole"]) == "initial_state:5"
    assert not any(one._forward_hooks for one in server.mixers)
    verify = SimpleNamespace(is_decode=lambda: False, is_target_verify=lambda: True)
    batch = SimpleNamespace(rids=["a"], batch_size=1, forward_mode=verify)
    watching = sglang_hook(server.network, **settings)
    with pytest.raises(UsageError, match="draft windows of SGLang"):
        watching._find({"forward_batch": batch})


def test_responses_are_dumps_of_logits(models, tmp_path):
    """Assert that both servers' answers become the same rows, behind their tokens."""
    tokens = np.arange(10) % 40
    draw = np.random.default_rng(0).normal(size=(10, 40))
    logprobs = draw - np.log(np.exp(draw).sum(-1, keepdims=True))
    top = lambda i: np.argsort(-logprobs[i])[:3].tolist()
    entry = lambda i: {t: SimpleNamespace(logprob=logprobs[i, t]) for t in top(i)}
    output = SimpleNamespace(
        prompt_token_ids=tokens[:6].tolist(),
        prompt_logprobs=[None, *(entry(i) for i in range(5))],
        outputs=[SimpleNamespace(
            token_ids=tokens[6:].tolist(), logprobs=[entry(i) for i in range(5, 9)]
        )],
    )  # fmt: skip
    rows = lambda i: [(float(logprobs[i, t]), t, None) for t in top(i)]
    response = {
        "output_ids": tokens[6:].tolist(),
        "meta_info": {
            "input_top_logprobs": [None, *(rows(i) for i in range(5))],
            "output_top_logprobs": [rows(i) for i in range(5, 9)],
        },
    }
    path = tmp_path / "run.npz"
    for found in (of_vllm(output), of_sglang(response, tokens[:6].tolist())):
        write_logprobs(path, *found, implementation="mamba_ssm", precision="bf16")
        dump = File(path)
        dump.check(models["mamba1"])
        np.testing.assert_array_equal(dump.tokens, tokens[None])
        seen = dump.logits
        assert seen is not None
        assert seen.positions.tolist() == list(range(9))
        assert seen.ids is not None
        for i in range(9):
            assert seen.ids[0, i].tolist() == top(i)
            np.testing.assert_allclose(seen.values()[0, i], logprobs[i, top(i)], 1e-6)
    output.prompt_logprobs, output.outputs[0].logprobs = None, None
    with pytest.raises(DumpError, match="no log-probabilities"):
        of_vllm(output)
    with pytest.raises(DumpError, match="behind token 10 of 10"):
        write_logprobs(path, tokens, {10: {1: -1.0}}, **FLOW)
    with pytest.raises(UsageError, match="no flow"):
        write_logprobs(path, tokens, {1: {1: -1.0}}, implementation="x", precision="")


def test_importing_it_loads_no_program():
    """Assert that neither JAX nor torch nor a server is loaded by any of its names."""
    import subprocess
    import sys

    code = (
        "import sys, lyapunov.serving as s; [getattr(s, n) for n in s.__all__]; "
        "print([m for m in ('jax', 'torch', 'vllm', 'sglang') if m in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert SEQ >= 20
