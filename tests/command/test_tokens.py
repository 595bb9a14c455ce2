"""Assert that tokens come from where they were asked for, or an error says why not."""

import json

import numpy as np
import pytest

from lyapunov._errors import MissingExtraError, TokensError
from lyapunov.models._tokens import bundled_text, choose_tokens

from ..helpers import not_none


BYTES = {"lyapunov_tokenizer": "bytes"}
ENGLISH = "It was the best of times, it was the worst of times. " * 400


def _choose(**options):
    return choose_tokens(**{"vocab_size": 256, **options})


@pytest.fixture
def english(monkeypatch):
    monkeypatch.setattr("lyapunov.models._tokens.bundled_text", lambda: ENGLISH)


@pytest.fixture
def save(tmp_path):
    def made(array, name="t.npy", **options):
        np.save(tmp_path / name, array, **options)
        return str(tmp_path / name)

    return made


def test_without_a_tokenizer_tokens_are_random_seeded_and_said_to_be():
    first, again, other = (_choose(seed=seed) for seed in (1, 1, 2))
    assert first.ids.shape == (1, 512)
    assert np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, other.ids)
    assert first.source == "random, no tokenizer at hand (seed 1)"
    assert 0 <= first.ids.min() <= first.ids.max() < 256


def test_random_on_demand_even_with_a_tokenizer():
    chosen = _choose(tokens="random", config=BYTES, batch=2, length=8, seed=3)
    assert chosen.ids.shape == (2, 8)
    assert chosen.source == "random (seed 3)"


def test_english_by_default_and_batches_are_other_passages(english):
    chosen = _choose(config=BYTES, batch=3, length=50)
    assert chosen.source == "bundled English text"
    assert bytes(chosen.ids.reshape(-1).astype(np.uint8)) == ENGLISH[:150].encode()


def test_more_than_the_bundled_text_holds_is_an_error(english):
    with pytest.raises(TokensError, match="bundled English text has"):
        _choose(config=BYTES, length=10**6)


def test_bundled_text_is_text_where_it_is_there():
    assert bundled_text() is None or len(not_none(bundled_text())) > 1000


def test_text_gives_all_its_tokens():
    assert _choose(text="héllo", config=BYTES).ids.tolist() == [list("héllo".encode())]
    cut = _choose(text="hello world", config=BYTES, length=3, batch=2)
    assert cut.ids.tolist() == [list(b"hel"), list(b"lo ")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "", "config": BYTES}, "is empty"),
        ({"text": "x", "config": BYTES}, "one token"),
        ({"text": "hello"}, "no tokenizer"),
        ({"text": "hello", "config": BYTES, "length": 6}, "has 5"),
        ({"text": "hello", "config": BYTES, "batch": 9}, "at least 2"),
        ({"text": "hello", "config": BYTES, "batch": 3, "length": 2}, "has 5"),
        ({"text": "hello", "config": BYTES, "vocab_size": 105}, "token id 108 at pos"),
        ({"length": 1}, "at least 2"),
        ({"text": "a", "tokens": "b"}, "both"),
    ],
)
def test_texts_that_cannot_be_used(options, says):
    with pytest.raises(TokensError, match=says):
        _choose(**options)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "uint16", ">i4"])
def test_arrays_of_any_integers(save, dtype):
    ids = np.arange(6, dtype=dtype)
    chosen = _choose(tokens=save(ids))
    assert chosen.ids.dtype == np.int64
    assert chosen.ids.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_file_decides_its_length_unless_one_is_given(save):
    ids = np.arange(12).reshape(2, 6)
    assert _choose(tokens=save(ids)).ids.shape == (2, 6)
    cut = _choose(tokens=save(ids), length=3, batch=1)
    assert cut.ids.tolist() == [[0, 1, 2]]
    fortran = np.asfortranarray(ids)
    assert _choose(tokens=save(fortran)).ids.tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (np.zeros(4), {}, "must be integers.*float64"),
        (np.zeros(4, bool), {}, "must be integers.*bool"),
        (np.array(["a", "b"]), {}, "must be integers"),
        (np.zeros((2, 2, 2), int), {}, r"\(2, 2, 2\)"),
        (np.int64(3), {}, r"\(seq\) or \(batch, seq\)"),
        (np.zeros(0, int), {}, "no tokens"),
        (np.zeros((0, 5), int), {}, "no tokens"),
        (np.zeros(1, int), {}, "one token a sequence: .* at least 2"),
        (np.array([1, 256, -1]), {}, r"256 at position 1 .* 256: 0 to 255 \(1 more\)"),
        (np.array([[1, 2], [3, -7]]), {}, "-7 at sequence 1, position 1"),
        (np.array([1, 2**63], np.uint64), {}, "9223372036854775808"),
        (np.arange(5), {"length": 6}, "--length 6 is more than the 5 tokens"),
        (np.arange(5), {"batch": 2}, "--batch 2 is more than the 1 sequences"),
    ],
)
def test_arrays_that_cannot_be_used(save, array, options, says):
    with pytest.raises(TokensError, match=says) as caught:
        _choose(tokens=save(array), **options)
    assert "\n" not in caught.value.message


