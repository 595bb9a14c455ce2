"""The measured constants: the comparison, the file, and what the executions read."""

import dataclasses
import json
import math
import shutil

import mpmath
import numpy as np
import pytest


torch = pytest.importorskip("torch")

import analysis._kernel_products as sums  # noqa: E402
import analysis.kernel_constants as study  # noqa: E402
from analysis._kernel_functions import (  # noqa: E402
    FIELDS,
    FUNCTIONS,
    exact,
    figures,
    terms,
)
from lyapunov._errors import UsageError  # noqa: E402
from lyapunov.formats import FORMATS  # noqa: E402
from lyapunov.implementations import (  # noqa: E402
    mamba_ssm_decode,
    mamba_ssm_prefill,
    transformers_prefill,
)
from lyapunov.implementations._constants import (  # noqa: E402
    MARGIN,
    documented_sets,
    read_measured,
    smallest_constants,
    with_measured,
    write_measured,
)
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, STEP  # noqa: E402
from lyapunov.implementations.transformers.mamba1 import TORCH  # noqa: E402


ORACLES = {
    "exp": mpmath.exp,
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "tanh": mpmath.tanh,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
}
BY_NAME = {function.name: function for function in FUNCTIONS}


def arguments(positive: bool) -> np.ndarray:
    """Both signs of every binade, four numbers in each, bits at random."""
    random = np.random.default_rng(0)
    bits = np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23)
    bits = bits | random.integers(0, 2**23, (512, 4), dtype=np.uint32)
    x = bits.ravel().view(np.float32)
    x = x[np.isfinite(x)]
    return x[x > 0] if positive else x


def in_fp32(reference: str, x: np.ndarray) -> np.ndarray:
    """The function in NumPy's fp32, each operation rounded, flushed as kernels do."""
    one = np.float32(1)
    with np.errstate(all="ignore"):
        y = {
            "exp": lambda: np.exp(x),
            "softplus": lambda: np.where(x <= 20, np.log1p(np.exp(x)), x),
            "silu": lambda: x / (one + np.exp(-x)),
            "sigmoid": lambda: one / (one + np.exp(-x)),
            "rsqrt": lambda: one / np.sqrt(x),
            "tanh": lambda: np.tanh(x),
        }[reference]()
    return np.where(np.abs(y) < 2.0**-126, np.float32(0), y).astype(np.float32)


@pytest.mark.parametrize("reference", FIELDS)
def test_reference_is_within_its_stated_error(reference):
    x = arguments(reference == "rsqrt")
    if reference in ("sin", "cos"):
        x = x[np.abs(x) <= 1e4]
    ours = exact(reference, torch.from_numpy(x).double()).numpy()
    with mpmath.workprec(400):
        for value, argument in zip(ours, x, strict=True):
            if abs(argument) > 1e6:
                continue  # mpmath needs more digits than the exponent range holds
            true = ORACLES[reference](mpmath.mpf(float(argument)))
            if mpmath.mpf(2) ** -1000 < abs(true) < mpmath.mpf(2) ** 1000:
                # OWN with half of it to spare
                assert abs(mpmath.mpf(float(value)) - true) <= abs(true) * 2.0**-50


SAMPLED = [f for f in FUNCTIONS if f.reference in ("exp", "softplus", "silu")]
SAMPLED += [f for f in FUNCTIONS if f.reference in ("sigmoid", "rsqrt", "tanh")]


@pytest.mark.parametrize("function", SAMPLED, ids=lambda f: f.name)
def test_fp32_functions_are_within_the_documented_constants(function):
    x = arguments(function.reference == "rsqrt")
    computed = in_fp32(function.reference, x)
    found = figures(function, torch.from_numpy(x), torch.from_numpy(computed))
    assert 0.0 < found["ratio"].max() <= 1.0
    # an error of four ulp of an fp32 number is a relative 2^-22 at least
    assert found["ulp"].max() < 4.0


@pytest.mark.parametrize(
    "name", ["scan exp2f(x log2 e)", "tl.exp", "1/tl.sqrt", "scan softplus"]
)
def test_a_function_off_by_more_than_its_constant_is_caught(name):
    function = BY_NAME[name]
    x = np.linspace(0.01, 3.0, 2000).astype(np.float32)
    computed = in_fp32(function.reference, x)
    found = figures(function, torch.from_numpy(x), torch.from_numpy(computed))
    # the documented constants allow 2 to 4 ulp, and the argument's: 3 |x|
    for _ in range(20):
        computed = np.nextafter(computed, np.float32(np.inf))
    wrong = figures(function, torch.from_numpy(x), torch.from_numpy(computed))
    assert found["ratio"].max() <= 1.0 < wrong["ratio"].max()


