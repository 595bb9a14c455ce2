"""Lost dynamics are named; a model that merely works at unusual values is not."""

import ml_dtypes
import numpy as np
import pytest


D_INNER, D_STATE = 128, 16


def softplus_inverse(dt):
    return dt + np.log(-np.expm1(-dt))


def trained(seed=0):
    """dt_bias, A_log, D and dt on data as training leaves them."""
    rng = np.random.default_rng(seed)
    bias = softplus_inverse(np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), D_INNER)))
    bias += rng.normal(0, 0.7, D_INNER)
    logs = np.log(np.arange(1, D_STATE + 1)) + rng.normal(0, 0.1, (D_INNER, D_STATE))
    skip = 1 + rng.normal(0, 0.2, D_INNER)
    dt = np.logaddexp(0, bias + rng.normal(0, 2, (1, 200, D_INNER)))
    return {"dt": dt, "dt_bias": bias, "A_log": logs, "D": skip}


def initial(seed=0):
    """The same as mamba_ssm initialises them."""
    rng = np.random.default_rng(seed)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), D_INNER))
    logs = np.tile(np.log(np.arange(1, D_STATE + 1)), (D_INNER, 1))
    return {"dt_bias": softplus_inverse(dt), "A_log": logs, "D": np.ones(D_INNER)}


def reasons(dtype="fp32", **changes):
    """Suspicions of a trained layer with some parameters replaced."""
    from lyapunov.exponents import lost_dynamics

    held = trained() | changes
    cast = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}[dtype]
    parameters = {k: held[k].astype(cast) for k in ("dt_bias", "A_log", "D")}
    A = -np.exp(parameters["A_log"].astype(float))
    return lost_dynamics(held["dt"], A, stored_dtype=dtype, **parameters)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_trained_layer_raises_no_suspicion(dtype):
    """Assert that nothing is said of a trained layer in any stored format."""
    assert reasons(dtype) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_zeroed_dt_bias_is_named(dtype):
    """Assert that a dt_bias of zeros is called zeroed, as is a constant one."""
    assert "dt_bias is 0 in every channel" in reasons(dtype, dt_bias=np.zeros(128))[0]
    assert "dt_bias is -4.5" in reasons(dtype, dt_bias=np.full(128, -4.5))[0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_zeroed_or_constant_A_log_is_named(dtype):
    """Assert that A_log of zeros or of one number is named."""
    shape = (D_INNER, D_STATE)
    assert "A_log is 0" in reasons(dtype, A_log=np.zeros(shape))[0]
    assert "A_log is 1.5" in reasons(dtype, A_log=np.full(shape, 1.5))[0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_layer_at_its_initialisation_is_named(dtype):
    """Assert that A_log, dt_bias and D all at their start are called that."""
    (reason,) = reasons(dtype, **initial())
    assert "exactly as before training" in reason


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_reinitialised_A_and_dt_beside_a_trained_D_are_named(dtype):
    """Assert that a loader that re-randomised two of three is found out."""
    start = initial()
    (reason,) = reasons(dtype, dt_bias=start["dt_bias"], A_log=start["A_log"])
    assert "while D is not" in reason


def test_A_log_at_its_initialisation_alone_is_normal():
    """Assert silence where A_log was frozen, D too, and dt_bias was trained."""
    start = initial()
    assert reasons(A_log=start["A_log"]) == []
    assert reasons(A_log=start["A_log"], D=start["D"]) == []


def test_one_state_at_A_log_zero_is_its_initialisation_and_normal():
    """Assert that log(1..1) = 0 is not taken for zeroed."""
    assert reasons(A_log=np.zeros((D_INNER, 1))) == []


def test_a_working_model_with_dt_about_seven_tenths_at_its_bias_passes():
    """Assert that small biases are fine where dt on data spans what it needs."""
    rng = np.random.default_rng(1)
    bias = rng.normal(0, 0.05, D_INNER)
    dt = np.logaddexp(0, bias + rng.normal(0, 4, (1, 300, D_INNER)))
    assert abs(np.logaddexp(0, bias).mean() - 0.7) < 0.02
    assert reasons(dt_bias=bias, dt=dt) == []
    # the same, less selective: dt over one factor of ten is at work all the same
    dt = np.logaddexp(0, bias + rng.normal(0, 0.7, (1, 300, D_INNER)))
    assert reasons(dt_bias=bias, dt=dt) == []


def test_dt_that_never_leaves_softplus_of_zero_is_named():
    """Assert that a small bias, a dt that ignores the text and no memory are named."""
    rng = np.random.default_rng(2)
    bias = rng.uniform(-0.1, 0.1, D_INNER)
    dt = np.logaddexp(0, bias + rng.normal(0, 0.05, (1, 300, D_INNER)))
    (reason,) = reasons(dt_bias=bias, dt=dt, A_log=np.abs(trained()["A_log"]))
    assert "softplus(0)" in reason


def test_a_long_memory_at_that_dt_is_not_called_lost():
    """Assert that slow states at dt = 0.7 pass: their A was trained to suit."""
    rng = np.random.default_rng(3)
    bias = rng.uniform(-0.1, 0.1, D_INNER)
    dt = np.logaddexp(0, bias + rng.normal(0, 0.05, (1, 300, D_INNER)))
    assert reasons(dt_bias=bias, dt=dt, A_log=trained()["A_log"] - 5) == []


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16)]
)
def test_downcast_A_log_is_a_hint(name, dtype):
    """Assert that fp32 values which are all 16-bit numbers give a hint, no more."""
    logs = trained()["A_log"].astype(dtype).astype(float)
    (reason,) = reasons(A_log=logs)
    assert reason.startswith("hint: ")
    assert name in reason
    assert reasons(name, A_log=logs) == []


def test_a_tiny_layer_gives_no_ground_for_suspicion():
    """Assert that one or two channels that agree say nothing."""
    from lyapunov.exponents import lost_dynamics

    dt = np.full((1, 5, 2), 0.7)
    found = lost_dynamics(
        dt, -np.ones((2, 1)), dt_bias=np.zeros(2), A_log=np.zeros((2, 1)), D=np.ones(2)
    )
    assert found == []


def test_nothing_given_nothing_said():
    """Assert that parameters not given are not looked at."""
    from lyapunov.exponents import lost_dynamics

    assert lost_dynamics(np.ones((1, 5, 8)), -np.ones((8, 1))) == []
