"""Assert what a check of a file's blocks says, and what it refuses."""

import hashlib
from typing import Any

import numpy as np
import pytest


pytest.importorskip("torch")

import torch

import lyapunov
from lyapunov._errors import (
    ArgumentError,
    CorruptCheckpointError,
    LyapunovError,
    UnsupportedCheckpointError,
    UsageError,
)
from lyapunov.mixers._kind import MissingOptionError
from tests.watch.oracle import of_mamba1, of_mamba2, of_mamba3, weights_of

from .files import OPTIONS, drawn, network, saved


ORACLES = {
    "first": of_mamba1,
    "second": of_mamba2,
    "third": lambda read, weights: of_mamba3(read, weights, angles=2),
}
QUICK = {"precisions": ["bf16"], "effort": "quick"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=[] if one == "first" else [pytest.mark.slow])
        for one in OPTIONS
    ],
)
def test_exponents_and_bounds(tmp_path, name):
    """Exponents to 1e-12 of NumPy's, on what was captured; no element above its bound,
    which is near; what the block gave lies within what fp32 explains."""
    made = network(name)
    block = made.get_submodule(name)
    read = drawn()
    with torch.no_grad():
        wrote = block(read).numpy()
    np.savez(tmp_path / "c.npz", **{name: read.numpy(), f"{name}.output": wrote})
    path = saved(tmp_path / "w.pth", {"state_dict": made.state_dict()})
    report = lyapunov.check_blocks(
        path,
        inputs=tmp_path / "c.npz",
        options=OPTIONS[name],
        precisions=["bf16"],
    )
    (row,) = report.exponents.layers
    wanted = ORACLES[name](read.double().numpy(), weights_of(block))
    found = np.array([row.max, row.min], float)
    np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)
    assert row.module == name
    (precision,) = report.precisions
    assert precision.count("violations") == 0
    assert precision.count("elements_unbounded") == 0
    (layer,) = precision.layers
    # angles of Mamba-3 add up over the text, and their errors with them
    assert layer.bound_t1_ratio is not None
    assert 1.0 <= layer.bound_t1_ratio < (100.0 if name == "third" else 10.0)
    assert "what it gave in fp32 is" in report.assumptions[0]
    (file,) = report.checkpoint.files
    assert file["name"] == "w.pth"
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.checkpoint.n_params == sum(p.numel() for p in block.parameters())


def test_without_an_output_nothing_is_verified(tmp_path):
    made = network("first")
    path = saved(tmp_path / "w.pth", made.state_dict())
    report = lyapunov.check_blocks(
        path, random_inputs=2.0, length=16, options=OPTIONS["first"], **QUICK
    )
    told = "\n".join(report.assumptions)
    assert "not verified: no output was given" in told
    assert "activation = silu" in told
    assert "root mean square of 2 (seed 0)" in report.tokens.source
    assert (report.tokens.batch, report.tokens.length) == (1, 16)
    drawn_again = np.random.default_rng([0, 0]).standard_normal((1, 16, 8))
    drawn_again *= 2.0 / np.sqrt(np.mean(drawn_again**2, -1, keepdims=True))
    read = drawn_again.astype(np.float32).astype(np.float64)
    wanted = of_mamba1(read, weights_of(made.get_submodule("first")))
    (row,) = report.exponents.layers
    found = np.array(row.max, float)
    np.testing.assert_allclose(found, wanted.max(), rtol=1e-12)
    for ending in ("json", "md", "html"):
        report.save(tmp_path / f"report.{ending}")
        text = (tmp_path / f"report.{ending}").read_text(encoding="utf-8")
        assert "w.pth" in text
        assert "not verified" in text or ending == "md"


