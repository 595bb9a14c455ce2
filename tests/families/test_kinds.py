"""Every kind of sublayer, asked everything: no table passes over one in silence.

A kind that is added to `KINDS` and to nothing else fails here, table by table.
"""

import functools
import pathlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import Reference, executions_for, mamba_ssm_prefill
from lyapunov.implementations._constants import MEASURED_KINDS
from lyapunov.implementations._torch import NAMES_BY_KIND
from lyapunov.implementations.transformers.network_runner import WATCHED
from lyapunov.mixers import model_of_call
from lyapunov.mixers._scans import chunk_scan_call, selective_scan_call
from lyapunov.questions._cause import state_facts
from lyapunov.sublayers.kinds import KINDS
from lyapunov.sublayers.sites import FLOW_ORDER
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS
from oracles.checkpoints.mamba3 import CONFIGS as MAMBA3
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    save,
)
from oracles.checkpoints.transformers import make, save as save_transformers
from oracles.networks import mamba3 as numpy_mamba3

from ..helpers import not_none


# Together they have a sublayer of every kind, and both forms of gates and of experts.
QUICK = {
    ("mamba_ssm", "attention with a convolution"),
    ("mamba_ssm", "Mamba-1 with LayerNorm, attention and MLPs"),
    ("mamba3", "SISO, groups, norm, all pairs turn"),
    ("mamba3", "MIMO, groups, norm"),
    ("nemotron_h", "latent experts"),
    ("granitemoehybrid", "experts, no positions"),
    ("zamba", "two heads"),
    ("zamba2", "two blocks, adapters, positions"),
    ("gpt_neox", "parallel"),
    ("qwen3_next", "experts and an MLP"),
    ("kimi_linear", "experts"),
    ("lfm2", "windows and attention"),
    ("recurrent_gemma", "windows"),
    ("rwkv", "tied"),
    ("minimax", "no factors, windows, tied"),
    ("xlstm", "single"),
    ("scan", "selective_scan"),
    ("scan", "chunk_scan"),
}
MODELS = [
    *(("mamba_ssm", name) for name in CONFIGS),
    *(("mamba3", name) for name in MAMBA3),
    *CASES,
    ("scan", "selective_scan"),
    ("scan", "chunk_scan"),
]
NOT_RECURRENT = {kind for kind in KINDS if not KINDS[kind].recurrent}
# Mamba-3 is in none of transformers' models.
REFUSED = dict.fromkeys(
    ("mamba3", "selective_scan", "chunk_scan"),
    "transformers prefill, bf16 declares nothing",
)
# Scans stand in no checkpoint, and in no module that a runner has.
SCANS = {"selective_scan", "chunk_scan"}
# Mixers that mamba_ssm does not have: fla does, or torch alone.
NOT_OF_MAMBA_SSM = {"gated_delta", "kimi_delta", "rg_lru", "rwkv4", "lightning"}
NOT_OF_MAMBA_SSM |= {"mlstm"}
# These run in torch's kernels, or in fla's, whose constants nobody measures.
NOT_MEASURED = NOT_RECURRENT | NOT_OF_MAMBA_SSM


def drawn_at_random(family, name):
    """Whether a checkpoint of mamba_ssm is drawn, or transformers makes one."""
    return family in ("mamba_ssm", "mamba3")


def scan_alone(name):
    """A call of a scan on random rows, as a model."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.normal(size=shape)
    if name == "selective_scan":
        rates, bias = -np.exp(normal(4, 3)), normal(4) - 3.0
        u, dt, z = normal(1, 4, 9), normal(1, 4, 9), normal(1, 4, 9)
        B, C = normal(1, 2, 3, 9), normal(1, 2, 3, 9)
        call = selective_scan_call(u, dt, rates, B, C, normal(4), z, bias, True)
    else:
        rates, bias = -np.exp(normal(4)), normal(4)
        x, dt, z = normal(1, 9, 4, 2), normal(1, 9, 4), normal(1, 9, 4, 2)
        B, C = normal(1, 9, 2, 3), normal(1, 9, 2, 3)
        call = chunk_scan_call(
            x, dt, rates, B, C, 4, normal(4), z, bias, dt_softplus=True
        )
    return model_of_call(call.mixer, call.read, "a scan")[0]


@functools.cache
def model_of(family, name):
    """A small random model, read from its files; or a scan alone."""
    if family == "scan":
        return scan_alone(name)
    folder = Path(tempfile.mkdtemp(prefix="lyapunov-test-"))
    if not drawn_at_random(family, name):
        network = make(family, **CONFIGURATIONS[family][name])
        return lyapunov.load(save_transformers(network, folder))
    mamba3 = family == "mamba3"
    config = full_config({"ssm_cfg": MAMBA3[name]} if mamba3 else CONFIGS[name])
    shapes = (numpy_mamba3.shapes if mamba3 else mamba_ssm_shapes)(config)
    weights = drawn(shapes, np.random.default_rng(5))
    return lyapunov.load(save(folder, weights, config))


@functools.cache
def having(kind):
    """A quick model with a sublayer of this kind."""
    for case in sorted(QUICK):
        if any(s.kind == kind for s in model_of(*case).config.sublayers):
            return model_of(*case)
    raise AssertionError(f"no quick model has a sublayer of kind {kind}")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in MODELS
    ],
)
def test_counts_are_those_of_what_is_built(family, name):
    """Assert weights and states equal to the parameter set's, for every sublayer."""
    model = model_of(family, name)
    for layer, sizes in enumerate(model.config.sublayers):
        raw = model.raw_parameters(layer)
        place = layer, sizes.kind
        matrices = sum(array.size for array in raw.values() if array.ndim > 1)
        counts = sizes.count(7)
        assert counts.weights == matrices, place
        assert matrices > 0 or sizes.kind in ("norm", "chunk_scan"), place
        assert counts.channels > 0, place
        attends = any(one.how == "cache" for one in sizes.hand_over)
        assert (sizes.count(10**5).scores > 0) == attends, place
        assert counts.scores == 0, place
        if sizes.recurrent:
            start = model.start(model.parameters(layer))
            assert counts.states == start.state.size > 0, place
        else:
            assert counts.states == 0, place


