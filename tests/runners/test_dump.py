"""Dumps: what was written is read, any stack's words are enough, lies are refused."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import DumpError
from lyapunov.implementations import Emulated, File, mamba_ssm_prefill, write_dump
from lyapunov.implementations._trace import HeadRecord
from oracles.checkpoints.hard import SIZES
from oracles.kernels import mamba1 as kernel
from oracles.mutants.mamba1 import make

from ..executions.conftest import checkpoint
from ..helpers import not_none


__all__ = ["checkpoint"]

SEQ = 40
HALF = SEQ // 2


@pytest.fixture(scope="module")
def setting(checkpoint):
    folder, weights, _ = checkpoint("plain")
    tokens = np.random.default_rng(3).integers(0, SIZES.vocab, SEQ)
    return lyapunov.load(str(folder)), weights, tokens


def kernel_arrays(weights, tokens, prefix="", precision="bf16", stored=True, **wrong):
    """What NumPy's kernel did, layer 1 of 2 possibly broken, as a user dumps it."""
    rows = weights["backbone.embeddings.weight"].astype(np.float32)
    before = kernel.cast(rows, precision)[tokens]
    hidden, arrays = np.zeros_like(before), {}
    for i in range(SIZES.layers):
        held = kernel.held(kernel.layer_weights(weights, i), precision)
        layer = make(held, precision, **(wrong if i == 1 else {}))
        seen = layer.run(before, hidden)
        at = f"{prefix}layer.{i}."
        arrays[at + "input"] = seen["residual"]
        arrays[at + "output"] = (seen["out"].view(np.uint32) >> 16).astype(np.uint16)
        if stored:
            arrays |= {f"{at}stored.{k}": seen[k] for k in ("xz", "conv", "gated")}
        before, hidden = seen["residual"], seen["out"]
    return arrays


def settings(tokens, **more):
    return {
        "format": "lyapunov-dump-1",
        "implementation": "mamba_ssm",
        "precision": "bf16",
        "tokens": tokens,
        **more,
    }


def test_what_was_written_is_read(setting, tmp_path):
    """Assert every array of a trace, bit for bit, and its logits; two runs a file."""
    model, _, tokens = setting
    runner = Emulated(mamba_ssm_prefill("bf16"))
    records: list[Any] = list(lyapunov.trace(model, tokens, runner=runner))
    path = tmp_path / "dump.npz"
    given: Any = {"implementation": "mamba_ssm", "precision": "bf16"}
    write_dump(path, iter(records), tokens, vocab_size=SIZES.vocab, **given)
    write_dump(
        path, iter(records), tokens, kind="chunks:7", name="b", append=True, **given
    )
    assert {k: str(v) for k, v in File(path).runs.items()} == {
        "whole": "whole",
        "b": "chunks:7",
    }
    for run in ("whole", "b"):
        read = list(lyapunov.trace(model, tokens, runner=File(path, run)))
        assert len(read) == SIZES.layers + (run == "whole")
        for mine, theirs in zip(records, read, strict=False):
            if isinstance(theirs, HeadRecord):
                expected = mine.logits(3, 30)
                np.testing.assert_array_equal(theirs.logits(3, 30), expected)
                continue
            for name in ("layer", "kind", "residual", "hidden", "output"):
                np.testing.assert_array_equal(
                    getattr(mine, name), getattr(theirs, name)
                )
            for site, array in mine.stored.items():
                np.testing.assert_array_equal(array, theirs.stored[site])
    # 16-bit tensors take 16 bits
    with np.load(path) as arrays:
        assert arrays["layer.0.stored.xz"].dtype == np.uint16
        assert arrays["layer.1.stored.residual"].dtype == np.float32


