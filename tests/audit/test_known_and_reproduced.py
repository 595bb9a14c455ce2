"""Assert that a known defect is named where it is met, and shown without this library.

The scripts are run on a small network of transformers, in every way: a way that is
right in fp32 has to agree, and one that is wrong has to differ from its first token on.
"""

import ast
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lyapunov._errors import OutputError, UsageError
from lyapunov.command._options import Options
from lyapunov.command._scripts import place_of, write_scripts
from lyapunov.findings._known_defects import known_defect, with_known
from lyapunov.findings._verdict import Verdict
from lyapunov.implementations import IMPLEMENTATIONS, implementation_named
from lyapunov.implementations._implementation import installed
from lyapunov.implementations._ways import KINDS, parse_variant
from lyapunov.questions._audit_verdict import audit_findings, audit_summary
from lyapunov.report import to_markdown, to_table
from lyapunov.report._reproduce import _HOW, bugs, script
from lyapunov.results._audit import (
    BUG,
    CONSISTENT,
    AuditReport,
    FirstViolation,
    VariantAudit,
)
from lyapunov.results._check import CheckpointFacts, TokensFacts


SEQ = 40
CHUNKS, PADDED = "chunks:7", "padded_right:3,20"
SEEN = (5, 24, 0)


def violation(token, tensor):
    return FirstViolation(0, tensor, 0, token, 3, 0.15, 0.0009)


PADDED_LEFT = "padded_left:3,20"


PLAIN, BIASED = (SimpleNamespace(proj_bias=bias) for bias in (False, True))


def asked(
    way, first, version=SEEN, family="mamba1", implementation="transformers", of=PLAIN
):
    one = implementation_named(implementation)
    return known_defect(one, version, family, parse_variant(way), SEQ, first, [of])


@pytest.mark.parametrize(
    ("way", "first", "source"),
    [
        (CHUNKS, violation(7, "gated"), "46032"),
        ("chunks:12,rest", violation(12, "gated"), "46032"),
        (PADDED, violation(20, "conv"), "48256"),
    ],
)
def test_a_known_defect_is_named_with_its_source(way, first, source):
    found = asked(way, first)
    assert found is not None
    assert source in found.source
    assert found.until == "5.24"


@pytest.mark.parametrize(
    ("family", "way", "first"),
    [
        ("jamba", CHUNKS, violation(7, "gated")),
        ("falcon_mamba", PADDED, violation(20, "conv")),
        ("nemotron_h", PADDED, violation(20, "gated")),
        ("qwen3_next", PADDED, violation(20, "scan_output")),
        ("kimi_linear", PADDED, violation(20, "scan_output")),
        ("lfm2", PADDED, violation(20, "gated")),
        ("zamba", PADDED_LEFT, violation(0, "gated")),
        ("mamba1", PADDED_LEFT, violation(0, "conv")),
    ],
)
def test_other_families_have_it_too(family, way, first):
    """Assert its name in the version that was run, and silence on earlier ones."""
    assert asked(way, first, family=family, of=BIASED) is not None
    assert asked(way, first, family=family, of=BIASED, version=(5, 14)) is None
    # a mask that is ignored looks the same where in_proj has no bias
    without = asked(way, first, family=family)
    assert (without is None) == (way == PADDED_LEFT)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": (5, 25)},
        {"version": (4, 50)},
        {"version": None},
        {"family": "mamba2"},
        {"family": "llama"},
        {"implementation": "mamba_ssm"},
        {"way": "batched:1"},
        {"way": "padded_left:3,20"},
        {"way": "steps"},
        {"first": violation(8, "gated")},
        {"first": violation(7, "conv")},
        {"first": violation(0, "gated")},
    ],
)
def test_of_anything_else_nothing_is_said(changes):
    """Assert silence on versions, families, ways, places and tensors not looked at."""
    usual = {"way": CHUNKS, "first": violation(7, "gated")}
    assert asked(**usual) is not None
    assert asked(**{**usual, **changes}) is None


def test_the_table_is_of_ways_and_versions_that_there_are():
    defects = [d for one in IMPLEMENTATIONS.values() for d in one.defects]
    assert len(defects) >= 2
    for defect in defects:
        assert set(defect.ways) <= set(KINDS)
        assert defect.since <= defect.until
        assert "https://github.com/" in defect.source
    assert installed("no-such-package-here") is None


# --- In the report ---------------------------------------------------------------


def report_of(*variants) -> AuditReport:
    found = audit_findings(list(variants))
    return AuditReport(
        {"name": "lyapunov-check", "version": "0"},
        {},
        {},
        [],
        CheckpointFacts("m", "mamba1", 2, 9, "fp32", []),
        TokensFacts("random", 1, SEQ, "ab"),
        "transformers",
        list(variants),
        found,
        audit_summary(list(variants), found, Verdict(), 1.0),
    )


def bug(way, token, tensor, **more):
    first = violation(token, tensor)
    return VariantAudit(
        way, "bf16", BUG, violations=1, ratio=2.0, z=9.0, first_violation=first, **more
    )


