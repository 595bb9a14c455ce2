"""Families other than Mamba-1 are audited in the ways that they are run in.

transformers' own code is rounding (faults planted in it: `test_planted`). What there is
not is refused, with the reason.
"""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import (
    Transformers,
    implementation_named,
    write_dump,
)
from lyapunov.implementations._ways import parse_variant, usual_variants
from lyapunov.questions._audit_ways import ways_of_source
from lyapunov.questions._request import Request
from lyapunov.results._audit import BUG, CONSISTENT, NOT_RUN

from ..helpers import not_none, of_sublayer, parted
from .conftest import FAMILIES, SEQ_OF_FAMILIES as SEQ


LATE = 5
# What has no defect in any family.
RIGHT = ("whole", "steps", "batched:1", "initial_state:4")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_clean_runs_are_rounding(models, family):
    """Assert it of transformers in each way that it has, with bounds of everything, but
    for the defects that are known by name."""
    model, tokens = models(family)
    tried = [str(way) for way in usual_variants(SEQ)]
    report = lyapunov.audit(model, "transformers", tokens, variants=tried)
    ran = [run for run in report.variants if run.verdict != NOT_RUN]
    assert [run.variant for run in ran] == [w for w in tried if "packed" not in w]
    for run in ran:
        right = run.variant in RIGHT
        if right or run.known is None:
            assert run.verdict == CONSISTENT, (run.variant, run.first_violation, run.z)
            assert (run.violations, run.tokens) == (0, SEQ)
            assert 0 < not_none(run.ratio) <= 1
        assert len(run.layers) == len(model.sublayers)


@pytest.mark.parametrize("family", ["jamba", "nemotron_h"])
def test_experts_are_run_in_calls_of_any_length(models, family):
    """Assert rows for every token, whatever order the router has them in."""
    model, tokens = models(family)
    assert any(one.kind == "experts" for one in model.sublayers)
    (execution,) = Request.of(precisions="bf16", measure="transformers").executions(
        model
    )
    runner = implementation_named("transformers").runner(execution)
    for way in ("chunks:7", "steps"):
        trace = runner.trace(model, tokens[None], parse_variant(way))
        for record in parted(trace)[0]:
            for site, stored in record.stored.items():
                assert stored.shape[:2] == (1, SEQ), (way, record.layer, site)


def test_ways_that_there_are_not_say_why(models):
    """Assert the reason of each, without a run; what hands over is run."""
    model, tokens = models("gpt_neox")
    asked = ["chunks:3", "initial_state:4", "batched:1", "packed:3"]
    ways, skipped = ways_of_source(
        model, "emulated", tokens[None], ["bf16"], asked, None
    )
    assert [str(way.variant) for way in ways] == asked[:2]
    assert [run.verdict for run in skipped] == [NOT_RUN] * 2
    assert "do not meet" in skipped[0].reason
    assert "packs no texts" in skipped[1].reason


def test_what_transformers_has_not_is_refused(tmp_path):
    """Assert the reason for a Mamba-3, which transformers does not know."""
    from oracles.checkpoints.mamba_ssm import drawn, full_config, save as save_numpy
    from oracles.networks import mamba3

    ssm = {"layer": "Mamba3", "d_state": 8, "headdim": 8}
    config = full_config({"ssm_cfg": ssm})
    arrays = drawn(mamba3.shapes(config), np.random.default_rng(1))
    save_numpy(tmp_path, arrays, config)
    with pytest.raises(UsageError, match="mamba3"):
        lyapunov.audit(str(tmp_path), "transformers", [1, 2, 3])


def test_dumps_hold_what_has_a_row_a_token(models, tmp_path):
    """Assert widths of a mixer, of attention and of an MLP against their sizes."""
    from lyapunov.implementations.dump._sites import site_widths

    for family in ("mamba2", "gpt_neox"):
        model, _ = models(family)
        for layer in model.sublayers:
            sizes = model.config.sublayers[layer.layer]
            widths = site_widths(model, layer)
            assert widths["norm_input"] == widths["out"] == sizes.d_model
            assert "scores" not in widths
            if layer.kind == "mamba2":
                wide = 2 * sizes.groups * sizes.d_state
                assert widths["gated"] == sizes.d_inner
                assert widths["conv"] == sizes.d_inner + wide
                assert widths["xz"] == 2 * sizes.d_inner + wide + sizes.heads
            elif layer.kind == "attention":
                assert widths["q"] == sizes.heads * sizes.head_dim
                assert widths["k"] == sizes.kv_heads * sizes.head_dim
            else:
                assert widths["up"] == sizes.d_hidden


@pytest.mark.slow
def test_a_dump_of_a_transformer_is_judged(models, tmp_path):
    """Assert rounding for its own run, and a bug for one element moved."""
    from lyapunov.implementations import executions_for

    model, tokens = models("gpt_neox")
    (execution,) = executions_for(
        model.config, ["bf16"], architecture="gpt_neox", measure="transformers"
    )
    records = list(Transformers(execution).trace(model, tokens[None]))
    given: dict[str, Any] = {"implementation": "transformers", "precision": "bf16"}
    write_dump(tmp_path / "right.npz", iter(records), tokens, **given)
    (run,) = lyapunov.audit(model, tmp_path / "right.npz").variants
    assert (run.verdict, run.violations) == (CONSISTENT, 0)
    second = of_sublayer(records[1])
    moved = second.output.at[0, LATE, 0].multiply(1.5)
    records[1] = second._replace(output=moved)
    write_dump(tmp_path / "wrong.npz", iter(records), tokens, **given)
    (run,) = lyapunov.audit(model, tmp_path / "wrong.npz").variants
    assert run.verdict == BUG
    assert (
        not_none(run.first_violation).layer,
        not_none(run.first_violation).token,
    ) == (1, LATE)
