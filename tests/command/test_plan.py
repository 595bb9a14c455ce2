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
from lyapunov.command._declare import AUDIT, CHECK, DUMP, RANK, declared, name_of
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
    # each asks something itself
    others = {"source", "plan_alone", "reproduce", "way", "show", "rank_weights"}
    for name in found - others if question != CHECK else ():
        value = [] if options[name].click.get("is_flag") else [GIVEN.get(name, "x")]
        shown = name_of(name, options[name])
        result = run("m", *ASKED[question].split(), shown, *value)
        assert result.exit_code == 2
        assert f"{shown} is not for" in result.stderr
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