def test_every_form_says_what_is_known(monkeypatch):
    transformers = implementation_named("transformers")
    monkeypatch.setattr(transformers, "version", lambda: SEEN)
    right = VariantAudit("whole", "bf16", CONSISTENT, ratio=0.4, z=1.0)
    met = with_known(
        [right, bug(CHUNKS, 7, "gated"), bug("batched:1", 3, "conv")],
        transformers,
        "mamba1",
        SEQ,
        [PLAIN],
    )
    assert [one.known is not None for one in met] == [False, True, False]
    report = report_of(*met)
    assert report.summary.recommendation.endswith(f"a known defect: {CHUNKS}")
    table = " ".join(to_table(report, width=100).split())
    markdown = " ".join(to_markdown(report).replace("\\", "").split())
    for form in (table, markdown):
        assert (
            f"{CHUNKS}: a known defect of transformers (seen in 5.17 to 5.24)" in form
        )
        assert "batched:1: a known defect" not in form
    written = json.loads(json.dumps(report.to_dict()))["variants"][1]["known"]
    assert (written["since"], written["until"]) == ("5.17", "5.24")
    # what nobody knows of is shown first
    assert bugs(report) == ["batched:1", CHUNKS]


# --- The script ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2
    )
    network = MambaForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    home = tmp_path_factory.mktemp("reproduced") / "m"
    network.save_pretrained(home)
    return home


TOKENS = np.random.default_rng(0).integers(0, 50, SEQ)


def written(way, folder):
    report = cast(Any, SimpleNamespace(variants=[bug(way, 1, "x")]))
    return script(report, TOKENS, way, model=str(folder))


RIGHT = (
    *("steps", "padded_left:5", "padded_left:5,20", "padded_right:3"),
    *(
        "batched:0",
        "batched:2",
        "initial_state:20",
        "initial_state:39",
        "chunks:39,rest",
    ),
)


def test_every_kind_of_way_can_be_written():
    ways = implementation_named("transformers").ways
    assert set(_HOW) == set(ways) - {"whole", "compiled"}
    assert {way.partition(":")[0] for way in (*RIGHT, CHUNKS)} == set(_HOW)


QUICK = ("steps", "padded_left:5,20", "batched:2")
SHOWN = [
    pytest.param(way, marks=[] if way in QUICK else [pytest.mark.slow]) for way in RIGHT
]


@pytest.mark.parametrize("way", [*SHOWN, CHUNKS, PADDED])
def test_the_script_shows_what_is_there(way, folder, capsys):
    """Assert agreement of right ways, and from where on wrong ones differ: of Mamba-1
    in the versions whose defects are known."""
    text = written(way, folder)
    exec(compile(text, "reproduced.py", "exec"), {"__name__": "__main__"})
    last = capsys.readouterr().out.splitlines()[-1]
    if way in RIGHT:
        assert last == "agrees within rounding"
    elif (installed("transformers") or ())[:2] == (5, 24):
        assert last == f"DIFFERS from token {7 if way == CHUNKS else 20} on"


@pytest.mark.parametrize("way", [*RIGHT, CHUNKS, PADDED])
def test_the_script_needs_neither_this_library_nor_its_arrays(way, folder):
    """Assert its imports, its length, and that every line fits."""
    text = written(way, folder)
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert names == {"inspect", "torch", "transformers"}
    assert "lyapunov" not in text
    own = [line for line in text.splitlines() if not line.startswith("MODEL")]
    assert len(own) < 70
    assert max(map(len, own)) <= 88


def test_what_is_known_stands_in_the_script(folder):
    known = asked(PADDED, violation(20, "conv"))
    report = report_of(bug(PADDED, 20, "conv", known=known))
    text = script(report, TOKENS, PADDED, model=str(folder), revision="abc")
    assert "Known: https://github.com/huggingface/transformers/issues/48256" in text
    assert "revision='abc'" in text


# --- The command -----------------------------------------------------------------


def test_scripts_are_written_one_a_kind(tmp_path, folder):
    target = tmp_path / "shown.py"
    report = report_of(
        bug(CHUNKS, 7, "gated"),
        bug("chunks:12,rest", 12, "gated"),
        bug(PADDED, 20, "x"),
    )
    told = write_scripts(report, TOKENS, (str(folder), None), target)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["shown-padded_right.py", "shown.py"]
    assert [line.rpartition(" ")[2] for line in told] == [CHUNKS, PADDED]
    run = subprocess.run(
        [sys.executable, "-c", f"compile(open({str(target)!r}).read(), 'x', 'exec')"],
        check=False,
    )
    assert run.returncode == 0


def test_nothing_wrong_writes_nothing(tmp_path):
    right = VariantAudit("whole", "bf16", CONSISTENT, ratio=0.4, z=1.0)
    report = report_of(right)
    (told,) = write_scripts(report, TOKENS, ("m", None), tmp_path / "shown.py")
    assert list(tmp_path.iterdir()) == []
    assert "nothing to reproduce" in told


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"source": None}, UsageError),
        ({"source": "emulated"}, UsageError),
        ({"source": "dump.npz"}, UsageError),
        ({"name": "shown.txt"}, OutputError),
        ({"name": "no/folder/shown.py"}, OutputError),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, change, kind):
    target = tmp_path / change.get("name", "shown.py")
    with pytest.raises(kind) as caught:
        Options(source=change.get("source", "transformers"), reproduce=target)
    assert caught.value.hint


def test_a_checkpoint_that_transformers_does_not_read_is_refused():
    checkpoint = SimpleNamespace(config={"d_model": 1, "n_layer": 1})
    model = SimpleNamespace(checkpoint=checkpoint, source="m")
    with pytest.raises(UsageError, match="transformers' layout") as caught:
        place_of(model)
    assert "save_pretrained" in caught.value.hint


def test_a_hub_model_is_given_by_its_id_and_commit():
    checkpoint = SimpleNamespace(
        config={"model_type": "mamba"}, revision="abc", is_gguf=False
    )
    model = SimpleNamespace(checkpoint=checkpoint, source="org/name@main")
    assert place_of(model) == ("org/name", "abc")
