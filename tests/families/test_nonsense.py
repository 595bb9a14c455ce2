"""A damaged config.json of any family ends in one line, never a traceback."""

import contextlib
import functools
import json
import tempfile
from pathlib import Path

import pytest

from lyapunov._errors import CheckpointError, CorruptCheckpointError
from lyapunov.checkpoints import open_checkpoint, recognise
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save
from tests.families.quick import QUICK


NONSENSE = ["x", -1, 0, 2.5, 10**30, None, [], ["x"], {}, True, [1, 2]]


@functools.cache
def saved(family, name):
    folder = Path(tempfile.mkdtemp(prefix="lyapunov-test-"))
    return save(make(family, **CONFIGURATIONS[family][name]), folder)


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_nonsense_in_any_setting(family, name):
    """Assert it for every setting in turn; what does not matter may stay."""
    folder = saved(family, name)
    checkpoint = open_checkpoint(folder)
    whole = json.loads((folder / "config.json").read_text())
    refused = set()
    for key in whole:
        for value in NONSENSE:
            checkpoint.config.clear()
            checkpoint.config.update(whole | {key: value})
            with contextlib.suppress(CheckpointError):
                recognise(checkpoint)
                continue
            refused.add(key)
    assert {"model_type", "vocab_size", "hidden_size"} <= refused


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_settings_that_are_missing(family, name):
    """Assert that each is found missing, or has the library's own default."""
    folder = saved(family, name)
    checkpoint = open_checkpoint(folder)
    whole = json.loads((folder / "config.json").read_text())
    for key in whole:
        checkpoint.config.clear()
        checkpoint.config.update({k: v for k, v in whole.items() if k != key})
        with contextlib.suppress(CheckpointError):
            recognise(checkpoint)


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_a_tensor_too_few_and_one_too_many(family, name):
    """Assert that every tensor is asked for, and none is passed over."""
    checkpoint = open_checkpoint(saved(family, name))
    whole = dict(checkpoint.tensors)
    for missing in whole:
        checkpoint.tensors.clear()
        checkpoint.tensors.update({k: t for k, t in whole.items() if k != missing})
        optional = missing.endswith(".bias") or "adapter_list" in missing
        with (
            pytest.raises(CorruptCheckpointError)
            if not optional
            else (contextlib.suppress(CheckpointError))
        ):
            recognise(checkpoint)
    some = next(name for name in whole if ".layers.0." in name)
    checkpoint.tensors.clear()
    checkpoint.tensors.update(whole | {f"{some}.other": whole[some]})
    with pytest.raises(CorruptCheckpointError, match="no place for"):
        recognise(checkpoint)
