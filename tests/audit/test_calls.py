"""Which calls a way is made of: what a network is given, and what is bounded as one."""

from dataclasses import replace

import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Form
from lyapunov.bounds.segments import _Plan
from lyapunov.formats import BF16, FP32
from lyapunov.implementations import executions_for
from lyapunov.implementations._segment import Segment, merged
from lyapunov.implementations._ways import parse_variant, usual_variants
from lyapunov.implementations.transformers.ways import planned
from lyapunov.results._audit import CONSISTENT
from lyapunov.sublayers import KINDS, NetworkConfig

from ..model.every_kind import SIZES


SEQ = 12
WAYS = [
    *map(str, usual_variants(SEQ)[:-2]),
    *("chunks:5", "chunks:4,1", "padded_left:2,1", "initial_state:7"),
]


@pytest.mark.parametrize("way", WAYS)
def test_the_calls_hold_the_text_at_its_own_positions(way):
    """Assert tokens and positions of the audited columns, and that masks tell padding
    from text in all calls so far."""
    tokens = np.random.default_rng(0).integers(1, 50, (1, SEQ))
    calls = planned(tokens, parse_variant(way))
    kept = [(c.ids[c.rows, c.columns], c.positions[c.rows, c.columns]) for c in calls]
    ids, positions = (np.concatenate(x, axis=1) for x in zip(*kept, strict=True))
    np.testing.assert_array_equal(ids, tokens)
    np.testing.assert_array_equal(positions[0], np.arange(SEQ))
    given = 0
    for call in calls:
        assert call.ids.shape == call.positions.shape
        given += call.ids.shape[1]
        assert (call.mask is None) == ("padded" not in way)
        if call.mask is None:
            continue
        assert call.mask.shape == (call.ids.shape[0], given)
        hidden = np.concatenate([c.ids for c in calls], axis=1)[:, :given] == 0
        np.testing.assert_array_equal(call.mask[0] == 0, hidden[0])
        assert call.mask[1].all()
        assert call.mask[0].sum() == positions[0, : call.positions[0].max() + 1].size


def segments(lengths, execution, cache):
    ends = np.cumsum(lengths)
    return [
        Segment(int(end - n), int(end), execution, cache)
        for n, end in zip(lengths, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def execution():
    config = NetworkConfig(8, 8, SIZES["mamba2"].d_model, (SIZES["mamba2"],))
    given = {"architecture": "mamba2", "measure": "transformers"}
    (found,) = executions_for(config, ["bf16"], **given)
    return found.of("mamba2")


def test_calls_are_one_where_nothing_is_rounded_between_them(execution):
    """Assert it by kind and cache, with the calls told to the execution."""
    cut = segments((5, 5, 2), execution, FP32)
    for kind in KINDS.values():
        found = merged(cut, kind)
        if not kind.joins_calls:
            assert found == tuple(cut)
            continue
        (one,) = found
        assert (one.start, one.stop, one.execution.form.calls) == (0, 12, (5, 5, 2))
        narrow = segments((5, 5, 2), execution, BF16)
        assert len(merged(narrow, kind)) == (3 if kind.recurrent else 1)
    other = replace(execution, sites=execution.sites | {"out": FP32})
    for kind in KINDS.values():
        apart = merged([*cut[:2], Segment(10, 12, other, FP32)], kind)
        assert (apart[-1].start, apart[-1].execution) == (10, other)


def test_a_prompt_and_steps_are_one_where_neither_has_a_state(execution):
    """Assert it of executions that differ in the depth of a scan alone, and not of
    those that round otherwise."""
    steps = replace(execution, depths=replace(execution.depths, scan=lambda n: 1))
    for kind in KINDS.values():
        for calls in ((0, 5, 12), (0, 11, 12)):
            spans = zip(calls, calls[1:], (execution, steps), strict=False)
            cut = [Segment(*span) for span in spans]
            assert len(merged(cut, kind)) == (2 if kind.recurrent else 1)
    coarser = replace(steps, constants=replace(steps.constants, unit=2.0**-8))
    cut = [Segment(0, 5, execution), Segment(5, 12, coarser)]
    assert len(merged(cut, KINDS["mlp"])) == 2


def test_a_scans_depth_is_no_part_of_what_has_none(execution):
    """Assert one program of the text whole and by steps, but for a recurrence."""
    steps = replace(execution, depths=replace(execution.depths, scan=lambda n: 1))
    for name, sizes in SIZES.items():
        one, other = (_Plan([Segment(0, 12, e)], sizes) for e in (execution, steps))
        assert (one == other) is (not sizes.recurrent), name


def test_a_scan_is_as_deep_as_its_calls_and_a_chunk_as_one(execution):
    """Assert the sum of all calls of one scan, and the longest where chunks are cut."""
    (one,) = merged(segments((5, 5, 2), execution, FP32), KINDS["mamba2"])
    assert one.execution.form.chunked
    assert one.execution.scan_depth(12) == execution.scan_depth(5) == 5
    unchunked = replace(one.execution, form=Form())
    assert unchunked.scan_depth(12) == 12


def small(family, folder):
    """A checkpoint of that family."""
    from oracles.checkpoints.configurations import CONFIGURATIONS
    from oracles.checkpoints.mamba_ssm import drawn, full_config, save as save_numpy
    from oracles.checkpoints.transformers import make, save
    from oracles.networks import mamba3

    if family != "mamba3":
        settings = next(iter(CONFIGURATIONS[family].values()))
        return save(make(family, **settings), folder)
    config = full_config({"ssm_cfg": {"layer": "Mamba3", "d_state": 8, "headdim": 8}})
    arrays = drawn(mamba3.shapes(config), np.random.default_rng(1))
    save_numpy(folder, arrays, config)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba2", "gpt_neox", "mamba3"])
def test_the_emulator_in_calls_is_rounding(family, tmp_path):
    """Assert it of what every kind hands on, through a cache in 16 bits where there is
    a state: no violation, everything bounded, and bounds that are reached."""
    model = lyapunov.load(str(small(family, tmp_path / family)))
    tokens = np.random.default_rng(3).integers(1, model.config.vocab_size, 6)
    (run,) = lyapunov.audit(model, "emulated", tokens, variants="chunks:4").variants
    assert run.verdict == CONSISTENT, run.first_violation
    assert (run.violations, run.unbounded) == (0, 0)
    assert run.ratio is not None
    assert 0.5 < run.ratio <= 1
