"""A new implementation is one class and its registration, and is known everywhere.

The pretend one runs the emulator's flow; cut into chunks it forgets all of the calls
before, which is a bug, and a known defect of its own.
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import lyapunov
from lyapunov._errors import LyapunovError
from lyapunov.findings._known_defects import with_known
from lyapunov.findings._semantics import semantic_findings
from lyapunov.implementations import (
    IMPLEMENTATIONS,
    AbstractImplementation,
    Defect,
    Emulated,
    File,
    Flag,
    PassedOver,
    Reach,
    RefusedError,
    executions_for,
    mamba_ssm_prefill,
    write_dump,
)
from lyapunov.implementations._flags import serving_flags
from lyapunov.implementations._trace import HeadRecord
from lyapunov.questions._audit_ways import ways_of_source
from lyapunov.questions._environment import environment
from lyapunov.report import to_table
from lyapunov.report.markdown import to_markdown
from lyapunov.results._audit import BUG, FirstViolation, VariantAudit
from oracles.checkpoints.hard import SIZES

from ..executions.conftest import checkpoint


__all__ = ["checkpoint"]

CUT = 6
TOKENS = np.random.default_rng(3).integers(0, SIZES.vocab, 2 * CUT)


class Pretended:
    """Runs whole texts, chunks that forget, and refuses a batch."""

    def __init__(self, execution):
        self.execution = execution

    def trace(self, model, tokens, variant=None, segments=()):
        if variant is None:
            yield from Emulated(self.execution).trace(model, tokens)
            return
        if variant.kind == "batched":
            raise RefusedError("pretend refuses it: one text at a time")
        calls = [
            Emulated(one.execution).trace(model, tokens[:, one.start : one.stop])
            for one in segments
        ]
        for parts in zip(*calls, strict=True):
            if isinstance(parts[0], HeadRecord):
                residual, hidden = (
                    jnp.concatenate([p[i] for p in parts], 1) for i in (0, 1)
                )
                yield HeadRecord(residual, hidden, logits_of(parts))
                continue
            joined = {
                name: jnp.concatenate([getattr(p, name) for p in parts], 1)
                for name in ("residual", "hidden", "output")
            }
            stored = {
                site: jnp.concatenate([p.stored[site] for p in parts], 1)
                for site in parts[0].stored
            }
            yield parts[0]._replace(**joined, stored=stored)


def logits_of(parts):
    return lambda *rows: jnp.concatenate([p.logits(*rows) for p in parts], 1)


class PretendImplementation(AbstractImplementation):
    """Says of itself whatever an implementation can say."""

    name = "pretend"
    measures = True
    needs_gpu = True
    extra = "torch"
    libraries: ClassVar[Mapping[str, str]] = {"pretend": "click"}
    runs_without_head = True
    followed_by_dumps = True
    reproducible = True
    ways = ("whole", "chunks", "batched")
    refused_ways: ClassVar[Mapping[str, str]] = {"packed": "pretend packs nothing"}
    defects = (
        Defect(
            ("mamba1",),
            (0, 0),
            (99, 0),
            ("chunks",),
            "conv",
            "a call forgets the calls before",
            "https://github.com/pretend/pretend/issues/1",
        ),
    )
    ignores_dt_limits = True
    trains_otherwise: ClassVar[Mapping[str, str]] = {"mamba1": "pretend does not train"}
    passed_over: ClassVar[Mapping[str, PassedOver]] = {
        "mamba1": PassedOver(("in_proj",))
    }

    def state_precisions(self, mode):
        return ("fp32", "bf16")

    def promised(self, config, precision, architecture, mode, state_precision):
        own = IMPLEMENTATIONS["emulated"].execution(
            config,
            precision,
            architecture=architecture,
            mode=mode,
            state_precision=state_precision,
        )
        name = f"pretend {mode}, {precision}"
        return dataclasses.replace(own, name=name, implementation=self.name)

    def runner(self, execution):
        return Pretended(execution)

    def reads(self, config):
        return True

    def flags(self, state, weights):
        asked = weights or f"state {state}"
        return [Flag(self.name, f"--pretend {asked}", "it was said so")]

    def reach(self, sizes, batch):
        yield Reach(5, "short_kernel", self.name)


@pytest.fixture
def pretend(monkeypatch):
    """Registered: one entry, and nothing else anywhere."""
    made = PretendImplementation()
    monkeypatch.setitem(IMPLEMENTATIONS, made.name, made)
    return made


@pytest.fixture(scope="module")
def folder(checkpoint):
    return str(checkpoint("plain")[0])


def test_what_it_says_of_itself_is_asked_for(pretend, folder):
    """Assert executions, findings, flags and versions, without a run."""
    model = lyapunov.load(folder)
    (own,) = executions_for(
        model.config, ["bf16"], measure="pretend", state_precision="bf16"
    )
    assert (own.name, own.implementation) == ("pretend prefill, bf16", "pretend")
    found = semantic_findings(model, 12, adapter_targets=["in_proj"])
    messages = [(f.code, f.message) for f in found]
    assert ("LYA012", "pretend does not train") in messages
    ends = next(text for code, text in messages if code == "LYA013")
    assert "pretend's short_kernel end at 5" in ends
    passed = next(text for code, text in messages if code == "LYA014")
    assert passed.startswith("pretend reads these weights past the adapter")
    for state, weights, flag in (
        ("bf16", None, "--pretend state bf16"),
        (None, "fp16", "--pretend fp16"),
    ):
        told = serving_flags([], state, weights)
        assert {"stack": "pretend", "flag": flag, "why": "it was said so"} in told
    assert environment()["pretend"] == metadata.version("click")


@pytest.mark.slow
def test_a_check_measures_with_it(pretend, folder):
    report = lyapunov.check(
        folder,
        TOKENS,
        measure="pretend",
        precisions="bf16",
        layers=[0],
        floor=False,
        probes=0,
        ball=False,
    )
    (run,) = report.precisions
    assert (run.measured_by, run.execution) == ("pretend", "pretend prefill, bf16")
    assert report.summary.verdict == "held"
    assert all(layer.violations == 0 for layer in run.layers)
    assert any(
        line.startswith("pretend prefill, bf16: ") for line in report.assumptions
    )
    # its version, its flags, and what is known of it
    assert "pretend" in report.environment
    assert "pretend" in {flag["stack"] for flag in report.summary.flags}
    assert {"LYA012", "LYA013"} <= {finding.code for finding in report.findings}
    # every form of the report
    assert "pretend" in to_table(report)
    assert "pretend prefill, bf16" in to_markdown(report)
    assert json.loads(json.dumps(report.to_dict()))["settings"]["measure"] == "pretend"


ASKED = ("whole", f"chunks:{CUT}", "batched:1", "packed:5", "steps")


def test_an_audit_has_its_ways_and_its_defects(pretend, folder):
    """Assert it without a run: which there are, why not the others, what is known."""
    ids, model = TOKENS[None], lyapunov.load(folder)
    ways, skipped = ways_of_source(model, "pretend", ids, ["bf16"], ASKED, None)
    assert [str(way.variant) for way in ways] == list(ASKED[:3])
    for way in ways:
        for one in way.segments:
            assert one.execution.implementation == "pretend"
    assert len(ways[1].segments) == 2
    reasons = {one.variant: one.reason for one in skipped}
    assert reasons["packed:5"] == "pretend packs nothing"
    assert "pretend does not say" in reasons["steps"]
    first = FirstViolation(0, "conv", 0, CUT, 3, 0.15, 0.0009)
    bug = VariantAudit(ASKED[1], "bf16", BUG, violations=1, first_violation=first)
    (told,) = with_known([bug], pretend, "mamba1", len(TOKENS), model.config.sublayers)
    assert told.known is not None
    assert told.known.implementation == "pretend"


@pytest.mark.slow
def test_an_audit_runs_its_ways_and_knows_its_defects(pretend, folder):
    asked = ASKED
    report: Any = lyapunov.audit(folder, "pretend", TOKENS, variants=asked, n_probes=1)
    whole, chunks, batched, packed, steps = sorted(
        report.variants, key=lambda one: asked.index(one.variant)
    )
    assert whole.verdict == "consistent with rounding"
    assert chunks.verdict == "bug"
    first = chunks.first_violation
    assert (first.layer, first.tensor, first.token) == (0, "conv", CUT)
    assert chunks.known.what == "a call forgets the calls before"
    assert chunks.known.implementation == report.source == "pretend"
    assert "one text at a time" in batched.reason
    assert packed.reason == "pretend packs nothing"
    assert "pretend does not say" in steps.reason
    assert "known defect of pretend" in to_markdown(report)


def test_the_command_offers_it(pretend, folder, tmp_path):
    """Assert a plan through the command, and what its options say and refuse."""
    from lyapunov.command._cli import main

    def run(*given):
        return CliRunner().invoke(main, [folder, *given])

    planned = run("--measure", "pretend", "--plan", "--length", "12", "--json",
                  "--precision", "bf16")  # fmt: skip
    assert planned.exit_code == 0, planned.output
    document = json.loads(planned.stdout)["plan"]
    assert document["executions"] == ["pretend prefill, bf16"]
    assert "LYA013" in {finding["code"] for finding in document["findings"]}
    kept = ("--state-precision", "fp8_e5m2", "--length", "12")
    refused = run("--measure", "pretend", *kept)
    assert refused.exit_code == 2
    assert "in prefill pretend keeps the state in fp32 or bf16" in refused.stderr
    wrong = run("--measure", "vlm")
    assert wrong.exit_code == 2
    assert "pretend" in wrong.stderr
    wrong = run("--audit", "vlm", "--length", "12")
    assert wrong.exit_code == 2
    assert "pretend" in wrong.stderr
    target = str(tmp_path / "no.py")
    wrong = run("--audit", "emulated", "--reproduce", target)
    assert "--audit transformers or pretend" in wrong.stderr


def test_a_dump_may_follow_its_flow(pretend, folder, tmp_path):
    model, path = lyapunov.load(folder), tmp_path / "dump.npz"
    records = lyapunov.trace(model, TOKENS, runner=Emulated(mamba_ssm_prefill("bf16")))
    write_dump(path, records, TOKENS, implementation="pretend", precision="bf16")
    assert File(path).implementation == "pretend"
    assert File(path).needs_state_precision
    IMPLEMENTATIONS.pop("pretend")
    with pytest.raises(LyapunovError, match="no flow is known"):
        File(path)
    nothing = iter(())
    with pytest.raises(LyapunovError, match="no flow is known") as caught:
        write_dump(path, nothing, TOKENS, implementation="pretend", precision="bf16")
    assert "mamba_ssm" in str(caught.value.hint)


def test_unregistered_it_is_unknown_again(folder):
    """Assert that no test left it behind."""
    assert "pretend" not in IMPLEMENTATIONS
    for ask in (
        lambda: lyapunov.check(folder, TOKENS, measure="pretend"),
        lambda: lyapunov.audit(folder, "pretend", TOKENS),
    ):
        with pytest.raises(LyapunovError) as caught:
            ask()
        assert "emulated" in str(caught.value.hint)
