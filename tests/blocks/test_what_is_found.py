"""Assert that blocks are found wherever a training loop put their weights."""

import os

import pytest


pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from lyapunov import LyapunovError
from lyapunov._errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UsageError,
)
from lyapunov.mixers import KINDS, blocks_of_file
from lyapunov.mixers._file import chosen_set

from .files import OPTIONS, network, saved


NESTED = {
    "bare": ("", lambda state: state),
    "state_dict": ("state_dict", lambda state: {"epoch": 3, "state_dict": state}),
    "model_state_dict": (
        "model_state_dict",
        lambda state: {"model_state_dict": state, "loss": torch.tensor(0.5).item()},
    ),
    "model": ("model", lambda state: {"model": state, "args": {"lr": 0.1}}),
    "ema": ("ema.shadow", lambda state: {"ema": {"shadow": state, "decay": 0.9}}),
    "module": ("", lambda state: {f"module.{k}": v for k, v in state.items()}),
    "compiled": ("", lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}),
    "Parameters": ("", lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()}),
}


@pytest.mark.parametrize("ending", ["pth", "pt", "ckpt", "bin"])
@pytest.mark.parametrize("name", NESTED)
def test_every_nesting(tmp_path, name, ending):
    weight_set, wrap = NESTED[name]
    path = saved(tmp_path / f"weights.{ending}", wrap(network().state_dict()))
    blocks = blocks_of_file(path)
    assert [(one.name, one.kind, one.weight_set) for one in blocks] == [
        ("first", "mamba1", weight_set),
        ("second", "mamba2", weight_set),
        ("third", "mamba3", weight_set),
    ]


def test_safetensors_and_what_is_said(tmp_path):
    """Sizes as the modules were made; parameters as torch counts; what is open is all
    of what a live module would have to say."""
    made = network()
    save_file(made.state_dict(), tmp_path / "weights.safetensors")
    blocks = blocks_of_file(tmp_path / "weights.safetensors")
    sizes = {
        "first": {"d_model": 8, "d_inner": 16, "d_state": 4, "d_conv": 4, "dt_rank": 2},
        "second": {"d_model": 8, "d_inner": 16, "heads": 4, "d_conv": 4},
        "third": {"d_model": 8, "d_inner": 16, "d_state": 8, "heads": 4}
        | {"groups": 1, "angles": 2},
    }
    for one in blocks:
        module = made.get_submodule(one.name)
        assert one.sizes == sizes[one.name]
        assert one.n_params == sum(p.numel() for p in module.parameters())
        assert one.dtypes == ("fp32",)
        assert set(one.open) == set(OPTIONS[one.name])
        assert one.others == ()
    assert "1, 2, 4 fit the shapes" in blocks[1].open["groups"]
    assert blocks[2].said == {"groups": 1}


def test_every_option_of_every_kind_has_a_stand_in():
    """Assert that listing never fails on a new option."""
    from lyapunov.mixers._file import _stand_in

    for known in KINDS.values():
        for name, option in known.options.items():
            value = _stand_in(known, name)
            assert option.read(value) == value


def test_several_sets_and_an_optimiser(tmp_path):
    """An optimiser's moments are shaped like weights, and are none."""
    made = network("first")
    made.get_submodule("first")(torch.randn(1, 4, 8)).sum().backward()
    optimiser = torch.optim.AdamW(made.parameters())
    optimiser.step()
    state = made.state_dict()
    ema = {name: value.clone() for name, value in state.items()}
    whole = {"model": state, "ema": ema, "optimizer": optimiser.state_dict()}
    blocks = blocks_of_file(saved(tmp_path / "w.pt", whole))
    assert [one.weight_set for one in blocks] == ["model", "ema"]
    assert [one.weight_set for one in chosen_set(blocks, "ema")] == ["ema"]
    with pytest.raises(UsageError, match="2 sets of weights: model, ema") as refused:
        chosen_set(blocks, None)
    assert "--weight-set model" in refused.value.hint
    with pytest.raises(UsageError, match="'other'"):
        chosen_set(blocks, "other")