def test_what_an_output_tells_need_not_be_said(tmp_path):
    """And another value of what was said is found by it."""
    made = network("second")
    read = drawn()
    with torch.no_grad():
        wrote = made.get_submodule("second")(read).numpy()
    path = saved(tmp_path / "w.pth", made.state_dict())
    inputs = {"second": read.numpy(), "second.output": wrote}
    said = {"groups": 2, "chunk": 16, "gate_norm_epsilon": 1e-5}
    report = lyapunov.check_blocks(path, inputs=inputs, options=said, **QUICK)
    assert "what it gave in fp32 is" in report.assumptions[0]
    wrong = said | {"norm_before_gate": True}
    with pytest.raises(UsageError, match="another function") as refused:
        lyapunov.check_blocks(path, inputs=inputs, options=wrong, **QUICK)
    assert "norm_before_gate" in refused.value.hint


@pytest.mark.parametrize("name", ["A_log", "dt_proj.bias", "D", "conv1d.bias"])
def test_weights_of_another_step_are_found_by_the_output(tmp_path, name):
    """A thousandth more in one parameter is more than fp32 explains."""
    made = network("first")
    read = drawn()
    with torch.no_grad():
        wrote = made.get_submodule("first")(read).numpy()
    inputs = {"first": read.numpy(), "first.output": wrote}
    path = _changed(tmp_path, **{name: lambda x: x * 1.001})
    _refused(path, "another function", random_inputs=None, length=None, inputs=inputs)


def test_bf16_weights_and_fp16_inputs(tmp_path):
    """Their own types; exponents of the weights as they are stored."""
    made = network("first").to(torch.bfloat16)
    path = saved(tmp_path / "w.pth", made.state_dict())
    (block,) = lyapunov.mixers.blocks_of_file(path)
    assert block.dtypes == ("bf16",)
    read = drawn()[:1].numpy().astype(np.float16)
    report = lyapunov.check_blocks(path, inputs=read, options=OPTIONS["first"], **QUICK)
    assert report.checkpoint.dtype == "bf16"
    weights = weights_of(made.get_submodule("first"))
    wanted = of_mamba1(read.astype(np.float64), weights)
    (row,) = report.exponents.layers
    found = np.array([row.max, row.min], float)
    np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)


def test_one_array_for_all(tmp_path):
    state = {}
    for name in ("one", "two"):
        for key, value in network("first").state_dict().items():
            state[key.replace("first", name)] = value
    path = saved(tmp_path / "w.pth", state)
    np.savez(tmp_path / "c.npz", drawn()[0].numpy())
    settings = {"inputs": tmp_path / "c.npz", "options": OPTIONS["first"], **QUICK}
    report = lyapunov.check_blocks(path, **settings)
    assert [row.module for row in report.exponents.layers] == ["one", "two"]
    report = lyapunov.check_blocks(path, layers=[1], **settings)
    assert [row.module for row in report.exponents.layers] == ["two"]
    with pytest.raises(UsageError, match="there is no block 2; the file has 2"):
        lyapunov.check_blocks(path, layers=[2], **settings)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    return saved(folder / "w.pth", network("first").state_dict())


def _refused(
    path, match, error: type[LyapunovError] = UsageError, **settings
) -> LyapunovError:
    given: dict[str, Any] = {
        "random_inputs": 1.0,
        "length": 8,
        "options": OPTIONS["first"],
        **QUICK,
    }
    given |= settings
    with pytest.raises(error, match=match) as refused:
        lyapunov.check_blocks(path, **given)
    assert refused.value.hint
    return refused.value


SAID = OPTIONS["first"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"random_inputs": None}, "given no inputs"),
        ({"inputs": "c.npz"}, "inputs and a scale"),
        ({"random_inputs": 0.0}, "scale 0"),
        ({"random_inputs": True}, "scale True"),
        ({"random_inputs": float("nan")}, "scale nan"),
        ({"length": 1}, "length is 1"),
        ({"options": {}}, "do not say activation of first"),
        ({"options": SAID | {"chunks": 4}}, "'chunks': unknown"),
        ({"options": SAID | {"chunk": 4}}, "'chunk': the tensors leave no such"),
        ({"options": SAID | {"others": "unused"}}, "'others'"),
        ({"options": SAID | {"activation": "gelu"}}, "activation is 'gelu'"),
        ({"options": SAID | {"weightless_norm_epsilon": 2.0}}, "epsilon is 2.0"),
        ({"weight_set": "ema"}, "no set of weights"),
        ({"layers": [1]}, "no block 1"),
        ({"measure": "transformers"}, "measure"),
        ({"against": "other"}, "takes no against"),
    ],
)
def test_what_is_refused(first, settings, match):
    _refused(first, match, **settings)


