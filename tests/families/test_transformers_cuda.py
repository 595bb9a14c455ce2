"""transformers on a GPU: Transformers alone, under constants that hold there."""

import pytest
import torch

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import executions_for

from ..helpers import not_none
from .test_executions import SEQ, model_of


def execution(family, name, mode="prefill"):
    model = model_of(family, name)
    [found] = executions_for(
        model.config,
        ["bf16"],
        architecture=model.layout.architecture,
        mode=mode,
        measure="transformers_cuda",
    )
    return found


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_sums_may_be_cut(mode):
    """Assert that every kind of sublayer allows what tensor cores do."""
    found = execution("llama", "grouped heads", mode)
    for one in (found, *found.kinds.values()):
        assert one.constants.accumulator_unit == 2.0**-23
    assert "CUDA" in found.name
    assert any("2^-23" in told for told in found.assumptions)


def test_recurrences_are_refused():
    """Assert it, with what does run: there transformers takes other kernels."""
    with pytest.raises(UsageError, match="mamba2") as caught:
        execution("mamba2", "one group")
    assert "mamba_ssm" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_a_hint():
    model = model_of("llama", "grouped heads")
    with pytest.raises(UsageError, match="GPU") as caught:
        lyapunov.check(model, [1, 2], precisions=["bf16"], measure="transformers_cuda")
    assert "--measure transformers" in caught.value.hint


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_no_element_exceeds_its_bound(precision):
    """Assert it of torch's and cuBLAS's kernels."""
    model = model_of("llama", "grouped heads")
    report = lyapunov.check(
        model, list(range(SEQ)), precisions=[precision], measure="transformers_cuda"
    )
    assert sum(not_none(row.violations) for row in report.precisions[0].layers) == 0