@pytest.mark.slow
def test_a_users_runs_are_judged(setting, tmp_path):
    """Assert rounding for right kernels; a lost state and window where they are lost.

    The text in two calls, the second without the state or without the window.
    """
    model, weights, tokens = setting
    arrays = settings(tokens, state_precision="fp32") | kernel_arrays(weights, tokens)
    arrays |= kernel_arrays(weights, tokens, "run.right.", order="block_scan")
    for name, mutation in (("state", "state"), ("window", "window")):
        arrays |= kernel_arrays(
            weights, tokens, f"run.{name}.", mutation=f"{mutation} forgotten half way"
        )
        arrays[f"run.{name}.kind"] = f"chunks:{HALF}"
    path = tmp_path / "dump.npz"
    np.savez(path, **arrays)
    report = lyapunov.audit(model, path)
    verdicts = [v.verdict for v in report.variants]
    assert verdicts == ["consistent with rounding"] * 2 + ["bug"] * 2
    lost = [v.first_violation for v in report.variants[2:]]
    assert [
        (not_none(x).layer, not_none(x).token, not_none(x).tensor) for x in lost
    ] == [
        (1, HALF, "gated"),
        (1, HALF, "conv"),
    ]
    assert report.summary.exit_code == 1
    assert {f.code for f in report.findings} == {"LYA003"}


@pytest.mark.slow
def test_inputs_and_outputs_alone_are_enough(setting, tmp_path):
    """Assert it without stored tensors, without layer 0, and without any logits.

    Without a tensor of its own the lost state shows where the layer ends; the addition
    between two sublayers is held to its rounding still.
    """
    model, weights, tokens = setting
    arrays = settings(tokens, kind=f"chunks:{HALF}", state_precision="fp32")
    arrays |= kernel_arrays(
        weights, tokens, stored=False, mutation="state forgotten half way"
    )
    path = tmp_path / "dump.npz"
    np.savez(path, **arrays)
    (run,) = lyapunov.audit(model, path).variants
    first = not_none(run.first_violation)
    assert (run.verdict, first.layer, first.tensor) == ("bug", 1, "out")
    assert first.token >= HALF
    added = {k: v for k, v in arrays.items() if not k.startswith("layer")}
    added |= kernel_arrays(weights, tokens, stored=False)
    added["layer.1.input"] = added["layer.1.input"] + np.float32(2**-10)
    np.savez(path, **added)
    (run,) = lyapunov.audit(model, path).variants
    assert not_none(run.first_violation).tensor == "residual"
    np.savez(path, **{k: v for k, v in added.items() if "layer.1" not in k})
    (run,) = lyapunov.audit(model, path).variants
    assert (run.verdict, len(run.layers)) == ("consistent with rounding", 1)


@pytest.mark.slow
def test_the_wrong_tokens_are_found(setting, tmp_path):
    """Assert that a stream that starts from other tokens is a bug of the embedding."""
    model, weights, tokens = setting
    other = tokens.copy()
    other[9] = (other[9] + 1) % SIZES.vocab
    path = tmp_path / "dump.npz"
    np.savez(path, **settings(tokens), **kernel_arrays(weights, other))
    (run,) = lyapunov.audit(model, path).variants
    first = not_none(run.first_violation)
    assert (first.tensor, first.layer, first.token) == ("embedding", 0, 9)


class Bomb:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


