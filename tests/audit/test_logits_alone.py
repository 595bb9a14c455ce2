"""Dumps of logits alone: rounding is in range and never more, what is none is told.

The logits are torch's: transformers in bf16 on a small Mamba-1, as a server returns
them, with faults planted in the run or in what was written down.
"""

import copy
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lyapunov
from lyapunov._errors import DumpError
from lyapunov.implementations.dump.file import File
from lyapunov.implementations.transformers._built import from_weights
from lyapunov.questions._audit_verdict import Z_LIMIT
from lyapunov.results._audit import IN_RANGE, SUSPICIOUS

from ..helpers import not_none, parted
from .conftest import SEQ


LATE, FEW = SEQ // 2, 5


@pytest.fixture(scope="module")
def served(setting):
    """The model, its network in bf16 torch, a text, and the network's logits of it."""
    model, _, tokens = setting
    network = from_weights(model, "bf16", "cpu")[1]
    return model, network, tokens, logits_of(network, tokens)


def logits_of(network, tokens) -> np.ndarray:
    with torch.no_grad():
        return network(torch.as_tensor(tokens[None])).logits[0].float().numpy()


def settings(tokens, **more):
    return {
        "format": "lyapunov-dump-1",
        "implementation": "transformers",
        "precision": "bf16",
        "tokens": tokens,
        **more,
    }


def normalised(logits):
    wide = torch.as_tensor(logits)
    return torch.log_softmax(wide, -1).numpy()


def most_likely(logits):
    found = torch.as_tensor(normalised(logits)).topk(FEW, -1)
    return found.values.numpy(), found.indices.numpy()


def faults(network, tokens, logits) -> dict[str, dict[str, np.ndarray]]:
    """Runs that are wrong: name -> its arrays."""
    forgetful = logits.copy()
    forgetful[LATE:] = logits_of(network, tokens[LATE:])
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.backbone.layers[1].mixer.x_proj.weight.mul_(1.25)
    one_late = np.concatenate([tokens[:1], tokens[:-1]])
    spoiled = logits.copy()
    spoiled[LATE, 3] = np.nan
    large = torch.as_tensor(logits * 1e5).half()
    values, ids = most_likely(forgetful)
    hot, hot_ids = most_likely(logits / 0.8)
    return {
        "state lost": {"logits": forgetful},
        "state lost, few": {"top_logprobs": values, "top_ids": ids},
        "another weight": {"logits": logits_of(other, tokens)},
        "tokens shifted": {"logits": logits_of(network, one_late)},
        "rows shifted": {"logits": np.roll(logits, -1, axis=0)},
        "temperature": {"logits": logits / 0.8},
        "temperature, all": {"logprobs": normalised(logits / 0.8)},
        "temperature, few": {"top_logprobs": hot, "top_ids": hot_ids},
        "probabilities": {"logits": normalised(logits)},
        "no number": {"logits": spoiled},
        "too large for fp16": {"logits": large.numpy()},
    }


WORDS = {
    "temperature": "1.25 times the reference's: a temperature?",
    "temperature, all": "1.25 times the reference's: a temperature?",
    "probabilities": "logprobs",
    "rows shifted": "of the token behind it",
    "no number": "1 of them are infinite or NaN",
    "too large for fp16": "65,504",
}
FIRST = {"state lost": LATE, "state lost, few": LATE, "no number": LATE}


