"""The reference's loss: its value, its error, and what it says of a damaged file."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import TokensError
from lyapunov.findings._checkpoint_findings import loss_findings
from lyapunov.models import VocabularySlice
from lyapunov.models._tokens import choose_tokens
from lyapunov.questions._reference_loss import (
    NextTokenLoss,
    code_lengths,
    frequencies_need,
    reference_loss,
    stderr_of_loss,
)
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import NumpyMamba, Sizes, random_weights

from ..helpers import not_none


HOME = Path(lyapunov.__file__).parent / "assets" / "mamba1-bytes"
SEQ = 192


def numpy_bits(logits, tokens):
    """-log2 p of the next token from whole rows of logits."""
    logits = np.asarray(logits, np.float64)[:-1]
    log_z = np.array([math.log(math.fsum(np.exp(row - row.max()))) for row in logits])
    log_z += logits.max(axis=1)
    return (log_z - logits[np.arange(len(logits)), tokens[1:]]) / math.log(2)


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_slices_of_any_size_add_up_to_the_loss(rng, rows):
    """Assert -log2 softmax to 1e-13, whatever the slices, for logits up to +-1000."""
    logits = rng.normal(size=(2, 9, 50)) * np.array([1.0, 300.0])[:, None, None]
    ids = rng.integers(0, 50, (2, 9))
    loss = NextTokenLoss(ids)
    for start in range(0, 50, rows):
        part = logits[:, :, start : start + rows]
        loss.add(part, VocabularySlice(start, start + part.shape[-1], 0))
    expected = [
        numpy_bits(one, tokens) for one, tokens in zip(logits, ids, strict=True)
    ]
    assert loss.bits() == pytest.approx(np.array(expected), rel=1e-13, abs=1e-12)


def test_equal_logits_need_log2_of_the_vocabulary():
    """Assert log2 V exactly, and that infinite logits give no number."""
    loss = NextTokenLoss(np.zeros((1, 5), int))
    loss.add(np.full((1, 5, 64), 3.0), VocabularySlice(0, 64, 0))
    assert np.all(loss.bits() == 6)
    broken = NextTokenLoss(np.zeros((1, 5), int))
    broken.add(np.full((1, 5, 64), np.inf), VocabularySlice(0, 64, 0))
    assert np.all(np.isnan(broken.bits()))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_loss_of_a_checkpoint_is_that_of_numpy(tmp_path, batch):
    """Assert mean and per-sequence loss to 1e-9, and decode's to be the same."""
    sizes = Sizes(layers=1)
    weights = random_weights(np.random.default_rng(5), sizes)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    tokens = np.random.default_rng(6).integers(0, sizes.vocab, (batch, 70))
    model = NumpyMamba(weights, sizes)
    expected = np.array([numpy_bits(model.logits(row), row) for row in tokens])
    found = not_none(lyapunov.check(str(folder), tokens, measure="none").reference)
    assert found.loss_bits_per_token == pytest.approx(expected.mean(), rel=1e-9)
    if batch > 1:
        assert found.by_text == pytest.approx(expected.mean(axis=1), rel=1e-9)
    else:
        assert found.by_text is None
    assert found.uniform_bits == math.log2(sizes.vocab)
    assert found.predicted == batch * 69
    assert found.bits_per_byte is None
    assert not found.judged
    decode = lyapunov.check(
        str(folder), tokens, mode="decode", measure="none", tokens_are_text=True
    )
    assert not_none(decode.reference).loss_bits_per_token == found.loss_bits_per_token
    assert not_none(decode.reference).judged


def test_a_loss_that_drifts_is_judged_all_the_same():
    """Assert LYA016 and LYA017 where the error is a range, and none inside it."""
    drift = np.linspace(-1, 1, len(TEXT))[None]
    ids = np.concatenate([[0], TEXT])[None]

    def codes(mean):
        loss = reference_loss(mean + drift, ids, 256, is_text=True)
        assert loss.judged
        assert not_none(loss.stderr_method).startswith("largest less smallest")
        assert loss.stderr == pytest.approx(1.0, rel=0.02)
        return [f.code for f in loss_findings(loss)]

    assert codes(9.1) == ["LYA016"]
    assert codes(8.9) == ["LYA017"]
    assert codes(5.5) == []


