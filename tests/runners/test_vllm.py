"""vLLM's operators: where they are looked for, and what is refused before they run."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lyapunov import load
from lyapunov._errors import MissingExtraError, UsageError
from lyapunov.formats import state_format_named
from lyapunov.implementations import RefusedError, _kernel_files, implementation_named
from lyapunov.implementations._segment import Segment
from lyapunov.implementations._ways import Variant
from lyapunov.implementations.vllm import _operators
from lyapunov.implementations.vllm._batch import (
    chunk_ends,
    chunks_of,
    conv_programs,
    packed_pass,
)
from lyapunov.implementations.vllm._schedule import (
    Drafts,
    Text,
)
from lyapunov.implementations.vllm._stand_in import OPERATORS, PADDING
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    save,
)
from tests.executions import ssd_models as ssd


@pytest.fixture
def found(monkeypatch):
    """`operators`, which forgets what it found; this machine has a GPU, and Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv(_operators.FILES, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    _operators.find_operators.cache_clear()
    yield _operators.operators
    _operators.find_operators.cache_clear()


def test_no_gpu_is_named_first(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees none") as error:
        found()
    assert "--measure vllm_emulated" in error.value.hint


def test_no_triton(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match="need Triton"):
        found()


def test_neither_vllm_nor_its_files(found):
    with pytest.raises(MissingExtraError, match="vLLM is not installed") as error:
        found()
    assert "pip install vllm==0.33.0" in error.value.hint
    assert _operators.FILES in error.value.hint


def test_a_folder_without_the_kernels(found, monkeypatch, tmp_path):
    monkeypatch.setenv(_operators.FILES, str(tmp_path))
    with pytest.raises(UsageError, match=f"{_operators.FILES} is .*no vllm/model_exec"):
        found()


def test_another_version(found, monkeypatch, tmp_path):
    monkeypatch.setattr(_kernel_files, "installed", lambda name: (0, 34, 1))
    monkeypatch.setattr(_kernel_files.metadata, "version", lambda name: "0.34.1")
    with pytest.raises(UsageError, match=r"vLLM is 0\.34\.1 here, .* as 0\.33 calls"):
        found()
    # and of files that were unpacked with what says so
    monkeypatch.setattr(_kernel_files, "installed", lambda name: None)
    kernels = tmp_path / OPERATORS.replace(".", "/")
    kernels.mkdir(parents=True)
    (kernels / "ssd_combined.py").touch()
    (tmp_path / "vllm-0.32.1.dist-info").mkdir()
    monkeypatch.setenv(_operators.FILES, str(tmp_path))
    with pytest.raises(UsageError, match=r"vLLM is 0\.32\.1 here"):
        found()


@pytest.mark.parametrize("size", [1, 4, 8])
def test_chunks_end_at_multiples_of_their_size(size):
    """Assert each token's chunk by its absolute position, for all small sequences."""
    for done in range(10):
        for length in range(1, 20):
            ends = chunk_ends(done, length, size)
            assert ends[-1] == length
            assert ends == sorted(set(ends))
            chunk = np.searchsorted(ends, np.arange(length), side="right")
            own = (done + np.arange(length)) // size
            np.testing.assert_array_equal(chunk, own - own[0])


def test_a_pass_of_several_sequences():
    """Assert whose each chunk is, and which eight tokens each program takes."""
    slots = torch.tensor([1, 2, 3], dtype=torch.int32)
    plan = packed_pass([5, 20, 1], [3, 0, 8], False, slots)
    assert plan.starts.tolist() == [0, 5, 25, 26]
    assert plan.resumed.tolist() == [True, False, True]
    assert plan.resumes
    chunks = chunks_of(plan, 8)
    assert chunks.ends.tolist() == [0, 5, 13, 21, 25, 26]
    assert chunks.sequence.tolist() == [0, 1, 1, 1, 2]
    assert chunks.last.tolist() == [0, 3, 4]
    programs = conv_programs(plan)
    known = programs.nums_dict[8]
    assert known["tot"] == 5
    assert programs.batch_ptr[:6].tolist() == [0, 1, 1, 1, 2, PADDING]
    assert programs.token_chunk_offset_ptr[:6].tolist() == [0, 0, 1, 2, 0, PADDING]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = ssd.Sizes()
    return load(ssd.save(tmp_path_factory.mktemp("tiny"), ssd.drawn(sizes), sizes))


@pytest.fixture
def no_operators(monkeypatch):
    """Operators that are never reached."""
    nothing: Any = [None] * 7
    nothing = _operators.Operators(*nothing, interpreted=True, version="0.33.0")
    monkeypatch.setattr(_operators, "operators", lambda: nothing)


VLLM = implementation_named("vllm")


def declared(model, precision="fp16", mode="prefill", state=None):
    architecture = model.layout.architecture
    return VLLM.execution(
        model.config,
        precision,
        architecture=architecture,
        mode=mode,
        state_precision=state,
    )


def tried(model, variant=None, segments=(), precision="fp16"):
    runner = VLLM.runner(declared(model, precision))
    return list(runner.trace(model, np.zeros((1, 6), int), variant, segments))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant("padded_left", (3,)), "vLLM runs no text as padded_left:3"),
        (Variant("compiled"), "vLLM runs no text as compiled"),
    ],
)
def test_ways_that_there_are_not(model, no_operators, variant, message):
    with pytest.raises(UsageError, match=message):
        tried(model, variant)