# what is changed -> words of the error
WRONG = {
    "no format": ({"format": None}, "has no 'format'"),
    "another format": ({"format": "lyapunov-dump-9"}, "lyapunov-dump-9"),
    "another stack": ({"implementation": "rwkv"}, "no flow is known"),
    "a precision": ({"precision": "int4"}, "int4"),
    "no tokens": ({"tokens": None}, "has no 'tokens'"),
    "tokens of floats": ({"tokens": np.zeros(4)}, "dtype float64"),
    "tokens beyond": ({"tokens": np.full(SEQ, 99)}, "beyond the vocabulary"),
    "negative tokens": ({"tokens": np.full(SEQ, -1)}, "negative"),
    "no cache": ({"kind": "chunks:20"}, "does not say in which format"),
    "a way": ({"kind": "sideways"}, "sideways"),
    "a key": ({"layer.0.inptu": np.zeros(3)}, "layer.0.inptu"),
    "a site": ({"layer.0.stored.y": np.zeros((SEQ, 32))}, "no stored tensor"),
    "a layer": ({"layer.7.output": np.zeros((SEQ, 16))}, "2 sublayers"),
    "a width": ({"layer.0.output": np.zeros((SEQ, 17))}, "(40, 17)"),
    "a length": ({"layer.0.output": np.zeros((SEQ - 1, 16))}, "(39, 16)"),
    "integers": ({"layer.0.output": np.zeros((SEQ, 16), int)}, "int64"),
    "objects": ({"layer.0.output": np.array([Bomb()] * 3)}, "may run code"),
    "no output": ({"layer.0.output": None}, "has no output"),
    "no input": ({"layer.0.input": None}, "has no input"),
    "no layers": (
        {f"layer.{i}.{k}": None for i in (0, 1) for k in ("input", "output")},
        "no array of any layer",
    ),
    "both": ({"layer.0.hidden": np.zeros((SEQ, 16))}, "both input and hidden"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(setting, tmp_path, what, capsys):
    """Assert an error that names what was found, and a hint; nothing is unpickled."""
    from lyapunov._errors import LyapunovError

    model, weights, tokens = setting
    changes, words = WRONG[what]
    arrays = settings(tokens) | kernel_arrays(weights, tokens, stored=False) | changes
    path = tmp_path / "dump.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(LyapunovError) as error:
        lyapunov.audit(model, path)
    assert words in error.value.message
    assert error.value.hint
    assert "unpickled" not in capsys.readouterr().out


def test_sizes_that_lie_take_no_memory(setting, tmp_path):
    """Assert that a header of a terabyte, a cut file and no zip at all are refused."""
    model, weights, tokens = setting
    path = tmp_path / "dump.npz"
    arrays = settings(tokens) | kernel_arrays(weights, tokens, stored=False)
    np.savez(path, **arrays)
    whole = path.read_bytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**37,)}
    )
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("layer.1.stored.xz.npy", header.getvalue())
    with pytest.raises(DumpError, match="its size does not"):
        File(path).check(model)
    for broken in (whole[: len(whole) // 2], b"no zip", b""):
        path.write_bytes(broken)
        with pytest.raises(DumpError):
            File(path)
    with pytest.raises(DumpError, match="no file"):
        File(tmp_path / "nothing.npz")


@pytest.mark.slow
def test_the_recipe_for_torch_works(setting, tmp_path):
    """Assert that the ten lines of the module's docstring give a dump that is right."""
    import torch

    from lyapunov.implementations.dump import file
    from lyapunov.implementations.transformers._built import from_weights

    model, _, tokens = setting
    network = from_weights(model, "bf16", "cpu")[1]
    recipe = not_none(file.__doc__).partition("```python\n")[2].partition("```")[0]
    recipe = recipe.replace("dump.npz", str(tmp_path / "dump.npz"))
    with torch.no_grad():
        ids = torch.as_tensor(tokens[None])
        exec(recipe, {"np": np, "model": network, "ids": ids})
    (run,) = lyapunov.audit(model, tmp_path / "dump.npz").variants
    assert run.verdict == "consistent with rounding"
    assert len(run.layers) == SIZES.layers


@pytest.mark.slow
def test_the_command_audits_a_dump(setting, tmp_path, capsys):
    """Assert exit codes 1 and 2, the document, and the line of an error."""
    from click.testing import CliRunner

    from lyapunov.command._cli import main

    model, weights, tokens = setting
    path = tmp_path / "dump.npz"
    arrays = settings(tokens) | kernel_arrays(
        weights, tokens, mutation="state forgotten half way"
    )
    np.savez(path, **arrays)
    run = lambda *more: CliRunner().invoke(
        main, [model.source, "--audit", str(path), "--no-progress", *more]
    )
    found = run("--json")
    assert found.exit_code == 1, found.output
    document = json.loads(found.stdout)
    assert document["kind"] == "audit"
    assert document["summary"]["verdict"] == "bug"
    assert document["variants"][0]["first_violation"]["tensor"] == "gated"
    shown = run("--exit-zero").stdout
    assert "layer 1, token 20, gated" in " ".join(shown.split())
    np.savez(path, **settings(tokens, precision="int4"))
    failed = run()
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: ")
    assert "hint: " in failed.stderr
