"""Lost dynamics are named; a model that merely works at unusual values is not."""

import ml_dtypes
import numpy as np
import pytest

from lyapunov.exponents import StoredParameters, suspicions_of


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
    held = trained() | changes
    cast = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}[dtype]
    parameters = {k: held[k].astype(cast) for k in ("dt_bias", "A_log", "D")}
    A = -np.exp(parameters["A_log"].astype(float))
    return told(held["dt"], A, stored_dtype=dtype, **parameters)


def told(dt, A, **parameters):
    """What is suspected, in words."""
    found = suspicions_of(dt, A, StoredParameters(**parameters))
    return [str(one) for one in found]


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


def test_a_delta_rule_is_asked_without_time_steps_and_without_D():
    """Assert its constructor's constants, zeros, and silence once it was trained."""
    rng = np.random.default_rng(3)
    held = {"A_log": np.log(rng.uniform(0.01, 16, 32)), "per_head": True}
    ones = {"gate_norm": np.ones(64)}
    (first,) = told(None, None, dt_bias=np.ones(32), ones=ones, **held)
    assert "dt_bias and gate_norm are exactly as before training" in first
    weights = {"gate_norm": ones["gate_norm"] + 0.1}
    (constant,) = told(None, None, dt_bias=np.ones(32), ones=weights, **held)
    assert constant == "dt_bias is 1 in every head"
    (zeroed,) = told(None, None, dt_bias=np.zeros(32), ones=weights, **held)
    assert "zeroed" in zeroed
    assert told(None, None, dt_bias=rng.normal(size=32), ones=weights, **held) == []


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
    dt = np.full((1, 5, 2), 0.7)
    found = told(
        dt, -np.ones((2, 1)), dt_bias=np.zeros(2), A_log=np.zeros((2, 1)), D=np.ones(2)
    )
    assert found == []


def test_nothing_given_nothing_said():
    """Assert that parameters not given are not looked at."""
    assert told(np.ones((1, 5, 8)), -np.ones((8, 1))) == []


# ---- one value a head, and what a part of the channels lost


HEADS = 24


def trained_heads(seed=0):
    """As `trained`, with one dt, A and D a head."""
    held = trained(seed)
    rng = np.random.default_rng(seed + 50)
    return {
        "dt": held["dt"][..., :HEADS],
        "dt_bias": held["dt_bias"][:HEADS],
        "A_log": np.log(rng.uniform(1, 16, (HEADS, 1)))
        + rng.normal(0, 0.3, (HEADS, 1)),
        "D": held["D"][:HEADS],
    }


def start_of_heads(library, seed=0):
    """As transformers and mamba_ssm begin Mamba-2."""
    rng = np.random.default_rng(seed)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), HEADS))
    logs = np.log(np.arange(1, HEADS + 1) if library == "transformers" else
                  rng.uniform(1, 16, HEADS))  # fmt: skip
    return {
        "dt_bias": softplus_inverse(dt),
        "A_log": logs[:, None],
        "D": np.ones(HEADS),
    }


