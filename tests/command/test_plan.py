"""Assert that a plan is quick, honest about memory, and starts nothing."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.command._declare import AUDIT, CHECK, RANK, declared
from lyapunov.command._options import Options
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.models import Model
from lyapunov.questions import _plan, _plan_memory
from lyapunov.questions._effort import EFFORTS, Effort
from lyapunov.questions._plan import (
    COMPILING,
    FORWARDS,
    Plan,
    known_before,
    plan,
    programs_of,
)
from lyapunov.questions._plan_memory import available_memory
from lyapunov.questions._request import Request
from lyapunov.report import to_table
from lyapunov.report._words import duration, size
from lyapunov.results._check import Finding
from lyapunov.sublayers import Mamba1Sizes, Mamba2Sizes, NetworkConfig
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = Sizes(vocab=50, d_model=16, d_state=4, dt_rank=2, layers=3)
    weights = random_weights(np.random.default_rng(0), sizes)
    return save_transformers(tmp_path_factory.mktemp("m") / "m", weights, sizes)


@pytest.fixture(scope="module")
def model(folder):
    return lyapunov.load(str(folder))


BOTH = ("bf16", "fp16")
TIERS = Effort(floor=True, readouts=None, ball=True)


def made(model, batch=1, length=32, precisions=("bf16",), **more) -> Plan:
    ids = np.zeros((batch, length), np.int64)
    return plan(model, ids, [mamba_ssm_prefill(p) for p in precisions], **more)


def forwards(found: Plan) -> dict[str, float]:
    return {stage.name: stage.forwards for stage in found.stages}


def test_stages_are_those_that_would_run(model):
    others = {"changed weights", "measured", "growth"}  # a Mamba-1 has exponents
    assert set(forwards(made(model, effort=TIERS))) == set(FORWARDS) - others
    bare = made(model, effort=Effort(probes=0))
    assert set(forwards(bare)) == {"reference", "run", "T0 and T1"}
    assert set(forwards(made(model, precisions=()))) == {"reference"}
    assert "changed weights" in forwards(made(model, changes=2))
    assert set(COMPILING) == set(FORWARDS)


def test_a_plan_is_of_the_effort(model):
    """Assert that what is left out costs nothing, and that more of it costs more."""
    quick, standard, full = (
        forwards(made(model, effort=one)) for one in EFFORTS.values()
    )
    assert set(quick) == {"reference", "run", "measured", "T3"}
    assert set(standard) == {"reference", "run", "T0 and T1", "T3"}
    assert set(full) - set(standard) == {"floor", "T2", "T4", "growth"}
    assert full["T3"] == 2.5 * standard["T3"], "four probes beside one, and the weights"
    found = made(model, effort=EFFORTS["quick"])
    told = {one.effort: one for one in found.efforts}
    assert list(told) == list(EFFORTS)
    quick = told["quick"]
    assert (quick.seconds, quick.programs) == (found.seconds, found.programs)
    assert (quick.warm_seconds, quick.peak_bytes) == (
        found.warm_seconds,
        found.peak_bytes,
    )
    for one in told.values():
        assert 0 < one.warm_seconds < one.seconds
    for name in ("programs", "seconds", "warm_seconds", "peak_bytes"):
        costs = [getattr(one, name) for one in told.values()]
        assert costs == sorted(costs)
        assert costs[0] < costs[2]


def test_a_check_says_how_many_programs_are_planned(model):
    asked = Request.of(precisions="bf16")
    assert programs_of(model, asked) == made(model).programs
    both = Request.of(precisions=["bf16", "fp16"])
    assert programs_of(model, both) == programs_of(model, asked), "formats are data"
    more = Request.of(precisions="bf16", round_weights="bf16:A_log")
    assert programs_of(model, more) == made(model, changes=1).programs


def test_forwards_count_executions_layers_and_probes(model):
    every = [made(model, precisions=p, effort=TIERS) for p in (["bf16"], BOTH)]
    one, two = map(forwards, every)
    for name in ("run", "T0 and T1", "floor", "T3", "T4"):
        assert two[name] == 2 * one[name]
    assert two["T2"] == one["T2"], "one reverse pass serves all executions"
    some = forwards(made(model, layers=(1,)))
    assert some["T0 and T1"] == pytest.approx(one["T0 and T1"] / 3)
    assert forwards(made(model, effort=Effort(probes=3)))["T3"] == 2 * one["T3"]
    long = forwards(made(model, length=1024, effort=TIERS))
    assert long["floor"] == one["floor"] / 4, "the floor looks at 256 tokens"


def test_memory_grows_with_tokens_and_executions(model):
    peaks = [
        made(model, length=64).peak_bytes,
        made(model, length=4096).peak_bytes,
        made(model, batch=8, length=4096).peak_bytes,
        made(model, batch=8, length=4096, precisions=("bf16", "fp16")).peak_bytes,
    ]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 4


def test_what_does_not_fit_is_said(model):
    found = made(model)
    assert found.fits == (found.available_bytes is None or found.available_bytes > 4e9)
    short = dataclasses.replace(found, available_bytes=2**20)
    assert not short.fits
    assert "lower --length or --batch" in to_table(short)
    unknown = dataclasses.replace(found, available_bytes=None)
    assert unknown.fits
    assert "free" not in to_table(unknown)


def test_weights_are_counted_as_they_are_stored(model):
    """Assert the bytes of all tensors, which are fp32 here."""
    found = made(model)
    tensors = model.checkpoint.tensors.values()
    assert found.weight_bytes == sum(tensor.read().nbytes for tensor in tensors)
    assert "read a sublayer ahead" in to_table(found)


def test_devices_share_the_sequences_and_what_they_hold(model, monkeypatch):
    """Assert that of 4 GPUs each needs what one does for a quarter, in as many forwards
    of a quarter's time, and that the table says how many; not of one processor."""
    alone, whole = made(model, batch=1), made(model, batch=4)
    assert whole.devices == 1
    assert "devices" not in to_table(whole)
    card = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9e9, "bytes_in_use": 1})
    for module in (_plan, _plan_memory):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(_plan_memory, "devices", lambda: [card])
    monkeypatch.setattr(_plan, "spread_over", lambda batch: [card] * batch)
    shared = made(model, batch=4)
    assert shared.devices == 4
    stages = [[stage.bytes for stage in plan.stages] for plan in (shared, alone)]
    assert stages[0] == stages[1]
    assert shared.available_bytes == 9e9 - 1
    assert "4, 1 of the sequences each" in to_table(shared)


