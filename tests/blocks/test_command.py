"""Assert what the command says of weights without a configuration."""

import json

import numpy as np
import pytest
from click.testing import CliRunner


pytest.importorskip("torch")

from lyapunov.command._block_options import read_value
from lyapunov.command._cli import main

from .files import OPTIONS, drawn, network, saved


def run(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    return saved(folder / "w.ckpt", {"state_dict": network().state_dict(), "epoch": 3})


def test_list_as_text(file):
    result = run(file, "--list")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "weights under state_dict" in lines
    (row,) = [line.split() for line in lines if line.startswith("  second ")]
    assert row[1:6] == ["mamba2", "d_model=8", "d_inner=16", "heads=4", "d_conv=4"]
    assert row[6:8] == ["940", "fp32"]
    for options in OPTIONS.values():
        for name in options:
            assert f"  {name}: " in result.stdout


def test_list_as_json(file):
    result = run(file, "--list", "--json")
    assert result.exit_code == 0
    (one,) = json.loads(result.stdout)["files"]
    assert one["file"] == str(file)
    assert [block["kind"] for block in one["blocks"]] == ["mamba1", "mamba2", "mamba3"]
    assert one["blocks"][0]["sizes"]["dt_rank"] == 2
    assert set(one["blocks"][1]["open"]) == set(OPTIONS["second"])


def test_without_more_the_command_says_what_to_type(file):
    result = run(file)
    assert result.exit_code == 2
    assert "no config.json beside" in result.stderr
    assert "3 blocks (Mamba-1, Mamba-2, Mamba-3) can be checked alone" in result.stderr
    assert "--inputs captured.npz --block-option activation=..." in result.stderr
    result = run(file, "--json")
    assert json.loads(result.stdout)["error"]["code"] == "checkpoint_not_found"


def test_a_file_without_blocks_is_refused_as_before(tmp_path):
    path = saved(tmp_path / "w.pth", network("first").embed.state_dict())
    result = run(path)
    assert result.exit_code == 2
    assert "copy it from where the weights come from" in result.stderr


def test_a_whole_module_is_told_how_to_be_saved(tmp_path):
    path = saved(tmp_path / "w.pt", network("first"))
    for arguments in ([], ["--list"]):
        result = run(path, *arguments)
        assert result.exit_code == 2
        assert "torch.save(model.state_dict(), ...)" in result.stderr


def test_beside_a_configuration_its_own_error_is_told(tmp_path):
    path = saved(tmp_path / "w.pt", network("first").state_dict())
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    result = run(path)
    assert result.exit_code == 2
    assert "unheard_of" in result.stderr


def test_checked_on_what_was_captured(tmp_path):
    path = saved(tmp_path / "w.pth", network("first").state_dict())
    np.savez(tmp_path / "c.npz", first=drawn(8).numpy())
    typed = ["--block-option", "activation=silu"]
    typed += ["--block-option", "weightless_norm_epsilon=none"]
    report = tmp_path / "r.json"
    settings = ["--effort", "quick", "--precision", "bf16", "-o", report]
    inputs = ["--inputs", tmp_path / "c.npz"]
    result = run(path, *inputs, *typed, *settings)
    assert result.exit_code == 0, result.output
    assert "not verified: no output was given" in report.read_text()
    assert "first" in result.stdout
    again = run("--show", report)
    assert again.exit_code == 0
    assert "first" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--list", "--precision", "bf16"], "--precision is not for --list"),
        (["--random-inputs", "1", "--tokens", "random"], "--tokens is not for a check"),
        (["--random-inputs", "1", "--revision", "x"], "--revision is not for a check"),
        (["--block-option", "chunk"], "takes NAME=VALUE, not 'chunk'"),
        (["--block-option", "chunk="], "takes NAME=VALUE"),
        (["--block-option", "a=1", "--block-option", "a=2"], "a stands twice"),
        (["--random-inputs", "1"], "the tensors do not say activation of first"),
        (["--weight-set", "ema", "--list"], "no set of weights with blocks is 'ema'"),
        (["--block-option", "chunk=4"], "given no inputs"),
    ],
)
def test_what_is_refused(file, arguments, says):
    result = run(file, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "hint: " in result.stderr


def test_no_file():
    for option in (["--list"], ["--random-inputs", "1"]):
        result = run(*option)
        assert result.exit_code == 2
        assert "file" in result.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("256", 256),
        ("1e-5", 1e-5),
        ("true", True),
        ("False", False),
        ("none", None),
        ("0,inf", [0, float("inf")]),
        ("silu", "silu"),
    ],
)
def test_values_as_typed(text, value):
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)