STOCHASTIC = "--mamba-ssm-cache-dtype float16 --enable-mamba-cache-stochastic-rounding"
FLASHINFER = "--mamba-backend flashinfer"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("-tp 2", ""),
        (f"{FLASHINFER} --use-replayssm", ""),
        (f"{FLASHINFER} --speculative-config.num_speculative_tokens 3", ""),
        (STOCHASTIC, f"{FLASHINFER}; or "),
    ],
)
def test_servers_whose_operators_are_others(model, flags, hint):
    server = implementation_named(f"vllm {flags}")
    with pytest.raises(UsageError, match="are not run here") as error:
        server.runner(declared(model))
    assert error.value.hint == f"{hint}--measure vllm_emulated follows it"


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ("--use-replayssm", RefusedError, "Triton's plain step"),
        (FLASHINFER, UsageError, "an NVIDIA GPU"),
    ],
)
def test_drafts_by_other_steps_than_tritons(model, no_operators, flags, error, message):
    runner = implementation_named(f"vllm {flags}").runner(declared(model))
    with pytest.raises(error, match=message):
        list(runner.trace(model, np.zeros((1, 6), int), Variant("drafts", (4, 3))))


def test_a_mamba1_takes_no_drafts(tmp_path, no_operators):
    config = full_config({"ssm_cfg": {"d_state": 6, "dt_rank": 2}})
    weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(0))
    model = load(save(tmp_path, weights, config))
    with pytest.raises(RefusedError, match="a Mamba-1 token by token"):
        tried(model, Variant("drafts", (4, 3)))


def test_integers_are_flashinfers(model):
    def kept(flags, mode):
        one = implementation_named(f"vllm {flags}".strip())
        return one.state_precisions(mode) or ()

    assert "int16-scaled" in kept(FLASHINFER, "decode")
    assert "int16-scaled" not in kept(FLASHINFER, "prefill")
    assert "int16-scaled" not in kept("", "decode")


@pytest.mark.parametrize(
    ("width", "kept", "window"),
    [(4, 3, [7, 1, 2, 4]), (4, 1, [7, 2, 3, 4]), (3, 3, [7, 1, 2])],
)
def test_a_windows_rejected_tokens_are_wrong_ones(width, kept, window):
    text = np.array([5, 6, 7, 1, 2, 3])
    found = Text(text, 1, drafts=Drafts(width, kept)).step(2, 2 + kept, vocabulary=8)
    assert found.ids.tolist() == window
    assert (found.ids[kept:] != text[2 + kept : 2 + width]).all()
    assert (found.seen, found.kept) == (kept, kept)