@pytest.fixture(scope="module")
def runs(served, tmp_path_factory):
    """Entries of one audit of right and wrong runs, by name, and its report."""
    model, network, tokens, logits = served
    values, ids = most_likely(logits)
    ragged = ids.copy()
    ragged[::2, -1] = -1
    right = {
        "logits": {"logits": logits},
        "in bf16": {"logits": (logits.view(np.uint32) >> 16).astype(np.uint16)},
        "logprobs": {"logprobs": normalised(logits)},
        "few": {"top_logprobs": values, "top_ids": ragged},
        "one": {"top_logprobs": values[:, :1], "top_ids": ids[:, :1]},
        "last": {"logits": logits[LATE:], "positions": np.arange(LATE, SEQ)},
    }
    arrays = settings(tokens)
    # a cell is a name of a way, so that entries are told apart
    names = {}
    for name, own in {**right, **faults(network, tokens, logits)}.items():
        run = f"r{len(names)}"
        names[f"chunks:{len(names) + 2}"] = name
        arrays[f"run.{run}.kind"] = f"chunks:{len(names) + 1}"
        arrays |= {f"run.{run}.{key}": array for key, array in own.items()}
    path = tmp_path_factory.mktemp("dumps") / "logits.npz"
    np.savez(path, **arrays)
    report = lyapunov.audit(model, path)
    return {names[v.variant]: v for v in report.variants}, report, list(right)


@pytest.mark.slow
def test_right_logits_are_in_range_and_never_more(runs):
    """Assert z near 1 for each form, sigma near the distance, and the word for it."""
    found, _, right = runs
    for name in right:
        run = found[name]
        held = run.logits[0]
        assert (run.verdict, held.beyond, held.looks_like) == (IN_RANGE, 0, None), name
        # of a single likely token most rows have next to no error
        assert (0.2 if name == "one" else 0.5) < held.z_rms < 1.5
        assert held.z_rms <= run.z <= Z_LIMIT / 2
        assert (run.layers, run.violations, run.bounded_share) == ([], 0, None)
        assert held.tokens == run.tokens == (SEQ - LATE if name == "last" else SEQ)
        if held.sigma is not None:
            assert 0.5 < held.rel_l2 / held.sigma < 2
    # forms of one run agree; its entropy is not touched by writing 16-bit logits down
    logits = found["logits"].logits[0]
    for name in ("in bf16", "logprobs"):
        assert found[name].logits[0].kl_mean == pytest.approx(logits.kl_mean, rel=1e-3)
        assert found[name].logits[0].rel_l2 == pytest.approx(logits.rel_l2, rel=1e-3)
    assert found["few"].logits[0].kl_mean <= logits.kl_mean
    assert found["one"].logits[0].flips == logits.flips
    # and are held against the first
    assert found["in bf16"].logits[1].against == "chunks:2"
    assert found["in bf16"].logits[1].rel_l2 == 0


@pytest.mark.slow
def test_figures_are_those_of_numpy(served, runs):
    """Assert KL and flips against fp64 NumPy on the reference's own logits."""
    model, _, tokens, logits = served
    _, head = parted(lyapunov.trace(model, tokens))
    reference = np.asarray(head.logits(0, model.config.vocab_size))[0]
    own = reference - np.log(np.exp(reference).sum(-1, keepdims=True))
    other = normalised(logits.astype(np.float64))
    kl = np.sum(np.exp(own) * (own - other), axis=-1)
    found = runs[0]["logits"].logits[0]
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-9)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-9)
    assert found.flips == np.sum(own.argmax(-1) != other.argmax(-1))
    # of five tokens and the rest together, term by term
    ids = most_likely(logits)[1]
    ids = [row[: FEW - (i % 2 == 0)] for i, row in enumerate(ids)]
    few = []
    for p, q, row in zip(np.exp(own), np.exp(other), ids, strict=True):
        parts = [(p[i], q[i]) for i in row]
        parts.append((1 - p[row].sum(), 1 - q[row].sum()))
        few.append(sum(a * np.log(a / b) for a, b in parts))
    assert runs[0]["few"].logits[0].kl_mean == pytest.approx(np.mean(few), rel=1e-4)