def executions(model, measure):
    """Of every precision and mode that the implementation has for this model."""
    for mode in ("prefill", "decode"):
        for precision in ("bf16", "fp16", "fp32", "bf16-cast", "bf16-amp"):
            try:
                found = executions_for(
                    model.config,
                    [precision],
                    architecture=model.layout.architecture,
                    mode=mode,
                    measure=measure,
                )
            except UsageError:
                continue
            yield found[0]


@pytest.mark.parametrize("measure", ["emulated", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_execution_of_its_own(kind, measure):
    """Assert it in every implementation, or a refusal that names the kind."""
    model = having(kind)
    found = list(executions(model, measure))
    if measure == "transformers" and kind in REFUSED:
        assert found == []
        with pytest.raises(UsageError, match=f"{REFUSED[kind]}.*{kind!r}"):
            executions_for(model.config, ["bf16"], measure="transformers")
        return
    assert {execution.mode for execution in found} == {"prefill", "decode"}
    for execution in found:
        own = execution.of(kind)
        assert own.kind == kind
        assert set(own.sites) <= set(FLOW_ORDER), (kind, own.name)
        assert own.sites, kind
        if KINDS[kind].recurrent and own.mode == "decode":
            assert "state" in own.sites, (kind, own.name)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - NOT_RECURRENT))
def test_states_of_every_recurrence_are_looked_at_as_formats_hold_them(kind):
    """Assert shares of updates too small for bf16 and for 127 steps, and of what
    subnormals cost in a format that has hardly another number."""
    runner = Reference((2.0**-8, 2.0**-8), (2.0**-2, 0.0), state_steps=(0.0, 1 / 127))
    model = having(kind)
    records: Any = lyapunov.trace(model, np.arange(12)[None] % 7, runner=runner)
    record = next(one for one in records if one.kind == kind)
    bf16, scaled = (not_none(state_facts(record, place)) for place in (0, 1))
    # where a channel has one state, its scale is as fine as bf16's numbers
    least = not_none(bf16.stagnation) + (0.0 if kind == "rg_lru" else 1e-12)
    assert 0 < least <= not_none(scaled.stagnation) < 1
    assert not_none(bf16.underflow) > not_none(scaled.underflow) == 0
    assert bf16.largest > 0


@pytest.mark.parametrize("measure", ["emulated", "transformers"])
@pytest.mark.parametrize("kind", ["", "mamba4"])
def test_a_kind_that_nobody_declares_is_refused(kind, measure):
    """Assert an error that names it and what there is, and never another's stores."""
    for case in [("mamba_ssm", name) for name in CONFIGS] + [("zamba", "two heads")]:
        if case not in QUICK:
            continue
        for execution in executions(model_of(*case), measure):
            with pytest.raises(UsageError, match=f"kind {kind!r}; it has .*mamba1"):
                execution.of(kind)
    assert mamba_ssm_prefill("bf16").of("mamba1").kind == "mamba1"
    with pytest.raises(UsageError, match=r"'mamba2'; it has mamba1\n"):
        mamba_ssm_prefill("bf16").of("mamba2")


def test_every_kind_is_watched_or_refused():
    """Assert modules of transformers and names of mamba_ssm, kind by kind."""
    assert set(KINDS) == set(WATCHED) | set(REFUSED)
    # mamba_ssm itself is run on its own mixers, and refuses all others
    assert set(NAMES_BY_KIND) == set(KINDS) - NOT_RECURRENT - NOT_OF_MAMBA_SSM - SCANS
    for kind, seen in WATCHED.items():
        sites = {one.site for one in seen}
        assert sites <= set(KINDS[kind].sites), kind
        assert sites & {"out", "routed", "shared"}, kind


def test_constants_are_measured_or_not_by_kind():
    assert set(MEASURED_KINDS) | NOT_MEASURED == set(KINDS)
    assert not set(MEASURED_KINDS) & NOT_MEASURED


def test_every_stored_site_is_in_the_order():
    """Assert it of each name that a flow writes out, or makes of another name."""
    home = pathlib.Path(lyapunov.__file__).parent
    stored = re.compile(r'\.(?:may_store|stores?)\(\s*(f?)"([^"]+)"')
    found = set()
    for folder in ("sublayers", "recurrences"):
        for path in sorted((home / folder).glob("*.py")):
            for formatted, name in stored.findall(path.read_text("utf-8")):
                found.add(name)
                form = (
                    re.sub(r"\{[^}]*\}", ".+", name) if formatted else re.escape(name)
                )
                known = [site for site in FLOW_ORDER if re.fullmatch(form, site)]
                assert known, (path.name, name)
    assert {"xz", "state", "out", "norm_input", "scores"} <= found
    assert len(found) > 80


def test_every_network_says_what_its_sublayers_are():
    """Assert that the quick models have every kind between them."""
    kinds = {s.kind for case in QUICK for s in model_of(*case).config.sublayers}
    assert kinds == set(KINDS)