def test_objects_are_not_unpickled(save, tmp_path):
    ragged = np.array([[1, 2], [3]], dtype=object)
    with pytest.raises(TokensError, match="Python objects"):
        _choose(tokens=save(ragged, allow_pickle=True))


def test_a_header_that_lies_takes_no_memory(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.arange(10))
    lying = path.read_bytes().replace(b"(10,), ", b"(10000000000000,), ", 1)
    path.write_bytes(lying)
    with pytest.raises(TokensError, match="damaged or cut short"):
        _choose(tokens=str(path))
    np.save(path, np.arange(10))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TokensError, match="damaged or cut short"):
        _choose(tokens=str(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.npy", b"", "is empty"),
        ("t.npy", b"1 2 3", "not a NumPy .npy file in spite of its name"),
        ("t.npy", b"PK\x03\x04", "not a NumPy .npy"),
        ("t.npy", b"\x93NUMPY", "damaged"),
        ("t.npy", b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
        ("t.npz", b"PK", "not read from .npz"),
        ("t.pt", b"x", "not read from .pt"),
        ("t.txt", b"\x93NUMPY\x01", "not a text file"),
        ("t.txt", b"a\0b", "not a text file"),
        ("t.txt", b"", "is empty"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokensError, match=says):
        _choose(tokens=str(tmp_path / name), config=BYTES)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(TokensError, match="no such file"):
        _choose(tokens=str(tmp_path / "t.npy"))
    with pytest.raises(TokensError, match="is a folder"):
        _choose(tokens=str(tmp_path))


def test_text_files(tmp_path):
    (tmp_path / "t.txt").write_text("hello")
    chosen = _choose(tokens=str(tmp_path / "t.txt"), config=BYTES)
    assert chosen.ids.tolist() == [list(b"hello")]
    assert chosen.source == str(tmp_path / "t.txt")


@pytest.fixture
def tokenizer(tmp_path):
    """A word-level tokenizer, as a checkpoint's folder would hold it."""
    words = {"[UNK]": 0, "the": 1, "best": 2, "times": 3}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path


def test_tokenizers_of_the_checkpoint_are_used(tokenizer, english):
    pytest.importorskip("tokenizers")
    chosen = _choose(text="the best of times", folder=tokenizer)
    assert chosen.ids.tolist() == [[1, 2, 0, 3]]
    chosen = _choose(folder=tokenizer, length=6)
    assert chosen.source == "bundled English text"
    assert chosen.ids.tolist() == [[0, 0, 1, 2, 0, 3]]


def test_bytes_of_a_text_are_counted_by_where_its_tokens_lie(tokenizer):
    """Assert bytes of UTF-8 from the first token's end to the last one's, by either
    library; of passages that follow each other each on its own."""
    pytest.importorskip("tokenizers")
    text = "naïve best of — times"
    chosen = _choose(text=text, folder=tokenizer)
    assert chosen.is_text
    assert chosen.n_bytes == len(text.encode()) - len("naïve".encode())
    halves = _choose(text="the best of times", folder=tokenizer, batch=2)
    assert halves.ids.tolist() == [[1, 2], [0, 3]]
    assert halves.n_bytes == len(" best") + len(" times")
    pytest.importorskip("transformers")
    from transformers import PreTrainedTokenizerFast

    from lyapunov.models._tokens import _from_transformers

    made = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))
    made.save_pretrained(tokenizer / "saved")
    encoded = _from_transformers(tokenizer / "saved")(text)
    assert list(encoded.ids) == chosen.ids[0].tolist()
    assert not_none(encoded.ends)[-1] - not_none(encoded.ends)[0] == chosen.n_bytes


def test_a_missing_tokenizer_library_is_named(tokenizer, english, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="tokenizers"):
        _choose(text="hello", folder=tokenizer)
    chosen = _choose(folder=tokenizer)
    assert "`tokenizers`, which is not installed" in chosen.source
    assert chosen.source.startswith("random")


def test_a_broken_tokenizer_is_an_error_only_when_it_is_needed(tmp_path, english):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokensError, match="cannot be read"):
        _choose(text="hello", folder=tmp_path)
    assert _choose(folder=tmp_path).source.startswith("random")
