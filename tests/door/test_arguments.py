"""Assert that Python refuses what the command refuses, with a hint, before any work."""

import inspect
import traceback
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import ArgumentError, LyapunovError, UsageError
from lyapunov.exponents import (
    covariant_lyapunov_vectors,
    finite_time_exponents,
    transient_growth,
)
from lyapunov.models import Tokens
from lyapunov.questions._effort import NO_LOGITS, Effort
from lyapunov.questions._request import Request
from lyapunov.questions._settings import checked_settings


SEQUENCES = [3, {"bf16": 1}, [1], ["bf16", None], b"bf16", True]
SWITCHES = ["yes", 1, 0, "", [], np.int64(1)]
NAMES = [3, [], ["cpu"], "", object()]

# every parameter of `check` and of `audit`, and what it may not be
REFUSED = {
    "model": [3, [], b"x", {}, object()],
    "tokens": [
        [[1, 2], [1, 2, 3]],
        [1.0, 2.0],
        "text",
        [True, False],
        [1],
        [],
        [[]],
        [[[1, 2]]],
        [-1, 2],
        [1, 256],
        [2**70, 1],
        {"ids": [1]},
        object(),
        Tokens(np.array([[1, 2]]), cast(Any, 3)),
        Tokens(np.array([[1, 256]]), "a text"),
    ],
    "precisions": [*SEQUENCES, "int8", ["tf32"], ["fp64"], "fp8_e4m3", (), "b"],
    "state_precision": [*NAMES, "int4", "bf16-cast"],
    "mode": [*NAMES, None, "train"],
    "layers": ["0", 0, 1.0, [0.0], ["0"], [True], [-1], [9], [], {0}, [[0]], [None]],
    "measure": [*NAMES, None, "vlm"],
    "constants": [*NAMES, None, "guessed"],
    "device": [*NAMES, "abacus", "cpu:99", "cpu:x"],
    "against": [3, [], "", object(), "no/such/folder/at/all"],
    "quantise_activations": [*NAMES, "int3", "fp8_e4m3", "nvfp4", "nvfp4=-1", "bf16"],
    "round_weights": [*SEQUENCES, "A_log", "bf16:A", ["bf16:"], "int3"],
    "effort": [*NAMES, None, "half"],
    "bounds": SWITCHES,
    "floor": SWITCHES,
    "probes": [-1, 1.0, "1", True, None, [1]],
    "readouts": [-1, 1.0, "1", True, [1]],
    "ball": SWITCHES,
    "growth": SWITCHES,
    "seed": [-1, 1.5, "0", True, None, 2**64],
    "progress": [3, "bar", object(), print],
    "tokens_are_text": SWITCHES,
    "token_bytes": [0, -1, 1.0, "1", True],
    "fail_on": [*NAMES, None, "note"],
    "select": [3, ["zz"], "E501", [1], [""], {"LYA001"}],
    "ignore": [3, ["zz"], "LYA999", [1], [""], {"LYA001"}],
    "allow_partial": SWITCHES,
    "exit_zero": SWITCHES,
    "source": [3, None, [], "", "vlm", "no.such.npz"],
    "variants": [3, [], "backwards", [1], ["steps", None], "chunks:0"],
    "n_probes": [0, -1, 1.0, "1", True, None],
    "format": [*NAMES, None, "int3", "int8:A", "int8:", ":conv", "int8:attention"],
    "measured": [-1, 1.0, "1", True, None],
    "keep": [-0.1, 1.1, "0.1", True, None, float("nan"), float("inf")],
}


def refused(function, *arguments, **named):
    """The error's message and hint, once it is sure that it has both."""
    with pytest.raises(LyapunovError) as caught:
        function(*arguments, **named)
    error = caught.value
    assert error.message
    assert error.hint
    assert "\n" not in error.message + error.hint
    return error


def of(function) -> dict:
    names = inspect.signature(function).parameters
    return {name: REFUSED[name] for name in names}