def test_free_memory_is_known_here():
    found = available_memory()
    if sys.platform.startswith("linux"):
        assert found is not None
        assert 2**20 < found < 2**50


def test_the_table_fits_and_has_every_stage(model):
    found = made(model, precisions=("bf16", "fp16"))
    for width, encoding in ((80, "utf-8"), (40, "ascii")):
        text = to_table(found, width=width, encoding=encoding)
        assert max(map(len, text.splitlines())) <= width
        for stage in found.stages:
            assert stage.name in text
        if encoding == "ascii":
            assert text.isascii()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.412, "0.41 s"), (42.0, "42 s"), (200.0, "3 min"), (9000.0, "2 h")],
)
def test_durations_are_round(seconds, text):
    assert duration(seconds) == text


def test_sizes_are_round():
    assert (size(310 * 2**20), size(3 * 2**29)) == ("310 MiB", "1.5 GiB")


# --- The command -----------------------------------------------------------------


def test_the_command_plans_and_checks_nothing(run, fake, monkeypatch, model):
    monkeypatch.setattr("lyapunov.command._session._open", lambda *_: model)
    result = run("m", "--tokens", "random", "--length", 16, "--plan")
    assert result.exit_code == 0, result.stderr
    assert "T0 and T1" in result.stdout
    assert re.search(r"about .+, at most about .+ of memory", result.stdout)
    document = json.loads(
        run("m", "--tokens", "random", "--length", 16, "--plan", "--json").stdout
    )
    found = document["plan"]
    assert (found["batch"], found["length"], found["n_layers"]) == (1, 16, 3)
    assert found["seconds"] > 0
    assert len(found["executions"]) == 2
    both = run("m", "n", "--tokens", "random", "--length", 16, "--plan", "--json")
    assert len(json.loads(both.stdout)["reports"]) == 2
    assert fake.calls == []


@pytest.mark.parametrize(
    "other", ["-o r.json", "--baseline b.json", "--audit emulated"]
)
def test_what_a_plan_does_not_do_is_refused(run, fake, other):
    result = run("m", "--plan", *other.split())
    assert result.exit_code == 2
    assert re.search("is not for --plan|--plan is not for --audit", result.stderr)
    assert fake.opened == []


def test_every_argument_of_the_library_is_one():
    """Assert that what an option hands on is there."""
    for question, function in (
        (CHECK, lyapunov.check),
        (AUDIT, lyapunov.audit),
        (RANK, lyapunov.rank_weights),
    ):
        known = inspect.signature(function).parameters
        for said in declared(Options).values():
            if question in said.of and said.argument:
                assert said.argument in known