@pytest.mark.slow
def test_planted_faults_are_told(runs):
    """Assert for each: suspicious, from its first token on, in words where known."""
    found, report, right = runs
    wrong = [name for name in found if name not in right]
    for name in wrong:
        run = found[name]
        held = run.logits[0]
        assert (run.verdict, held.z > Z_LIMIT) == (SUSPICIOUS, True), name
        assert held.first_beyond == FIRST.get(name, held.first_beyond)
        assert WORDS.get(name, "") in (held.looks_like or "")
    assert report.summary.verdict == SUSPICIOUS
    assert report.summary.exit_code == 1
    assert [f.code for f in report.findings] == ["LYA021"] * len(wrong)
    assert "no sublayer was seen" in report.summary.recommendation


@pytest.mark.slow
def test_every_form_says_that_nothing_is_certified(served, tmp_path):
    """Assert it of table, page, Markdown and JSON, exit code 0, and no word of held."""
    from click.testing import CliRunner

    from lyapunov.command._cli import main

    model, _, tokens, logits = served
    path = tmp_path / "logits.npz"
    np.savez(path, **settings(tokens, logits=logits))
    pages = [tmp_path / f"report{suffix}" for suffix in (".md", ".html", ".json")]
    written = [part for page in pages for part in ("-o", str(page))]
    run = CliRunner().invoke(
        main, [str(model.source), "--audit", str(path), "--no-progress", *written]
    )
    assert run.exit_code == 0, run.output
    for text in (run.stdout, *(page.read_text() for page in pages)):
        flat = " ".join(text.split())
        assert "logits in range" in flat
        assert "no sublayer was seen, so nothing is certified" in flat
        assert "held:" not in flat.lower()
    assert "sigma" in run.stdout
    (entry,) = json.loads(pages[2].read_text())["variants"]
    assert entry["bounded_share"] is None
    assert entry["logits"][0]["z"] < Z_LIMIT


@pytest.mark.slow
def test_safetensors_say_the_same(served, runs, tmp_path):
    """Assert that the docstring's recipe, and bf16 tensors, give what the .npz gave."""
    from lyapunov.implementations.dump import file

    model, network, tokens, logits = served
    recipe = not_none(file.__doc__).split("```python\n")[2].partition("```")[0]
    first, second = tmp_path / "dump.safetensors", tmp_path / "bf16.safetensors"
    ids = torch.as_tensor(tokens[None])
    with torch.no_grad():
        recipe = recipe.replace("dump.safetensors", str(first))
        exec(recipe, {"save_file": save_file, "model": network, "ids": ids})
    words = {k: v for k, v in settings(tokens).items() if isinstance(v, str)}
    held = torch.as_tensor(logits).to(torch.bfloat16)
    save_file({"tokens": ids, "logits": held}, second, words)
    assert File(second)._npz.shape_and_dtype("logits")[1] == ml_dtypes.bfloat16
    expected = runs[0]["in bf16"].logits[0]
    for path in (first, second):
        ((own,),) = (v.logits for v in lyapunov.audit(model, path).variants)
        assert (own.z, own.kl_max, own.sigma) == pytest.approx(
            (expected.z, expected.kl_max, expected.sigma), rel=1e-9
        )


