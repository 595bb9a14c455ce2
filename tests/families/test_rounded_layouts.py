"""Scales are those of the stored tensors, which may hold several parameters."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.formats import dequantised
from lyapunov.formats._weight_table import SHORT_NAMES
from lyapunov.models._rounded_layout import parameters_of
from lyapunov.questions._weight_sets import rounded_weights
from lyapunov.sublayers.groups import groups_of, is_matrix
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS
from oracles.checkpoints.transformers import make, save


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A family's model and its tensors in fp64, made once."""
    from safetensors.numpy import load_file

    found = {}

    def give(family, name=None):
        named = CONFIGURATIONS[family]
        name = name or next(iter(named))
        if (family, name) not in found:
            folder = tmp_path_factory.mktemp(family) / "model"
            save(make(family, **named[name]), folder)
            tensors = load_file(folder / "model.safetensors")
            found[family, name] = lyapunov.load(folder), tensors
        return found[family, name]

    return give


def in_fp8(w):
    """One scale for each matrix of a stack."""
    w = torch.tensor(w)
    scale = w.abs().amax((-2, -1), keepdim=True) / 448
    return ((w / scale).to(torch.float8_e4m3fn).double() * scale.double()).numpy()


# A tensor of several parameters: its name, and where each of them lies in it.
HEADS = np.arange(96).reshape(4, 3, 8)
FUSED = [
    ("gpt_neox", 0, "gpt_neox.layers.0.attention.query_key_value.weight",
     {"q_proj": HEADS[:, 0].ravel(), "v_proj": HEADS[:, 2].ravel()}),
    ("granitemoehybrid", 1, "model.layers.0.shared_mlp.input_linear.weight",
     {"shared_gate": np.arange(24), "shared_up": np.arange(24, 48)}),
    ("zamba", 0, "model.layers.0.mamba.in_proj.weight",
     {"in_proj": np.r_[0:128:2, 1:128:2]}),
    ("mamba2", 1, "backbone.layers.1.mixer.in_proj.weight",
     {"in_proj": np.arange(152)}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "layer", "stored", "places"), FUSED)
def test_one_scale_a_tensor_is_the_files(saved, family, layer, stored, places):
    model, tensors = saved(family)
    changed = rounded_weights(model, "fp8_e4m3").model.raw_parameters(layer)
    whole = in_fp8(tensors[stored])
    for name, rows in places.items():
        np.testing.assert_array_equal(changed[name], whole[rows], name)
    # alone, whichever lacks the largest entry would have another scale
    if len(places) > 1:
        alone = [
            np.array_equal(changed[name], in_fp8(tensors[stored][rows]))
            for name, rows in places.items()
        ]
        assert not all(alone)


def test_experts_have_scales_of_their_own(saved):
    model, tensors = saved("granitemoehybrid")
    changed = rounded_weights(model, "fp8_e4m3").model.raw_parameters(1)
    names = [n for n in tensors if n.startswith("model.layers.0.block_sparse_moe.")]
    (down,) = [n for n in names if n.endswith(("output_linear.weight", "down_proj"))]
    assert tensors[down].ndim == 3
    np.testing.assert_array_equal(changed["down"], in_fp8(tensors[down]))


@pytest.mark.parametrize(
    "name", ["fp8_e4m3", "fp8_e5m2-block128", "int8", "nf4", "int4_asym"]
)
def test_embedding_and_head_are_rounded_where_they_are_named(saved, name: str):
    """Assert rows as they are asked for, in any order, as those of the whole."""
    model, tensors = saved("llama")
    short = SHORT_NAMES.get(name, name)
    change = rounded_weights(model, f"{name}:embedding_and_head")
    whole = dequantised(tensors["model.embed_tokens.weight"], short)
    rows = np.array([31, 0, 49, 31, 7])
    np.testing.assert_array_equal(change.model.layout.embedding(rows), whole[rows])
    head = dequantised(tensors["lm_head.weight"], short)
    np.testing.assert_array_equal(change.model.layout.head(9, 50), head[9:50])
    for layer in range(2):
        before, after = (m.raw_parameters(layer) for m in (model, change.model))
        assert all(np.array_equal(before[key], after[key]) for key in before)
    # the default leaves both alone
    plain = rounded_weights(model, name).model.layout
    np.testing.assert_array_equal(plain.head(0, 50), tensors["lm_head.weight"])


def test_a_group_of_another_network_is_refused(saved):
    """Assert it of a matrix and of a group; today's 0.0 hid that nothing was there."""
    model, _ = saved("mamba2")
    for group in ("x_proj", "attention", "router", "q_norm", "mamba1"):
        with pytest.raises(UsageError, match=group) as caught:
            rounded_weights(model, f"bf16:{group}")
        assert "in_proj" in caught.value.hint
        assert "mixers" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_parameter_of_every_family_has_its_groups(saved, family, name):
    """Assert that each stored matrix is known as one, and that each group rounds."""
    model, _ = saved(family, name)
    layout = model.layout
    present = list(parameters_of(layout))
    for i, sizes in enumerate(layout.config.sublayers):
        arrays = layout.layer(i)
        for parameter, part in layout.parts[i].items():
            stored = [layout.stored(one) for one in part.names]
            if is_matrix(sizes.kind, parameter):
                assert all(array.ndim in (2, 3) for array in stored)
                assert arrays[parameter].ndim >= 2
    groups = set().union(*(groups_of(*one) for one in present))
    for group in groups:
        change = rounded_weights(model, f"bf16:{group}")
        assert set(change.rounded) == {
            f"{kind}.{parameter}" if kind != "outside" else parameter
            for kind, parameter in present
            if group in groups_of(kind, parameter)
        }
        for i, sizes in enumerate(layout.config.sublayers):
            before, after = layout.layer(i), change.model.layout.layer(i)
            moved = {k for k in before if not np.array_equal(before[k], after[k])}
            assert moved <= {k for k in before if group in groups_of(sizes.kind, k)}