def test_a_number_of_groups_that_shapes_contradict(tmp_path):
    path = saved(tmp_path / "w.pth", network("third").state_dict())
    said = OPTIONS["third"] | {"groups": 2}
    _refused(path, "the shapes say 1", options=said)
    path = saved(tmp_path / "w.pth", network("second").state_dict())
    said = OPTIONS["second"] | {"groups": 3}
    _refused(path, "3 groups", ArgumentError, options=said)


INPUTS = {
    "another width": ({"first": np.ones((4, 9), np.float32)}, "reads rows of 8"),
    "four axes": ({"first": np.ones((1, 1, 4, 8))}, "reads rows of 8"),
    "no block": ({"first": np.ones((4, 8)), "second": np.ones((4, 8))}, "no block"),
    "no input": ({"first.output": np.ones((4, 8))}, "nothing that first read"),
    "objects": ({"first": np.array([[None] * 8] * 4)}, "run code"),
    "whole numbers": ({"first": np.ones((4, 8), np.int64)}, "no floats"),
    "not finite": ({"first": np.full((4, 8), np.nan)}, "not finite"),
    "one token": ({"first": np.ones((1, 8))}, "one token"),
    "another shape": (
        {"first": np.ones((4, 8)), "first.output": np.ones((3, 8))},
        "read .1, 4, 8. and gave .1, 3, 8.",
    ),
    "nothing": ({}, "no arrays"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_refused(first, tmp_path, name):
    arrays, match = INPUTS[name]
    np.savez(tmp_path / "c.npz", **arrays)
    inputs: dict[str, Any] = {
        "random_inputs": None,
        "length": None,
        "inputs": tmp_path / "c.npz",
    }
    _refused(first, match, **inputs)


def test_files_that_are_no_inputs(first, tmp_path):
    inputs: dict[str, Any] = {"random_inputs": None, "length": None}
    _refused(first, "there is no file", inputs=tmp_path / "none.npz", **inputs)
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and no more")
    _refused(first, "no .npz", inputs=tmp_path / "c.npz", **inputs)
    inputs["length"] = 4
    _refused(first, "length beside inputs", inputs=tmp_path / "c.npz", **inputs)


def _changed(tmp_path, **changes):
    state = network("first").state_dict()
    for name, change in changes.items():
        state[f"first.{name}"] = change(state.get(f"first.{name}"))
    return saved(tmp_path / "changed.pth", state)


def test_weights_that_are_refused(tmp_path):
    path = _changed(tmp_path, A_log=lambda x: x.fill_(torch.nan))
    _refused(path, "A_log of first .*not finite", CorruptCheckpointError)
    path = _changed(tmp_path, D=lambda x: x.to(torch.int8))
    _refused(path, "int8: quantised", UnsupportedCheckpointError)


def test_tensors_of_another_function_have_to_be_spoken_of(tmp_path):
    """Vision Mamba has a second A_log; a file with one is no Mamba-1 by itself."""
    path = _changed(tmp_path, A_b_log=lambda _: torch.zeros(16, 4))
    error = _refused(path, "others of first.*A_b_log")
    assert "others" in error.hint
    (block,) = lyapunov.mixers.blocks_of_file(path)
    with pytest.raises(MissingOptionError, match="A_b_log"):
        block.mixers(SAID)
    report = lyapunov.check_blocks(
        path, random_inputs=1.0, length=8, options=SAID | {"others": "unused"}, **QUICK
    )
    assert any("others = unused" in line for line in report.assumptions)
