"""A damaged config.json of any family ends in one line, never a traceback."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import pytest

from lyapunov._errors import CheckpointError, CorruptCheckpointError
from lyapunov.checkpoints import open_checkpoint, recognise
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.mamba3 import CONFIGS as MAMBA3
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    openelm,
    save as save_as,
)
from oracles.checkpoints.transformers import make, save
from oracles.networks import mamba3 as numpy_mamba3
from tests.families.quick import QUICK


NONSENSE = ["x", -1, 0, 2.5, 10**30, None, [], ["x"], {}, True, [1, 2], [[1], {}]]


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
def test_layers_of_no_known_kind(family, name):
    """Assert that one among others is no mixer by default."""
    checkpoint = open_checkpoint(saved(family, name))
    whole = dict(checkpoint.config)
    for key in whole.keys() & {"layer_types", "layers_block_type"}:
        if whole[key] is None:
            continue
        checkpoint.config.clear()
        checkpoint.config.update(whole | {key: [*whole[key][:-1], "unheard_of"]})
        with pytest.raises(CheckpointError, match="unheard_of"):
            recognise(checkpoint)


OTHERS = [*CONFIGS, *MAMBA3, "OpenELM"]


def other_layout(name):
    """(config, shapes) of a network in mamba_ssm's or Apple's layout."""
    if name == "OpenELM":
        return openelm(True)[:2]
    if name in MAMBA3:
        config = full_config({"ssm_cfg": MAMBA3[name]})
        return config, numpy_mamba3.shapes(config)
    config = full_config(CONFIGS[name])
    return config, mamba_ssm_shapes(config)


@pytest.mark.parametrize("name", OTHERS)
def test_nonsense_in_other_layouts(rng, tmp_path, name):
    """Assert it for every setting, those inside of others too."""
    whole, shapes = other_layout(name)
    checkpoint = open_checkpoint(save_as(tmp_path, drawn(shapes, rng), whole))
    inner = {
        (part, key) for part in ("ssm_cfg", "attn_cfg") for key in whole.get(part, ())
    }
    for place in [(key,) for key in whole] + sorted(inner):
        for value in NONSENSE:
            config = json.loads(json.dumps(whole))
            (config if len(place) == 1 else config[place[0]])[place[-1]] = value
            with contextlib.suppress(CheckpointError):
                recognise(dataclasses.replace(checkpoint, config=config))


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
    first = (".layers.0.", ".blocks.0.")
    some = next(name for name in whole if any(part in name for part in first))
    checkpoint.tensors.clear()
    checkpoint.tensors.update(whole | {f"{some}.other": whole[some]})
    with pytest.raises(CorruptCheckpointError, match="no place for"):
        recognise(checkpoint)
