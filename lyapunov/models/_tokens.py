"""Which tokens a check runs on: a file, a text, bundled English, or seeded noise."""

import importlib.resources
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lyapunov._errors import MissingExtraError, TokensError
from lyapunov.models._token_ids import check_range


DEFAULT_LENGTH = 512
TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ""})
NPY_MAGIC = b"\x93NUMPY"
MADE_BY = 'np.save("tokens.npy", np.asarray(ids, dtype=np.int64))'


class Encoded(NamedTuple):
    """A text's token ids, and the byte of its UTF-8 at which each ends."""

    ids: Sequence[int]
    ends: Sequence[int] | None
    """None where the tokenizer does not tell."""


Encode = Callable[[str], Encoded]


@dataclass(frozen=True)
class Tokens:
    """Hold token ids and where they came from, in words that the report repeats."""

    ids: Int[np.ndarray, "batch seq"]
    source: str
    is_text: bool = False
    """Whether what follows a token is what a language model is to predict."""
    n_bytes: int | None = None
    """Bytes of all tokens but the first of each sequence, where they are known."""


@dataclass(frozen=True)
class _Asked:
    """What tokens are to be like; see `choose_tokens`."""

    vocab_size: int
    length: int | None
    batch: int | None
    seed: int
    config: Mapping[str, Any] | None
    folder: Path | None

    def random(self, why: str) -> Tokens:
        """Seeded noise."""
        shape = (self.batch or 1, self.length or DEFAULT_LENGTH)
        generator = np.random.default_rng(self.seed)
        ids = generator.integers(0, self.vocab_size, shape, dtype=np.int64)
        return Tokens(ids, f"{why} (seed {self.seed})")

    def of_text(self, text: str, source: str) -> Tokens:
        """A text's tokens, as the checkpoint's tokenizer gives them."""
        encode = _tokenizer(self.config, self.folder, needed=True)
        if encode is None:
            raise TokensError(
                "this checkpoint has no tokenizer, so text cannot be turned into "
                "tokens",
                hint=f"give ids with --tokens FILE.npy, as made by {MADE_BY}",
            )
        return self.cut(encode(text), source)

    def default(self) -> Tokens:
        """English text where a tokenizer is at hand, else seeded noise."""
        english = bundled_text()
        why = "no tokenizer at hand"
        try:
            encode = _tokenizer(self.config, self.folder, needed=False)
        except MissingExtraError as missing:
            encode, why = None, missing.message
        if encode is None or english is None:
            return self.random(f"random, {why}")
        length = self.length or DEFAULT_LENGTH
        wanted = length * (self.batch or 1)
        encoded = encode(english[: 16 * wanted])
        if len(encoded.ids) < wanted:
            encoded = encode(english)
        return replace(self, length=length).cut(encoded, "bundled English text")

    def from_file(self, path: Path) -> Tokens:
        """The ids of a `.npy`, or a text file's."""
        if path.is_dir():
            raise TokensError(f"{path} is a folder, not a file of tokens")
        if not path.is_file():
            raise TokensError(
                f"no such file of tokens: {path}",
                hint="--tokens takes a .npy of integers, a text file, or 'random'",
            )
        suffix = path.suffix.lower()
        if suffix == ".npy":
            return self.shaped(read_npy(path), str(path))
        if suffix not in TEXT_SUFFIXES:
            raise TokensError(
                f"tokens are not read from {suffix} files: {path}",
                hint=f"give a .npy of integers, as made by {MADE_BY}, or a .txt",
            )
        return self.of_text(read_text(path), str(path))

    def shaped(self, ids: np.ndarray, source: str) -> Tokens:
        """Check and cut an array of shape (seq) or (batch, seq)."""
        if ids.ndim not in (1, 2):
            raise TokensError(
                f"tokens have shape (seq) or (batch, seq), and {source} has "
                f"{ids.shape}",
                hint="reshape the array to (batch, seq)",
            )
        rows = np.atleast_2d(ids)
        if rows.size == 0:
            raise TokensError(f"{source} holds no tokens (shape {ids.shape})")
        for option, given, axis, noun in (
            ("--length", self.length, 1, "tokens a sequence"),
            ("--batch", self.batch, 0, "sequences"),
        ):
            if given is not None and given > rows.shape[axis]:
                raise TokensError(
                    f"{option} {given} is more than the {rows.shape[axis]} {noun} "
                    f"of {source}",
                    hint=f"leave {option} out to take them all",
                )
        rows = rows[: self.batch, : self.length]
        if rows.shape[1] < 2:
            raise _too_short(rows.shape[1])
        check_range(rows, self.vocab_size)
        return Tokens(rows.astype(np.int64), source)

    def cut(self, encoded: Encoded, source: str) -> Tokens:
        """Cut a running text into `batch` passages that follow each other."""
        ids = np.asarray(list(encoded.ids), dtype=np.int64)
        if ids.size == 0:
            raise TokensError(f"{source} is empty")
        rows = self.batch or 1
        seq = ids.size // rows if self.length is None else self.length
        if rows * seq > ids.size:
            raise TokensError(
                f"{rows} x {seq} tokens were asked for, and {source} has {ids.size:,}",
                hint="lower --length or --batch",
            )
        if seq < 2:
            raise _too_short(seq)
        passages = ids[: rows * seq].reshape(rows, seq)
        check_range(passages, self.vocab_size)
        n_bytes = None
        if encoded.ends is not None:
            ends = np.asarray(encoded.ends, np.int64)[: rows * seq].reshape(rows, seq)
            n_bytes = int(np.sum(ends[:, -1] - ends[:, 0])) or None
        return Tokens(passages, source, True, n_bytes)