def wrong_dumps(logits):
    """What is changed of a dump -> words of the error."""
    values, ids = most_likely(logits)
    top = {"logits": None, "top_logprobs": values, "top_ids": ids}
    doubled = ids.copy()
    doubled[LATE, 1] = doubled[LATE, 0]
    return {
        "another vocabulary": ({"logits": logits[:, :-1]}, f"not (1, {SEQ}, "),
        "another length": ({"logits": logits[1:]}, f"has shape ({SEQ - 1}, "),
        "integers": ({"logits": logits.astype(int)}, "int64"),
        "objects": ({"logits": np.array([{}] * SEQ)}, "may run code"),
        "two forms": ({"logprobs": normalised(logits)}, "logits and logprobs"),
        "no ids": (top | {"top_ids": None}, "has no top_ids"),
        "ids alone": ({"logits": None, "top_ids": ids}, "has top_ids"),
        "ids beyond": (top | {"top_ids": ids + 10**6}, "of a vocabulary of"),
        "ids of floats": (top | {"top_ids": ids * 1.0}, "float64"),
        "other ids": (top | {"top_ids": ids[:, 1:]}, f"has shape ({SEQ}, {FEW})"),
        "ids twice": (top | {"top_ids": doubled}, f"a token twice at token {LATE}"),
        "no id": (top | {"top_ids": ids * 0 - 1}, "no token at token 0"),
        "positive": (top | {"top_logprobs": values + 9}, "add up to"),
        "unnormalised": ({"logits": None, "logprobs": logits}, "add up to"),
        "positions beyond": (
            {"positions": np.arange(SEQ) + 1},
            f"tokens 0 to {SEQ - 1}",
        ),
        "positions twice": ({"positions": np.zeros(SEQ, int)}, "ascending"),
        "negative positions": ({"positions": np.arange(SEQ) - 1}, "ascending"),
        "nothing": ({"logits": None}, "no array of any layer and no logits"),
    }


WRONG = wrong_dumps(np.zeros((SEQ, 9), np.float32))


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(served, tmp_path, what):
    """Assert an error that names it, with a hint, of .npz and .safetensors alike."""
    model, _, tokens, logits = served
    changes, words = wrong_dumps(logits)[what]
    arrays = settings(tokens, logits=logits) | changes
    arrays = {k: v for k, v in arrays.items() if v is not None}
    np.savez(tmp_path / "dump.npz", **arrays)
    paths = [tmp_path / "dump.npz"]
    if what != "objects":
        texts = {k: v for k, v in arrays.items() if isinstance(v, str)}
        tensors = {
            k: torch.as_tensor(np.ascontiguousarray(v))
            for k, v in arrays.items()
            if k not in texts
        }
        paths.append(tmp_path / "dump.safetensors")
        save_file(tensors, paths[1], texts)
    for path in paths:
        with pytest.raises(DumpError) as error:
            File(path).check(model)
        assert words in error.value.message
        assert error.value.hint


def test_hostile_safetensors_are_refused(served, tmp_path):
    """Assert DumpError for sizes that lie, cut files, pickles, tensors for words."""
    _, _, tokens, logits = served
    words = {k: v for k, v in settings(tokens).items() if isinstance(v, str)}
    tensors = {"tokens": torch.as_tensor(tokens), "logits": torch.as_tensor(logits)}
    path = tmp_path / "dump.safetensors"
    save_file(tensors, path, words)
    whole = path.read_bytes()
    File(path)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["logits"]["shape"] = [2**40, 2**7]
    lying = json.dumps(header).encode()
    header["logits"]["shape"] = list(logits.shape)
    header["__metadata__"]["precision"] = 16
    numbers = json.dumps(header).encode()
    files = [
        whole[:-4],
        whole[:20],
        b"",
        (2**60).to_bytes(8, "little") + whole[8:],
        len(lying).to_bytes(8, "little") + lying + whole[8 + length :],
        len(numbers).to_bytes(8, "little") + numbers + whole[8 + length :],
        b"\x80\x04\x95" + bytes(60),
    ]
    for content in files:
        path.write_bytes(content)
        with pytest.raises(DumpError):
            File(path)
    save_file(
        tensors | {"precision": torch.zeros(1)}, path, {"format": words["format"]}
    )
    with pytest.raises(DumpError):
        File(path)
    # a checkpoint is no dump
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(DumpError, match="of format 'pt'"):
        File(path)
    with pytest.raises(DumpError):
        File(tmp_path / "nothing.safetensors")


def test_measuring_with_a_dump_says_where_it_goes(tmp_path):
    """Assert that `--measure FILE` names the option that takes it."""
    from click.testing import CliRunner

    from lyapunov.command._cli import main

    run = CliRunner().invoke(main, ["x", "--measure", "served.safetensors"])
    assert run.exit_code == 2
    assert "--audit served.safetensors" in run.stderr
