"""Each layout reads to code times scale, bit for bit, through every family's table."""

import numpy as np
import pytest

from lyapunov.checkpoints import open_checkpoint, recognise
from lyapunov.checkpoints.quantised._tensor import QuantisedTensor
from oracles.checkpoints.quantised_models import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_code_times_scale(quantised, recipe):
    folder, meant = quantised(recipe)
    checkpoint = open_checkpoint(folder)
    layout = recognise(checkpoint)
    assert len(meant) == 4
    for name, expected in meant.items():
        tensor = checkpoint.tensors[name]
        assert isinstance(tensor, QuantisedTensor)
        assert tensor.shape == expected.shape
        assert tensor.format.element == RECIPES[recipe].element
        found = tensor.read()
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected, err_msg=name)
        # some rows, in any order, as the whole has them
        rows = np.array([[7, 0], [131, 7]]) % expected.shape[0]
        np.testing.assert_array_equal(tensor.read_rows(rows), expected[rows])
        np.testing.assert_array_equal(tensor.read_rows(5, 126), expected[5:126])
    np.testing.assert_array_equal(
        layout.layer(1)["in_proj"], meant["backbone.layers.1.mixer.in_proj.weight"]
    )
    assert layout.dtype.startswith(RECIPES[recipe].element)
    assert layout.plain_dtype == "bf16"


@pytest.mark.parametrize("family", ["mamba", "nemotron_h", "qwen3_next"])
@pytest.mark.parametrize("recipe", ["ct-fp8-channel", "modelopt-nvfp4", "gptq-int4"])
def test_every_table_reads_the_same_parameters(quantised, plain, family, recipe):
    """A family's own names, also where one stored matrix holds several parameters."""
    folder, meant = quantised(recipe, family)
    layout, original = (recognise(open_checkpoint(f)) for f in (folder, plain(family)))
    assert layout.parts == original.parts or len(layout.parts) == len(original.parts)
    assert layout.n_params == original.n_params
    assert layout.weight_bytes < original.weight_bytes
    seen = set()
    for i, parts in enumerate(layout.parts):
        found, before = layout.layer(i), original.layer(i)
        for key, part in parts.items():
            names = {name for name in part.names if name in meant}
            seen |= names
            expected = before[key]
            if names:
                stored = lambda name: meant.get(name, original.stored(name))
                expected = original.parts[i][key].read(stored)
            np.testing.assert_array_equal(
                np.asarray(found[key], np.float64),
                np.asarray(expected, np.float64),
                err_msg=f"{i}: {key}",
            )
    assert seen == set(meant), "a quantised matrix that no table reads"


@pytest.mark.parametrize("recipe", ["ct-int4-group-asymmetric", "bnb-nf4-double"])
def test_codes_and_scales_in_different_files(quantised, recipe):
    folder, meant = quantised(recipe, name="sharded", shards=3)
    checkpoint = open_checkpoint(folder)
    recognise(checkpoint)
    for name, expected in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected)