def choose_tokens(
    *,
    vocab_size: int,
    tokens: str | None = None,
    text: str | None = None,
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    are_text: bool = False,
) -> Tokens:
    """Choose the tokens that the options ask for.

    **Arguments:**

    - `vocab_size`: ids run from 0 to one less.
    - `tokens`: `random`, a `.npy` of integers, or a text file.
    - `text`: a text, instead of `tokens`.
    - `length`, `batch`: as given; a file or text decides where they are not.
        Otherwise 512 and 1.
    - `seed`: of the random tokens.
    - `config`, `folder`: the checkpoint's, to find its tokenizer.
    - `are_text`: a `.npy` holds text, as its user says; refused of random tokens.

    **Returns:**

    Tokens of shape (batch, seq), at least 2 a sequence.

    **Raises:** `TokensError`; `MissingExtraError` where a tokenizer's library is
    not installed.
    """
    if tokens is not None and text is not None:
        raise TokensError(
            "both --tokens and --text were given", hint="give one of the two"
        )
    if length is not None and length < 2:
        raise _too_short(length)
    asked = _Asked(vocab_size, length, batch, seed, config, folder)
    if text is not None:
        return asked.of_text(text, "the text given with --text")
    if tokens == "random":
        chosen = asked.random("random")
    elif tokens is not None:
        chosen = asked.from_file(Path(tokens))
        return called_text(chosen, config) if are_text else chosen
    else:
        chosen = asked.default()
    if are_text and not chosen.is_text:
        raise TokensError(
            f"--tokens-are-text, and the tokens are {chosen.source}",
            hint="give a text, or its ids with --tokens FILE.npy",
        )
    return chosen


def called_text(tokens: Tokens, config: Mapping[str, Any] | None) -> Tokens:
    """The same tokens as a text, because their user says so."""
    n_bytes = tokens.n_bytes
    if n_bytes is None and _is_bytes(config):
        n_bytes = tokens.ids[:, 1:].size
    return replace(tokens, is_text=True, n_bytes=n_bytes)


def bundled_text() -> str | None:
    """The held-out English text of the bundled model; None where it is missing."""
    home = importlib.resources.files("lyapunov")
    held_out = home / "assets" / "mamba1-bytes" / "heldout.txt"
    return held_out.read_text("utf-8") if held_out.is_file() else None