def cases(function):
    return [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, values in of(function).items()
        for i, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def bundled():
    return lyapunov.load()


@pytest.fixture
def no_work(monkeypatch):
    """No forward is run: what is wrong is said before."""

    def run(*arguments, **named):
        raise AssertionError("the work began")

    monkeypatch.setattr("lyapunov.questions._check.run_layers", run)
    monkeypatch.setattr("lyapunov.questions._check.parameter_changes", run)
    monkeypatch.setattr("lyapunov.questions._audit._run", run)
    monkeypatch.setattr("lyapunov.questions._rank_weights.derivatives_of", run)


@pytest.mark.parametrize(("name", "value"), cases(lyapunov.check))
def test_check_refuses(name, value, bundled, no_work):
    given = {"model": bundled, "tokens": [1, 2, 3], name: value}
    refused(lyapunov.check, **given)


@pytest.mark.parametrize(("name", "value"), cases(lyapunov.rank_weights))
def test_rank_weights_refuses(name, value, bundled, no_work):
    given = {"model": bundled, "tokens": [1, 2, 3], name: value}
    refused(lyapunov.rank_weights, **given)


@pytest.mark.parametrize(("name", "value"), cases(lyapunov.audit))
def test_audit_refuses(name, value, bundled, no_work):
    given = {"model": bundled, "source": "emulated", "tokens": [1, 2, 3], name: value}
    refused(lyapunov.audit, **given)


def test_one_string_is_one_of_them():
    """Assert it of every argument that is a sequence of strings."""
    given = {"precisions": "bf16", "select": "LYA004", "ignore": "lya"}
    found = checked_settings(given | {"round_weights": "bf16:A_log"})
    assert found == {
        "precisions": ["bf16"],
        "select": ["LYA004"],
        "ignore": ["LYA"],
        "round_weights": ["bf16:A_log"],
    }


def test_numpy_numbers_are_numbers(bundled):
    given = {"layers": np.arange(2), "probes": np.int64(1), "floor": np.bool_(True)}
    found = checked_settings(given | {"seed": np.uint8(3)})
    assert found == {"layers": [0, 1], "probes": 1, "floor": True, "seed": 3}
    assert [type(value) for value in found.values()] == [list, int, bool, int]
    assert type(found["layers"][0]) is int


def test_settings_are_what_the_request_says():
    """Assert that every argument of a check that is a setting comes back, and that a
    switch that was given wins over the effort, also where it is the default."""
    beside = {"model", "tokens", "progress", "token_bytes"}
    names = set(inspect.signature(lyapunov.check).parameters) - beside
    assert set(Request().settings()) == names
    asked = Request.of(effort="quick", floor=True, precisions="bf16-amp", layers=[3, 0])
    said = asked.settings()
    assert (said["effort"], said["floor"], said["ball"]) == ("quick", True, False)
    assert (said["precisions"], said["layers"]) == (["bf16-amp"], [0, 3])
    assert asked.precisions[0].autocast
    assert "floor_t1_ratio" not in asked.effort.left_out()
    assert asked.effort.left_out()["certified_l2"] == "left out by the effort quick"
    whole = Request.of(effort="full", floor=False).effort.left_out()
    assert whole == {"floor_t1_ratio": "floor=False", "floor_ratio": "floor=False"}
    bare = Effort.of("full").on(has_head=False, n_params=1).left_out(has_head=False)
    assert {"sigma_t3", "estimate_t2", "certified_until_layer"} <= set(bare)
    assert set(bare.values()) == {NO_LOGITS}


@pytest.mark.parametrize("value", REFUSED["model"])
def test_other_doors_refuse_what_is_no_model(value):
    refused(lyapunov.trace, value, [1, 2])
    refused(lyapunov.load, value)
    refused(lyapunov.from_torch, value)


@pytest.mark.parametrize("value", [3, "", ["main"]])
def test_load_refuses_a_revision(value):
    refused(lyapunov.load, "gpt2", revision=value)


@pytest.mark.parametrize("value", [v for v in REFUSED["tokens"] if v != [1]])
def test_trace_and_logits_refuse_tokens(value, bundled):
    refused(lyapunov.trace, bundled, value)
    refused(bundled.logits, value)


@pytest.mark.parametrize("value", [3, "Reference", lyapunov.implementations.Reference])
def test_trace_refuses_a_runner(value, bundled):
    refused(lyapunov.trace, bundled, [1, 2], runner=value)


def halve(x, u):
    return jax.tree.map(lambda v: v / 2, x)


STEPS = {
    "step": [3, None, "tanh", dict],
    "state": [None, (), "ab", [object()], np.zeros(2) * 1j, np.zeros(0), [True]],
    "inputs": [
        0,
        -3,
        None,
        True,
        2.0,
        "ab",
        jnp.zeros(()),
        np.zeros((0, 2)),
        [np.zeros(3), np.zeros(4)],
        [[1.0], [1.0, 2.0]],
        np.array(["a", "b"]),
    ],
    "k": [0, -1, 3, 1.0, "1", True],
    "method": ["QR", 3, lyapunov.QR],
    "key": [0, "key", 1.5],
    "transient": [-1, 5, 1.0, "1", True, None],
    "until": [1e-3, "soon", lyapunov.Converged],
    "window": [0, -1, 1.0, "1", True],
    "from_every_token": [1, "yes", None],
}


@pytest.mark.parametrize(
    "function",
    [
        lyapunov.lyapunov_spectrum,
        finite_time_exponents,
        covariant_lyapunov_vectors,
        transient_growth,
    ],
)
def test_exponents_refuse(function):
    """Assert it of every parameter of every function over a step."""
    parameters = inspect.signature(function).parameters
    plain = {"step": halve, "state": jnp.zeros(2), "inputs": 5}
    plain |= {"transient": 0} if "transient" in parameters else {}
    for name in parameters:
        for value in STEPS[name]:
            error = refused(function, **(plain | {name: value}))
            assert isinstance(error, ValueError), (name, value)


@pytest.mark.parametrize(
    "step",
    [
        lambda x, u: x[:1],
        lambda x, u: x.astype(jnp.float32),
        lambda x, u: (x, x),
        lambda x, u: x > 0,
    ],
)
def test_a_step_that_does_not_keep_its_state_is_refused(step):
    refused(lyapunov.lyapunov_spectrum, step, jnp.zeros(2), 5)


@pytest.mark.parametrize(
    "given", [["a"], [[1.0], [1.0, 2.0]], object(), np.ones((2, 2)) * 1j, np.ones(3)]
)
def test_jacobians_that_are_none_are_refused(given):
    refused(lyapunov.lyapunov_spectrum_of, given)


@pytest.mark.parametrize("stderr", [0, -1.0, "1", True, float("nan"), float("inf")])
def test_converged_refuses(stderr):
    refused(lyapunov.Converged, stderr)


@pytest.mark.parametrize("every", [0, -1, 1.5, "1", True])
def test_converged_refuses_every(every):
    refused(lyapunov.Converged, 0.1, every=every)
    refused(lyapunov.Converged, 0.1, error_bars=every)


def test_torch_is_told_what_to_do():
    torch = pytest.importorskip("torch")
    zeros = torch.zeros(2)
    for step, state, inputs in (
        (halve, zeros, 5),
        (halve, jnp.zeros(2), torch.zeros(5, 2)),
        (halve, (jnp.zeros(2), zeros), 5),
        (torch.nn.Linear(2, 2), jnp.zeros(2), 5),
    ):
        error = refused(lyapunov.lyapunov_spectrum, step, state, inputs)
        assert "torch" in error.message
        assert "tensor.numpy()" in error.hint


def test_a_hint_is_shown_in_a_traceback_once():
    for kind in (LyapunovError, UsageError, ArgumentError):
        error = kind("k is 3", hint="k from 1 to 2")
        shown = "".join(traceback.format_exception(error))
        assert shown.count("hint: k from 1 to 2") == 1
        assert shown.index("k is 3") < shown.index("hint:")
    assert not hasattr(LyapunovError("k is 3"), "__notes__")


def test_no_parameter_is_without_a_rule():
    """Assert that a new argument of a check or an audit gets a row here."""
    for function in (lyapunov.check, lyapunov.audit):
        assert set(inspect.signature(function).parameters) <= set(REFUSED)
    assert Path(lyapunov.__file__).with_name("__main__.py").is_file()