def test_too_few_means_and_copies_give_no_standard_error():
    """Assert None below 64 tokens, and that a copied sequence counts once."""
    assert stderr_of_loss(np.arange(30.0)[None])[0] is None
    rng = np.random.default_rng(8)
    ids = rng.integers(0, 9, (1, 101))
    bits = rng.exponential(size=(1, 100))
    one = reference_loss(bits, ids, 9, is_text=True)
    ten = reference_loss(np.repeat(bits, 10, 0), np.repeat(ids, 10, 0), 9, is_text=True)
    assert ten.stderr == pytest.approx(one.stderr, rel=1e-12)


def test_frequencies_are_counted_and_corrected_as_good_and_turing_say():
    """Assert closed forms: no token seen once, one of ten seen once, all seen once."""
    assert frequencies_need(np.array([[0, 1, 2, 3] * 4]), 100) == 2
    tokens = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2, 3]])
    entropy = 0.9 * -math.log2(0.3) + 0.1 * -math.log2(0.1)
    coin = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
    expected = 0.9 * entropy + coin + 0.1 * math.log2(16)
    assert frequencies_need(tokens, 20) == pytest.approx(expected, rel=1e-14)
    assert code_lengths(tokens).mean() == pytest.approx(entropy, rel=1e-14)
    assert frequencies_need(np.arange(12)[None], 20) is None


@pytest.mark.parametrize("n", [64, 200, 1000, 20000])
def test_what_frequencies_need_is_not_below_the_entropy_and_tends_to_it(n):
    """Assert it of Zipf's law over 2000 words, whose entropy is known: below by more
    than 0.1 bits in at most 2 % of 200 texts, above by at most 0.1 in long ones."""
    share = 1 / np.arange(1, 2001)
    share /= share.sum()
    entropy = -np.sum(share * np.log2(share))
    rng = np.random.default_rng(n)
    texts = rng.choice(2000, p=share, size=(200, n))
    found = np.array([frequencies_need(text[None], 2000) for text in texts])
    assert np.mean(found < entropy - 0.1) <= 0.02
    plug_in = np.array([code_lengths(text[None]).mean() for text in texts])
    if n == 20000:
        assert np.median(found) - entropy < 0.1
    else:
        assert np.all(plug_in < entropy)  # the bias that is corrected


def _loss(mean, tokens, *, spread=0.5, vocab=256, **more):
    ids = np.concatenate([[0], tokens])[None]
    noise = np.random.default_rng(9).normal(size=(1, len(tokens)))
    bits = mean + spread * (noise - noise.mean())
    return reference_loss(bits, ids, vocab, **{"is_text": True, **more})


TEXT = np.frombuffer((HOME / "heldout.txt").read_bytes()[:191], np.uint8).astype(int)


def test_what_the_loss_is_held_against():
    """Assert LYA016 above uniform by more than the error, LYA017 above the frequencies,
    nothing in a right one, in an untrained one and in what is no text."""
    codes = lambda loss, **more: [f.code for f in loss_findings(loss, **more)]
    unigram = not_none(_loss(1, TEXT).unigram_bits)
    assert 4.2 < unigram < 5
    error = not_none(_loss(1, TEXT).stderr)
    assert codes(_loss(1.4, TEXT)) == []
    assert codes(_loss(unigram - 0.5, TEXT, spread=0)) == []
    # the text's own code lengths drift by 0.66 bits over its last three quarters
    assert codes(_loss(unigram + 0.5, TEXT)) == []
    assert codes(_loss(unigram + 0.8, TEXT)) == ["LYA017"]
    assert codes(_loss(8 + 0.5 * error, TEXT)) == ["LYA017"]
    assert codes(_loss(8 + 1.5 * error, TEXT)) == ["LYA016"]
    assert codes(_loss(9, TEXT), untrained=True) == []
    for silent, why in (
        (_loss(9, TEXT, is_text=False, source="random (seed 0)"), "are random"),
        (_loss(9, TEXT, is_text=False), "--tokens-are-text"),
        (_loss(9, TEXT[:40]), "40 predicted tokens"),
        (_loss(9, np.tile([97, 97, 97, 98], 40)), "repeats itself"),
        (_loss(np.nan, TEXT), "not finite"),
    ):
        assert codes(silent) == []
        assert why in not_none(silent.reason)