def read_text(path: Path) -> str:
    """A text file's text; an error where it is something else."""
    raw = _bytes_of(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        hint = "name an array of ids with .npy" if raw.startswith(NPY_MAGIC) else ""
        raise TokensError(f"{path} is not a text file in UTF-8", hint=hint)
    return text


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokensError(f"cannot read {path}: {error.strerror}") from error


def read_npy(path: Path) -> np.ndarray:
    """An array of integers from a `.npy`, without unpickling anything.

    **Raises:** `TokensError` for what is no `.npy`, is cut short, or holds anything
    but integers.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(NPY_MAGIC))
    except OSError as error:
        raise TokensError(f"cannot read {path}: {error.strerror}") from error
    if magic != NPY_MAGIC:
        what = "empty" if not magic else "not a NumPy .npy file in spite of its name"
        raise TokensError(f"{path} is {what}", hint=f"make one with {MADE_BY}")
    try:
        # Mapping compares the header's shape with the file's size before anything
        # is allocated, and never unpickles.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
        if "Python objects" in str(error):
            raise TokensError(
                f"{path} holds Python objects (ragged rows?), not integers",
                hint="cut or pad all sequences to one length; " + MADE_BY,
            ) from error
        raise TokensError(
            f"{path} is damaged or cut short: {str(error).splitlines()[0]}",
            hint=f"write it again with {MADE_BY}",
        ) from error
    if array.dtype.kind not in "iu":
        raise TokensError(
            f"token ids must be integers, and {path} holds {array.dtype}",
            hint="convert them with .astype(np.int64)",
        )
    return np.array(array)


def _too_short(length: int) -> TokensError:
    given = "one token" if length == 1 else f"{length} tokens"
    return TokensError(
        f"{given} a sequence: a check needs at least 2, so that a state is carried on",
        hint="give a longer text, or --length 2 and above",
    )


def _is_bytes(config: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint's tokens are the bytes of UTF-8."""
    return (config or {}).get("lyapunov_tokenizer") == "bytes"


def _tokenizer(
    config: Mapping[str, Any] | None, folder: Path | None, *, needed: bool
) -> Encode | None:
    """What the checkpoint carries: bytes, or local tokenizer files. Never code."""
    if _is_bytes(config):
        return _bytes
    if folder is None or not folder.is_dir():
        return None
    file = folder / "tokenizer.json"
    if not file.is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return _from_tokenizers(file) if file.is_file() else _from_transformers(folder)
    except MissingExtraError:
        raise
    except Exception as error:  # the libraries raise bare exceptions of their own
        if not needed:
            return None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokensError(
            f"the tokenizer in {folder} cannot be read: {reason}",
            hint="give ids with --tokens FILE.npy",
        ) from error


def _bytes(text: str) -> Encoded:
    raw = text.encode("utf-8")
    return Encoded(list(raw), range(1, len(raw) + 1))


def _from_tokenizers(file: Path) -> Encode:
    _require("tokenizers")
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))

    def encode(text: str) -> Encoded:
        found = tokenizer.encode(text, add_special_tokens=False)
        return Encoded(found.ids, _byte_ends(text, found.offsets))

    return encode


def _from_transformers(folder: Path) -> Encode:
    _require("transformers")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )

    def encode(text: str) -> Encoded:
        # only the tokenizers written in Rust know where a token lies in the text
        if not tokenizer.is_fast:
            return Encoded(tokenizer.encode(text, add_special_tokens=False), None)
        found = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return Encoded(found["input_ids"], _byte_ends(text, found["offset_mapping"]))

    return encode


def _byte_ends(text: str, spans: Sequence[tuple[int, int]]) -> Sequence[int]:
    """Where tokens end, in bytes of UTF-8, from spans in characters."""
    ends = np.cumsum([0, *(len(s.encode("utf-8", "surrogatepass")) for s in text)])
    return [int(ends[stop]) for _, stop in spans]


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"the checkpoint's tokenizer needs `{package}`, which is not installed",
            hint="pip install 'lyapunov-check[torch]'",
        )