def test_a_dictionary_that_holds_itself(tmp_path):
    whole: dict = {"model": network("first").state_dict()}
    whole["again"] = whole
    assert len(blocks_of_file(saved(tmp_path / "w.pt", whole))) == 1


def test_whole_modules_are_not_unpickled(tmp_path):
    """Of a class of somebody's, and of torch's own classes alone."""
    path = saved(tmp_path / "w.pt", network("first"))
    with pytest.raises(UnsafeCheckpointError, match=r"files\.Network") as refused:
        blocks_of_file(path)
    assert "torch.save(model.state_dict(), ...)" in refused.value.hint
    path = saved(tmp_path / "w.pt", torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(UnsupportedCheckpointError, match="Sequential") as refused:
        blocks_of_file(path)
    assert "torch.save(model.state_dict(), ...)" in refused.value.hint


class Bomb:
    """Leaves a folder or a file where it is unpickled."""

    def __init__(self, function, *arguments):
        self.done = function, arguments

    def __reduce__(self):
        return self.done


def test_a_bomb_beside_the_weights_is_not_run(tmp_path):
    """What a training checkpoint may name is passed over, anything else refused."""
    ran = str(tmp_path / "ran")
    state = network("first").state_dict()
    path = saved(tmp_path / "w.pt", {"model": state, "extra": Bomb(os.mkdir, ran)})
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        blocks_of_file(path)
    path = saved(tmp_path / "w.pt", {"model": state, "extra": Bomb(open, ran, "w")})
    assert [one.name for one in blocks_of_file(path)] == ["first"]
    assert not os.path.lexists(ran)


def test_layout_of_torch_before_1_6(tmp_path):
    path = tmp_path / "w.pth"
    state = network("first").state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedCheckpointError, match=r"before 1\.6") as refused:
        blocks_of_file(path)
    assert "torch.save" in refused.value.hint


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_truncated(tmp_path, keep):
    path = saved(tmp_path / "w.pth", network("first").state_dict())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(LyapunovError) as refused:
        blocks_of_file(path)
    assert refused.value.hint


def test_no_blocks(tmp_path):
    """The nearest is named with what it lacks; else what tensors there are."""
    state = network("first").state_dict()
    for missing in ("first.A_log", "first.D"):
        del state[missing]
    with pytest.raises(UsageError, match="first comes near Mamba-1 and lacks A_log"):
        blocks_of_file(saved(tmp_path / "w.pt", state))
    state = torch.nn.Linear(2, 2).state_dict()
    with pytest.raises(UsageError, match="none of its 2 tensors"):
        blocks_of_file(saved(tmp_path / "w.pt", state))


def test_both_kinds_under_one_name(tmp_path):
    state = network("first").state_dict()
    state["first.dt_bias"] = torch.zeros(16)
    with pytest.raises(UsageError, match="Mamba-1 block and of a Mamba-2 block"):
        blocks_of_file(saved(tmp_path / "w.pt", state))


def test_shapes_that_do_not_fit(tmp_path):
    state = network("first").state_dict()
    state["first.x_proj.weight"] = torch.zeros(11, 16)
    (block,) = blocks_of_file(saved(tmp_path / "w.pt", state))
    with pytest.raises(CorruptCheckpointError, match="x_proj has shape"):
        _ = block.sizes


@pytest.mark.parametrize("shape", [(), (0,), (2, 2), (10**6,)])
@pytest.mark.parametrize("name", ["D", "A_log", "dt_bias", "in_proj.weight"])
def test_odd_shapes_are_refused_for_people(tmp_path, shape, name):
    state = network("second").state_dict()
    state[f"second.{name}"] = torch.zeros(shape)
    (block,) = blocks_of_file(saved(tmp_path / "w.pt", state))
    with pytest.raises(CorruptCheckpointError, match="and is none"):
        _ = block.open