def test_ids_are_text_only_where_the_user_says_so(tmp_path):
    """Assert the flag for a .npy, its refusal for random tokens, and bytes of texts."""
    np.save(tmp_path / "ids.npy", TEXT)
    path = str(tmp_path / "ids.npy")
    choose = lambda **more: choose_tokens(vocab_size=256, **more)
    assert not choose(tokens=path).is_text
    assert choose(tokens=path, are_text=True).is_text
    assert choose(tokens=path, are_text=True).n_bytes is None
    bytewise = {"lyapunov_tokenizer": "bytes"}
    assert choose(tokens=path, are_text=True, config=bytewise).n_bytes == 190
    for drawn in ({"tokens": "random"}, {}):
        with pytest.raises(TokensError, match="--tokens-are-text") as raised:
            choose(are_text=True, **drawn)
        assert "random" in raised.value.message
    text = choose(text="naïve words, as bytes", config=bytewise, batch=2)
    assert text.is_text
    assert text.n_bytes == text.ids[:, 1:].size


def test_the_python_door_refuses_random_tokens_called_text(tmp_path):
    """Assert a TokensError where no tokenizer is at hand and nothing was given."""
    sizes = Sizes(layers=1)
    weights = random_weights(np.random.default_rng(5), sizes)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    with pytest.raises(TokensError, match="random"):
        lyapunov.check(str(folder), measure="none", tokens_are_text=True)


# ---- copies of the bundled model with one thing wrong


def _every(name, change):
    def changed(tensors):
        for key in tensors:
            if key.endswith(name):
                tensors[key] = change(tensors[key])

    return changed


def _swapped(first, second, width):
    """Two blocks of rows of that width, by place, in the place of each other."""

    def change(x):
        x, found = x.copy(), x
        x[first * width : (first + 1) * width] = found[
            second * width : (second + 1) * width
        ]
        x[second * width : (second + 1) * width] = found[
            first * width : (first + 1) * width
        ]
        return x

    return change


def _b_and_c(x):
    return np.concatenate([x[:8], x[24:40], x[8:24]])


def _layers(tensors):
    for key in [k for k in tensors if ".layers.2." in k]:
        other = key.replace(".layers.2.", ".layers.6.")
        tensors[key], tensors[other] = tensors[other], tensors[key]


DAMAGED = {
    "D 0": (_every("mixer.D", np.zeros_like), 16.9, "LYA016"),
    "out_proj 0": (_every("out_proj.weight", np.zeros_like), 29.1, "LYA016"),
    "taps reversed": (
        _every("conv1d.weight", lambda x: np.ascontiguousarray(x[..., ::-1])),
        8.6,
        "LYA016",
    ),
    "x and z swapped": (_every("in_proj.weight", _swapped(0, 1, 256)), 8.2, "LYA017"),
    "A_log negated": (_every("A_log", np.negative), 6.6, "LYA017"),
    "A for A_log": (_every("A_log", lambda x: -np.exp(x)), 7.0, "LYA017"),
    "embedding shifted": (
        _every("embeddings.weight", lambda x: np.roll(x, 1, axis=0)),
        None,
        "LYA016",
    ),
    "dt_bias 0": (_every("dt_proj.bias", np.zeros_like), 11.4, "LYA016"),
    "untouched": (lambda tensors: None, 1.365, None),
    "one norm 0": (_every("layers.4.norm.weight", np.zeros_like), None, None),
    "B and C swapped": (_every("x_proj.weight", _b_and_c), 1.85, None),
    "layers swapped": (_layers, 2.22, None),
}