def test_a_window_at_a_texts_end_is_filled():
    found = Text(np.array([5, 6, 7]), 1, drafts=Drafts(4, 3)).step(2, 3, vocabulary=8)
    assert found.ids.tolist() == [7, 0, 0, 0]


def test_bf16_in_the_interpreter(model, no_operators):
    with pytest.raises(UsageError, match="multiplies no bf16"):
        tried(model, precision="bf16")


def test_caches_that_vllm_has_not(model, no_operators):
    one = declared(model)
    cut = lambda *states: [
        Segment(3 * i, 3 * i + 3, one, state_format_named(state))
        for i, state in enumerate(states)
    ]
    with pytest.raises(UsageError, match="not in int8-scaled"):
        tried(model, segments=cut("int8-scaled", "int8-scaled"))
    with pytest.raises(UsageError, match="fp32 and fp16 at once"):
        tried(model, segments=cut("fp32", "fp16"))


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_that_are_put_together_otherwise(tmp_path, no_operators, name):
    config = full_config(CONFIGS[name])
    weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(0))
    model = load(save(tmp_path, weights, config))
    with pytest.raises(UsageError, match="plain Mamba-1 and Mamba-2") as error:
        tried(model)
    assert error.value.hint.startswith("--measure vllm_emulated")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"chunk": 12}, "12 tokens are no power of two"),
        ({"D_has_hdim": True}, "D has an entry a channel"),
        ({"norm_before_gate": True}, "before the gate"),
    ],
)
def test_mixers_that_vllm_has_not(tmp_path, no_operators, changed, why):
    sizes = ssd.Sizes(**changed)
    model = load(ssd.save(tmp_path, ssd.drawn(sizes), sizes))
    with pytest.raises(UsageError, match=why):
        tried(model)


def scripted(tmp_path, monkeypatch, script: str):
    """A folder with sources of the scan, and an nvcc that is a shell script."""
    from lyapunov.implementations.vllm import _nvcc, _selective_scan

    for name in (_selective_scan.SOURCE, *_selective_scan.HEADERS):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("// nothing\n")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(_nvcc, "compiler", lambda what: str(nvcc))
    monkeypatch.setenv(_nvcc.CACHES, str(tmp_path / "caches"))
    return _selective_scan, tmp_path / "files"


def test_the_scan_is_compiled_once(tmp_path, monkeypatch):
    """Assert what nvcc is given, and that what it made is kept by what it read."""
    # the last word is the library
    script = f'echo "$@" >> {tmp_path}/given; for last; do :; done; : > "$last"'
    scan, folder = scripted(tmp_path, monkeypatch, script)
    assert scan.there(folder)
    assert not scan.there(tmp_path)
    assert not scan.there(None)
    first = scan.built(folder, "sm_90")
    assert first.exists()
    assert scan.built(folder, "sm_90") == first
    (given,) = (tmp_path / "given").read_text().splitlines()
    assert "-arch=sm_90" in given
    assert str(folder / scan.SOURCE) in given
    assert "-use_fast_math" not in given
    libraries = {first}
    for name in (scan.SOURCE, *scan.HEADERS):
        (folder / name).write_text("// another\n")
        libraries.add(scan.built(folder, "sm_90"))
        (folder / name).rename(folder / f"{name}.away")
        assert not scan.there(folder)
        (folder / f"{name}.away").rename(folder / name)
    assert len(libraries) == 2 + len(scan.HEADERS)


def test_a_scan_that_nvcc_cannot_compile(tmp_path, monkeypatch):
    scan, folder = scripted(tmp_path, monkeypatch, "echo no such header >&2; exit 2")
    with pytest.raises(UsageError, match="no such header") as error:
        scan.built(folder, "sm_90")
    assert "--mode decode" in error.value.hint
    assert not list((tmp_path / "caches").glob("*.so"))
