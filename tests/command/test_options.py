"""Assert that options reach the check, and that bad ones are refused at once."""

import os
import subprocess
import sys

import numpy as np
import pytest


def test_defaults(run, fake):
    result = run("model")
    assert result.exit_code == 0, result.output
    model, tokens, options = fake.calls[0]
    assert (model.source, fake.opened) == ("model", [("model", None)])
    assert tokens.ids.shape == (1, 512)
    assert "precisions" not in options, "they are the library's own"
    assert tokens.source.startswith("random")
    for name, value in {
        "state_precision": None,
        "mode": "prefill",
        "layers": None,
        "measure": "emulated",
        "constants": "documented",
        "device": None,
        "effort": "standard",
        "seed": 0,
        "fail_on": "error",
        "select": (),
        "ignore": (),
        "allow_partial": False,
        "exit_zero": False,
    }.items():
        assert options[name] == value


def test_what_an_effort_left_out_is_said(run, fake):
    """Assert that it is told once, on stderr; of the default with -v alone."""
    assert "left out" not in run("model").stderr
    told = "--effort standard left out the floor, T2, T4\n"
    assert run("model", "-v").stderr.count(told) == 1
    told = "--effort quick left out T0 and T1, the floor, T2, T4, growth\n"
    assert run("model", "--effort", "quick").stderr.count(told) == 1
    assert "left out" not in run("model", "--effort", "quick", "-q").stderr
    assert "left out" not in run("model", "--effort", "full", "-v").stderr


def test_no_argument_checks_the_bundled_model(run, fake):
    assert run().exit_code == 0
    assert fake.opened == [(None, None)]


def test_every_option_reaches_the_check(run, fake):
    given = "--revision main --tokens random --length 16 --batch 3 --seed 5"
    given += " --precision fp32 --precision bf16 --precision bf16"
    given += " --state-precision bf16 --layers 4,0-2 --measure transformers"
    given += " --constants measured --effort full"
    given += " --device cpu --fail-on warning --select lya001,LYA004 --ignore LYA008"
    given += " --exit-zero --allow-partial --against other"
    given += " --round-weights bf16 --round-weights bf16:all --round-weights fp16:D"
    assert run("model", *given.split()).exit_code == 0
    assert fake.opened == [("model", "main")]
    _, tokens, options = fake.calls[0]
    assert tokens.ids.shape == (3, 16)
    assert tokens.source == "random (seed 5)"
    del options["progress"]
    assert options == {
        "precisions": ("fp32", "bf16"),
        "state_precision": "bf16",
        "mode": "prefill",
        "layers": (0, 1, 2, 4),
        "measure": "transformers",
        "constants": "measured",
        "effort": "full",
        "device": "cpu",
        "against": "other",
        "round_weights": ("bf16:all", "fp16:D"),
        "quantise_activations": None,
        "seed": 5,
        "fail_on": "warning",
        "select": ("LYA001", "LYA004"),
        "ignore": ("LYA008",),
        "allow_partial": True,
        "exit_zero": True,
    }


def test_tokens_come_from_a_file(run, fake, tmp_path):
    np.save(tmp_path / "t.npy", np.arange(12).reshape(2, 6))
    assert run("model", "--tokens", tmp_path / "t.npy").exit_code == 0
    assert fake.calls[0][1].ids.tolist() == np.arange(12).reshape(2, 6).tolist()
    assert fake.calls[0][1].source == str(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "train"], "train"),
        (["--effort", "half"], "half"),
        (["--state-precision", "fp64"], "fp64"),
        *(
            (["--precision", name], f"'{name}' is not one of 'bf16', 'fp16', 'fp32'")
            for name in ("fp64", "tf32", "fp8_e4m3", "fp8_e5m2")
        ),
        (["--precision", "int8"], "int8"),
        (["--round-weights", "fp32"], "weights cannot be rounded to 'fp32'"),
        (["--round-weights", "bf16:A"], "no group of weights 'A'"),
        (["--layers", "a"], "--layers takes numbers and ranges"),
        (["--layers", "0-"], "--layers takes numbers and ranges"),
        (["--layers", ""], "--layers takes numbers and ranges"),
        (["--layers", "5-2"], "runs backwards"),
        (["--layers", "0-999999999999"], "too long"),
        (["--length", "0"], "--length"),
        (["--length", "1"], "at least 2"),
        (["--batch", "many"], "--batch"),
        (["--seed", "-1"], "--seed"),
        (["--select", "E501"], "no finding has the code 'E501'"),
        (["--ignore", "LYA999"], "LYA999"),
        (["--fail-on", "note"], "note"),
        (["--tokens", "random", "--text", "hi"], "exclude each other"),
        (["-q", "-v"], "exclude each other"),
        (["--text", "hello"], "no tokenizer"),
        (["--tokens", "absent.npy"], "no such file of tokens"),
        (["--no-such-option"], "--no-such-option"),
        (["--explain", "LYA999"], "LYA999"),
    ],
)
def test_bad_requests_end_with_2_one_line_and_a_hint(run, fake, arguments, says):
    result = run("model", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") or says.startswith("too long")
    assert says in error
    assert hint.startswith("hint: ")
    assert fake.calls == []


SLIM = "import sys; sys.argv[1:] = {args!r}\nfrom lyapunov.command._cli import main\n"
SLIM += "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
SLIM += "heavy = {{'jax', 'numpy', 'matplotlib', 'rich', 'torch'}} & set(sys.modules)\n"
SLIM += "assert not heavy, heavy\nassert code == {code}, code\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["--explain", "LYA003"], 0),
        (["--list-architectures"], 0),
        (["--no-such-option"], 2),
        (["--precision", "fp64"], 2),
        (["-o", "no/such/folder/x.json"], 2),
    ],
)
def test_light_answers_do_not_load_what_is_heavy(arguments, code):
    script = SLIM.format(args=arguments, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_jax_is_prepared_for_fp64(run, fake):
    run("model")
    import jax

    assert jax.config.read("jax_enable_x64")


@pytest.mark.parametrize(("given", "then"), [(None, "false"), ("true", "true")])
def test_memory_of_a_gpu_is_left_to_torch(run, fake, monkeypatch, given, then):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    run("model")
    assert os.environ[name] == then
