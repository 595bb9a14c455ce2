"""Whole audits of dumps of a stand-in: bounds, hand-overs, and every form's words."""

import json

import numpy as np
import pytest
import torch

import lyapunov
from lyapunov.command._cli import main
from lyapunov.report import read_report
from lyapunov.results._audit import BUG, CONSISTENT

from .conftest import a_hook, a_server
from .stand_in import part
from .test_faults import LONG, lose
from .test_hand_overs import steps


@pytest.fixture(scope="module")
def dumped(models, tmp_path_factory):
    """A function: kind, calls -> the dump of request a, in bf16."""
    folder = tmp_path_factory.mktemp("dumps")

    def run(name, kind, *calls, **settings):
        settings = {"precision": "bf16", "cache": torch.bfloat16, **settings}
        server = a_server(models[kind], **settings)
        hook = a_hook(server)
        server.run(*calls, around=hook)
        hook.write(folder / f"{name}.npz")
        return folder / f"{name}.npz"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_a_clean_request_is_rounding(models, dumped, kind):
    """Assert that prefills and steps through a bf16 cache stay within their bounds,
    near which they come, beside a request of another length."""
    beside = [[*LONG[0]], [*LONG[1], part("b", 0, 4, 4)], *LONG[2:]]
    report = lyapunov.audit(models[kind], dumped("clean", kind, *beside))
    (run,) = report.variants
    assert (run.variant, run.verdict, run.violations) == ("chunks:5,4,1", CONSISTENT, 0)
    assert run.tokens == 12
    # of bf16's stores some element uses nearly all
    assert 0.5 < max(layer.ratio_t0 or 0.0 for layer in run.layers) <= 1.0
    assert [one.held for one in run.hand_overs] == [True, True]
    assert run.hand_overs_alike == 2
    assert "4 hand-overs bit for bit" in report.summary.recommendation


@pytest.mark.slow
def test_a_prefix_hit_starts_from_what_it_took(models, dumped, tmp_path):
    """Assert that bounds begin with that state, and that twice as large a one exceeds
    them."""
    copied = {1: lambda server: server.copy(3, 6)}
    calls = [[part("b", 0, 8, 3)], [part("a", 8, 14, 6)], *steps("a", 14, 16, 6)]
    path = dumped("prefix", "mamba1", *calls, before=copied)
    assert lyapunov.audit(models["mamba1"], path).summary.verdict == CONSISTENT
    arrays = dict(np.load(path))
    name = "layer.1.handed.0.taken.state"
    arrays[name] = np.where(arrays[name] & 0x7F80, arrays[name] + np.uint16(0x80), 0)
    np.savez(tmp_path / "twice.npz", **arrays)
    (run,) = lyapunov.audit(models["mamba1"], tmp_path / "twice.npz").variants
    assert run.verdict == BUG
    first = run.first_violation
    assert first is not None
    assert (first.layer, first.token) == (1, 0)
    assert all(one.held for one in run.hand_overs)


@pytest.mark.slow
def test_every_form_names_hand_overs_and_what_failed(models, dumped, tmp_path):
    """Assert it of table, page, Markdown and JSON, and of a report read back."""
    from click.testing import CliRunner

    path = dumped("lost", "mamba1", *LONG, before={4: lose})
    pages = [tmp_path / f"report{suffix}" for suffix in (".md", ".html", ".json")]
    written = [text for page in pages for text in ("-o", str(page))]
    source = str(models["mamba1"].source)
    run = CliRunner().invoke(
        main, [source, "--audit", str(path), "--no-progress", *written]
    )
    assert run.exit_code == 1, run.output
    for text in (run.stdout, *(page.read_text() for page in pages)):
        flat = " ".join(text.split())
        assert "the state that call 5 began with is not what call 4 left" in flat
        assert "the state was lost" in flat
        assert "LYA023" in flat
        for how in ("prefill to prefill", "prefill to decode", "decode to decode"):
            assert how in flat
    (entry,) = json.loads(pages[2].read_text())["variants"]
    assert [one["held"] for one in entry["hand_overs"]] == [True, True, False]
    back = read_report(pages[2])
    (variant,) = back.variants  # pyright: ignore[reportAttributeAccessIssue]
    assert variant.hand_overs[2].looks_like == "it is all zero: the state was lost"
    assert variant.hand_overs_alike == 1