# --- Against the check -----------------------------------------------------------

PROGRAM = """
import json, sys, time
import numpy as np
import lyapunov
from lyapunov.questions._plan import plan
from lyapunov.implementations import mamba_ssm_prefill

model = lyapunov.load(sys.argv[1])
ids = np.random.default_rng(0).integers(0, 50, (1, int(sys.argv[2])))
found = plan(model, ids, [mamba_ssm_prefill("bf16")])
began = time.perf_counter()
lyapunov.check(model, ids, precisions=["bf16"])
taken = time.perf_counter() - began
mark = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
print(json.dumps([found.seconds, taken, found.peak_bytes, int(mark.split()[1]) * 1024]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("length", [64, 512])
def test_a_check_takes_about_what_was_planned(folder, length):
    """Assert time within a factor of 4 either way, and memory never above."""
    if not sys.platform.startswith("linux"):
        pytest.skip("VmHWM is Linux's")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(length)],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    planned, taken, peak, mark = json.loads(done.stdout.splitlines()[-1])
    assert mark <= peak <= 4 * mark, (peak, mark)
    assert taken / 4 <= planned <= 4 * taken, (planned, taken)


# --- What is known before anything runs -------------------------------------------


def planned_findings(sizes, architecture="granitemoehybrid", length=100, **options):
    config = NetworkConfig(50, 50, 64, (sizes,))
    layout = SimpleNamespace(
        architecture=architecture, config=config, n_params=1, dtype="fp32", n_blocks=1
    )
    ids = np.zeros((1, length), np.int64)
    return known_before(Model(cast(Any, layout)), ids, Request.of(**options))


# A Granite-4 hybrid's mixer with 128 heads of 64 and 128 states.
LONG = Mamba2Sizes(64, 8192, 128, 128, 1, 4, 256, 1e-5, 1e-5)


def test_a_length_beyond_the_kernels_is_told_in_the_plan():
    """Assert it from the configuration alone: the last token whose row of in_proj's
    16,768 columns begins below 2^31 is number 128,071."""
    reach = (2**31 - 1) // (2 * 8192 + 2 * 128 + 128) + 1
    assert reach == 128_071
    assert planned_findings(LONG, length=reach) == []
    (found,) = planned_findings(LONG, length=200_000)
    assert (found.code, found.value, found.limit) == ("LYA013", 200_000.0, reach)
    assert planned_findings(LONG, length=200_000, ignore=("LYA013",)) == []
    assert planned_findings(LONG, length=200_000, select=("LYA011",)) == []


def test_the_other_findings_that_need_no_run_are_told_too():
    """Assert limits of dt, the fused norms of Falcon Mamba, and adapters' targets."""
    limited = dataclasses.replace(LONG, dt_limit=(0.1, 1.0))
    assert [f.code for f in planned_findings(limited)] == ["LYA011"]
    mixer = Mamba1Sizes(64, 128, 4, 4, 4, 1e-5)
    assert [f.code for f in planned_findings(mixer, "falcon_mamba")] == ["LYA012"]


def test_an_adapters_targets_are_told_in_the_plan(folder, tmp_path):
    from safetensors.numpy import save_file

    home = tmp_path / "adapter"
    home.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}
    settings["target_modules"] = ["dt_proj"]
    (home / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.backbone.layers.0.mixer.dt_proj"
    made = {
        f"{name}.lora_A.weight": np.zeros((2, 2), np.float32),
        f"{name}.lora_B.weight": np.zeros((32, 2), np.float32),
    }
    save_file(made, home / "adapter_model.safetensors")
    model = lyapunov.load(str(folder))
    ids = np.zeros((1, 8), np.int64)
    found = known_before(model, ids, Request(against=str(home)))
    assert {"LYA014", "LYA019"} <= {finding.code for finding in found}
    # and what the check would refuse, the plan refuses
    asked = Request(round_weights=("bf16:q_proj",))
    with pytest.raises(UsageError, match="no weights of the group 'q_proj'"):
        known_before(model, ids, asked)


def test_the_plan_shows_and_writes_them(model):
    finding = Finding("LYA013", "warning", None, "1 x 200,000 tokens: end at 9", 2e5, 9)
    found = made(model, findings=[finding])
    text = " ".join(to_table(found).split())
    assert "warning LYA013 the network: 1 x 200,000 tokens: end at 9" in text
    (written,) = json.loads(json.dumps(found.to_dict()))["plan"]["findings"]
    assert (written["code"], written["limit"]) == ("LYA013", 9)
    assert "LYA" not in to_table(made(model))