LOST = {
    "D 0": (range(9), ["D"]),
    "out_proj 0": (range(9), ["out_proj"]),
    "dt_bias 0": (range(9), ["dt_bias"]),
    "one norm 0": ([4], ["norm"]),
}
"""Layers that look lost (LYA008), and the parameters that are named."""


def _copy(folder, change):
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    (folder / "config.json").write_text((HOME / "config.json").read_text())
    tensors = load_file(HOME / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    made = {}

    def report(name):
        if name not in made:
            source = _copy(folder / name.replace(" ", "-"), DAMAGED[name][0])
            made[name] = lyapunov.check(source, TEXT_GIVEN, **AS_TEXT)
        return made[name]

    return report


TEXT_GIVEN = np.frombuffer((HOME / "heldout.txt").read_bytes()[:SEQ], np.uint8).astype(
    np.int64
)
AS_TEXT = {"measure": "none", "tokens_are_text": True, "growth": False}


@pytest.mark.parametrize("name", DAMAGED)
def test_copies_of_the_bundled_model_that_do_not_work_are_told(damaged, name):
    """Assert the loss that was measured without this library, its finding, and the
    exit code; nothing of a copy that works, or works nearly."""
    report = damaged(name)
    _, bits, code = DAMAGED[name]
    loss = report.reference
    assert loss.judged
    assert loss.bits_per_byte == loss.loss_bits_per_token
    if bits is not None:
        assert loss.loss_bits_per_token == pytest.approx(bits, rel=0.01)
    found = [f.code for f in report.findings if f.code in ("LYA016", "LYA017")]
    assert found == ([code] if code else [])
    assert report.summary.exit_code == (1 if code == "LYA016" else 0)
    if code:
        assert not report.summary.flags
        assert "fine" not in report.summary.recommendation
    lost = [f for f in report.findings if f.code == "LYA008"]
    place, parameters = LOST.get(name, ((), []))
    assert [f.layer for f in lost] == list(place)
    for layer in place:
        assert report.exponents.layers[layer].suspects == parameters
    assert not any(f.hint for f in lost)
    assert (f"Compare {' and '.join(parameters)} of layer" in
            report.summary.recommendation) == bool(lost)  # fmt: skip
    if name == "untouched":
        assert report.findings == []


@pytest.mark.parametrize("name", ["B and C swapped", "layers swapped"])
def test_a_baseline_tells_what_the_text_alone_cannot(damaged, name):
    """Assert LYA010 for a loss of 1.36 and 1.63 times the baseline's, none for it."""
    from lyapunov.findings._baseline import with_baseline

    earlier = json.loads(json.dumps(damaged("untouched").to_dict()))
    worse, sentence = with_baseline(damaged(name), earlier)
    (finding,) = [f for f in worse.findings if f.code == "LYA010"]
    assert "loss of the reference" in finding.message
    assert "1.36 →" in finding.message
    assert worse.summary.exit_code == 1
    assert sentence.startswith("worse")
    same, _ = with_baseline(damaged("untouched"), earlier)
    assert same.summary.exit_code == 0
    del earlier["reference"]  # as written before there was one
    assert with_baseline(damaged(name), earlier)[0].summary.exit_code == 0


def test_the_bundled_model_s_loss_is_that_of_numpy(damaged):
    """Assert 192 bytes of its text to 1e-9 against loops in fp64."""
    from safetensors.numpy import load_file

    sizes = Sizes(256, 128, 2, 16, 4, 8, 9, 1e-5)
    model = NumpyMamba(load_file(HOME / "model.safetensors"), sizes)
    expected = numpy_bits(model.logits(TEXT_GIVEN), TEXT_GIVEN).mean()
    found = damaged("untouched").reference.loss_bits_per_token
    assert found == pytest.approx(expected, rel=1e-9)