def test_four_ulp_off_fails_where_two_are_declared():
    function = BY_NAME["1/tl.sqrt"]
    x = np.linspace(1.0, 4.0, 2000).astype(np.float32)
    computed = in_fp32("rsqrt", x)
    for _ in range(4):
        computed = np.nextafter(computed, np.float32(np.inf))
    wrong = figures(function, torch.from_numpy(x), torch.from_numpy(computed))
    assert wrong["ratio"].max() > 1.0


def test_nan_and_overflow_are_violations():
    function = BY_NAME["scan and conv silu"]
    for bad in (math.nan, math.inf):
        computed = torch.tensor([bad, 1.0, 1.0, 1.0])
        row = study.measure(
            function, lambda first, x, y=computed: y, [0x3F800000], "cpu", 4
        )
        assert row["violations"] > 0
        assert row["figures"]["ratio"]["largest"] == "inf"


def test_an_exponential_above_one_or_not_flushed_is_counted():
    function = BY_NAME["tl.exp"]
    low = np.array([-89.0], np.float32).view(np.uint32)[0]
    grown = study.measure(
        function, lambda first, x: torch.exp(x) + 2.0**-24, [0x80000000], "cpu", 4
    )
    assert grown["broken_claims"] == 0  # rounds back to 1
    above = lambda first, x: torch.full_like(x, 1.0 + 2.0**-23)
    assert study.measure(function, above, [0x80000000], "cpu", 4)["broken_claims"] == 4
    late = lambda first, x: torch.full_like(x, 2.0**-126)
    assert study.measure(function, late, [int(low)], "cpu", 4)["broken_claims"] == 4


def test_needed_constant_is_the_smallest_that_holds():
    function = BY_NAME["expf, fast math"]
    x = torch.tensor(np.float32(np.linspace(-20, 20, 4001)))
    computed = torch.exp(x) * np.float32(1 + 2.0**-21)
    found = figures(function, x, computed)
    own, parts = function.numbers(), terms("exp", x.double(), torch.exp(x.double()))
    error = (computed.double() - torch.exp(x.double())).abs()
    need = found["need exp_relative"].max()
    rest = own["exp_argument"] * parts["exp_argument"] + 2.0**-126
    slack = need * parts["exp_relative"] + rest - error
    # 2^-49 is added to the error on purpose
    assert slack.min() >= 0.0
    assert (slack / parts["exp_relative"]).min() <= 2.0**-48
    scale = found["scale"].max()
    assert abs(scale - found["ratio"].max()) < 1e-6


def test_floats_run_through_all_bits():
    for first in (0, 0x3F800000, 0x7F7FFFF8, 0x80000000, 0xFFFFFFF0):
        found = study.floats(first, 16, "cpu").numpy().view(np.uint32)
        assert found.tolist() == [(first + i) % 2**32 for i in range(16)]