def found(per_head, dtype="fp32", **changes):
    """Suspicions of a trained layer of either kind with some parameters replaced."""
    from lyapunov.exponents import StoredParameters, suspicions_of

    held = (trained_heads() if per_head else trained()) | changes
    cast = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}[dtype]
    parameters = {k: held[k].astype(cast) for k in ("dt_bias", "A_log", "D")}
    A = -np.exp(parameters["A_log"].astype(float))
    stored = StoredParameters(stored_dtype=dtype, per_head=per_head, **parameters)
    return suspicions_of(held["dt"], A, stored)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_trained_heads_raise_no_suspicion(dtype):
    """Assert that nothing is said of them, nor of A or D alone at their start."""
    assert found(True, dtype) == []
    start = start_of_heads("transformers")
    assert found(True, dtype, A_log=start["A_log"]) == []
    assert found(True, dtype, D=start["D"]) == []
    assert found(True, dtype, dt_bias=start["dt_bias"]) == []


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("name", ["dt_bias", "A_log", "D"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_each_parameter_that_is_0_is_named_alone(per_head, name, dtype):
    """Assert its name and no other, zeroed whole, in a third of the channels or heads,
    and as another number everywhere."""
    held = (trained_heads() if per_head else trained())[name]
    noun = "head" if per_head else "channel"
    part = held.copy()
    part[: len(part) // 3] = 0
    for value, words in (
        (np.zeros_like(held), f"{name} is 0 in every {noun}"),
        (part, f"{name} is 0 in {len(part) // 3} of {len(part)} {noun}s"),
        (np.full_like(held, 0.3125), f"{name} is 0.3125 in every {noun}"),
    ):
        (one,) = found(per_head, dtype, **{name: value})
        assert one.text.startswith(words), one.text
        assert one.parameters == (name,)
        assert not one.hint


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_mamba2_initialised_anew_is_named(dtype):
    """Assert transformers' start by name; mamba_ssm's, which draws A too, as a hint."""
    names = ("A_log", "dt_bias", "D")
    (one,) = found(True, dtype, **start_of_heads("transformers"))
    assert "exactly as before training" in one.text
    assert (one.parameters, one.hint) == (names, False)
    (one,) = found(True, dtype, **start_of_heads("mamba_ssm"))
    assert (one.parameters, one.hint) == (names, True)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_families_that_begin_with_a_constant_bias_are_known(per_head, bias):
    """Assert that Jamba's 0 and Bamba's 1 count as a start, where A and D do too."""
    start = start_of_heads("transformers") if per_head else initial()
    start["dt_bias"] = np.full_like(start["dt_bias"], bias)
    (one,) = found(per_head, **start)
    assert "exactly as before training" in one.text


def test_mamba3_has_no_A_and_biases_of_keys_instead():
    """Assert damage where these are 1 as well, a hint where D and dt_bias are alone,
    and nothing where D moved."""
    from lyapunov.exponents import StoredParameters, suspicions_of

    start = start_of_heads("mamba_ssm")
    dt, A = trained_heads()["dt"], -np.ones((HEADS, 1))
    stored = StoredParameters(dt_bias=start["dt_bias"], per_head=True)
    ask = lambda D, ones: suspicions_of(dt, A, stored._replace(D=D, ones=ones))
    ones = {"B_bias": np.ones((HEADS, 1, 4)), "C_bias": np.ones((HEADS, 1, 4))}
    (one,) = ask(start["D"], ones)
    assert one.parameters == ("dt_bias", "D", "B_bias", "C_bias")
    assert not one.hint
    moved = {name: 0.9 * array for name, array in ones.items()}
    (one,) = ask(start["D"], moved)
    assert one.hint
    assert ask(trained_heads()["D"], ones) == []


@pytest.mark.parametrize("per_head", [False, True])
def test_dt_without_a_bias_is_told_by_its_bulk_and_is_a_hint(per_head):
    """Assert a hint where single tokens leave a factor of three and 90 % do not, none
    where the bulk moves, and none where one channel remembers."""
    rng = np.random.default_rng(4)
    channels = HEADS if per_head else D_INNER
    bias = rng.uniform(-0.08, 0.08, channels)
    held = (trained_heads() if per_head else trained())["A_log"]
    fast = np.log(rng.uniform(0.62, 8, held.shape))
    dt = np.logaddexp(0, bias + rng.normal(0, 0.3, (1, 400, channels)))
    assert dt.max() > 3 * dt.min()
    (one,) = found(per_head, dt=dt, dt_bias=bias, A_log=fast)
    assert one.hint
    assert "90 % of the tokens" in one.text
    assert one.parameters == ("dt_bias",)
    moving = np.logaddexp(0, bias + rng.normal(0, 1.0, (1, 400, channels)))
    assert found(per_head, dt=moving, dt_bias=bias, A_log=fast) == []
    slow = fast.copy()
    slow[0] -= np.log(1e4)
    assert found(per_head, dt=dt, dt_bias=bias, A_log=slow) == []


def test_damage_comes_before_hints_and_names_the_suspects():
    """Assert the order, and that hints name parameters only where they are alone."""
    from lyapunov.exponents._suspicions import suspects

    downcast = trained()["A_log"].astype(ml_dtypes.bfloat16).astype(float)
    both = found(False, A_log=downcast, D=np.zeros(D_INNER))
    assert [one.hint for one in both] == [False, True]
    assert suspects(both) == ["D"]
    assert suspects(found(False, A_log=downcast)) == ["A_log"]
    assert suspects([]) == []


# ---- sublayers that add nothing


@pytest.mark.parametrize("name", ["out_proj", "o_proj", "down"])
def test_a_sublayer_that_adds_nothing_is_told(name):
    """Assert the parameter that is 0, none where none is, and silence otherwise."""
    from lyapunov.exponents._suspicions import adds_nothing

    rng = np.random.default_rng(5)
    shape = (3, 4, 16) if name == "down" else (4, 16)
    held = {"norm": np.ones(4), name: rng.normal(size=shape), "conv_bias": np.zeros(9)}
    output = rng.normal(size=(1, 5, 4))
    assert adds_nothing(output, held) == []
    (one,) = adds_nothing(0 * output, held | {name: np.zeros(shape)})
    assert one.text.endswith(f"adds nothing on these tokens: {name} is 0")
    assert (one.parameters, one.hint) == ((name,), False)
    (one,) = adds_nothing(0 * output, held | {"norm": np.zeros(4)})
    assert one.parameters == ("norm",)
    (one,) = adds_nothing(0 * output, held)
    assert one.parameters == ()
    pruned = held[name].copy()
    pruned[..., :4] = 0
    (one,) = adds_nothing(output, held | {name: pruned})
    assert one.hint
    assert f"{name} is 0 for 4 of 16 channels" in one.text
    pruned[:1] += 1  # one row of it reads them
    assert adds_nothing(output, held | {name: pruned}) == []