def test_measure_names_the_worst_argument():
    function = BY_NAME["torch exp"]
    spoiled = 0x3F800123

    def compute(first, x):
        y = torch.exp(x)
        if first <= spoiled < first + x.numel():
            y[spoiled - first] *= 1.001
        return y

    chunks = [0x3F000000, 0x3F800000, 0xBF800000]
    row = study.measure(function, compute, chunks, "cpu", 2**12)
    assert row["violations"] == 1
    assert row["figures"]["ratio"]["bits"] == spoiled
    assert row["figures"]["ratio"]["at"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", sums.KINDS)
def test_needed_unit_of_a_sum_in_fp32(kind):
    a, b = (sums.held_in(x, "bf16") for x in sums.operands(kind, 256, 8, 0))
    total = np.zeros((8, 8), np.float32)
    for i in range(256):
        total += np.outer(a.float()[:, i], b.float()[i])
    unit = sums.needed_unit(torch.from_numpy(total), a, b, 256)
    # at most one rounding to nearest for each of 256 additions
    assert unit <= 2.0**-24
    coarse = torch.from_numpy(total).bfloat16().float()
    assert sums.needed_unit(coarse, a, b, 1) > 2.0**-23 or kind == "cancelling"


# ---- the file


def document(scale=0.5, **changes) -> dict:
    """Results of a GPU that there is not."""
    row = {"violations": 0, "broken_claims": 0}
    functions = {
        f.name: row
        | {
            "reference": f.reference,
            "sets": list(f.sets),
            "figures": {
                k: {"largest": scale, "at": 1.0} for k in ("scale", "ratio", "ulp")
            },
        }
        | changes.get(f.name, {})
        for f in FUNCTIONS
    }
    names = ("gpu", "driver", "cuda", "torch", "triton", "mamba_ssm", "command")
    about = dict.fromkeys(names, "none")
    return {"environment": about, "functions": functions, "products": []}


def test_constants_are_scaled_with_a_margin_and_never_above():
    found = smallest_constants(document(0.5), FIELDS)
    value = found["KERNEL"]["exp_relative"]
    assert value >= KERNEL.exp_relative * 0.5 * MARGIN
    assert value == pytest.approx(KERNEL.exp_relative * 0.5 * MARGIN, rel=1e-15)
    nearly = smallest_constants(document(0.999), FIELDS)
    assert nearly["KERNEL"]["exp_relative"] == KERNEL.exp_relative


def test_the_worst_implementation_of_a_set_counts():
    one = {"figures": {"scale": {"largest": 0.9}}}
    found = smallest_constants(document(0.1, **{"tl.exp": one}), FIELDS)
    assert found["STEP"]["exp_argument"] > 0.9 * STEP.exp_argument
    assert found["KERNEL"]["exp_argument"] < 0.2 * KERNEL.exp_argument


@pytest.mark.parametrize(
    "spoiled",
    [
        {"violations": 1},
        {"broken_claims": 1},
        {"figures": {"scale": {"largest": 1.5}}},
        {"figures": {"scale": {"largest": "inf"}}},
        {"error": "no time left"},
    ],
)
def test_alarm_where_documented_constants_do_not_hold(spoiled, tmp_path):
    path = tmp_path / "measured.json"
    with pytest.raises(UsageError):
        write_measured(document(0.5, **{"tl.exp": spoiled}), FIELDS, path)
    assert not path.exists()


def test_executions_take_measured_constants_and_say_so(tmp_path):
    path = tmp_path / "measured.json"
    for make, documented in ((mamba_ssm_prefill, KERNEL), (mamba_ssm_decode, STEP)):
        plain = make("bf16")
        path.unlink(missing_ok=True)
        without = with_measured(plain, path)
        there = documented.on_tensor_cores(FORMATS["bf16"])
        assert without.constants == plain.constants == there
        assert "documented" in without.assumptions[-1]
        write_measured(document(0.5), FIELDS, path)
        taken = with_measured(plain, path)
        assert taken.constants.exp_relative < documented.exp_relative
        assert taken.constants.accumulator_unit == documented.accumulator_unit
        assert taken.constants.underflow == documented.underflow
        assert "measured" in taken.assumptions[-1]


def test_what_was_not_measured_keeps_documented_constants(tmp_path):
    path = tmp_path / "measured.json"
    write_measured(document(0.5), FIELDS, path)
    torch_alone = transformers_prefill("bf16")
    assert with_measured(torch_alone, path).constants == TORCH
    plain = mamba_ssm_prefill("bf16")
    of_kind = lambda kind: dataclasses.replace(plain, kind=kind)
    kinds = {"mlp": of_kind("mlp"), "mamba2": of_kind("mamba2")}
    hybrid = dataclasses.replace(plain, kinds=kinds)
    taken = with_measured(hybrid, path)
    assert taken.of("mlp").constants == plain.constants
    assert taken.of("mamba2").constants == taken.constants != plain.constants
    gated = dataclasses.replace(KERNEL, silu_size=2.0**-12)
    other = dataclasses.replace(plain, constants=gated)
    assert with_measured(other, path).constants == gated


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"KERNEL"', '"KERNELS"'),
        lambda text: text.replace('"exp_relative": ', '"exp_relative": 1'),
        lambda text: text.replace('"exp_relative": ', '"exp_relative": -'),
        lambda text: text.replace('"exp_relative": ', '"exp_relativ": '),
        lambda text: text.replace('"environment"', '"about"'),
    ],
)
def test_a_damaged_file_is_refused(spoil, tmp_path):
    path = tmp_path / "measured.json"
    write_measured(document(), FIELDS, path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UsageError):
        read_measured(path)


def test_the_file_in_the_package_is_sound():
    content = read_measured()
    if content is None:
        pytest.skip("no GPU has been measured yet")
    assert set(content["sets"]) == set(documented_sets())


def test_the_table_shows_failures(tmp_path):
    results = document(0.5, **{"tl.exp": {"error": "no time left"}})
    study.write(results, tmp_path / "kernel_constants.json")
    assert "not run: no time left" in (tmp_path / "kernel_constants.md").read_text()
    read = json.loads((tmp_path / "kernel_constants.json").read_text())
    assert read["functions"].keys() == {f.name for f in FUNCTIONS}
    assert math.isclose(read["functions"]["expf, fast math"]["violations"], 0)


@pytest.mark.skipif(
    not (shutil.which("nvcc") and torch.cuda.is_available()), reason="needs a GPU, nvcc"
)
def test_kernels_on_the_gpu(tmp_path):
    library = study.build(tmp_path, torch.cuda.get_device_capability())
    for function in FUNCTIONS:
        if function.program == "cuda":
            compute = study.computer(function, library)
            row = study.measure(function, compute, [0x3F800000], "cuda", 2**20)
            assert row["violations"] == 0
