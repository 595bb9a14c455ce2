"""How well the fp64 reference predicts its own tokens, beside two guesses.

A checkpoint that was damaged before it came here computes the wrong function in every
format alike: bounds hold, formats agree, and only its loss tells. The uniform guess and
the text's own frequencies need no model, so that a model worse than either says nothing
of the text.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from ..exponents import stderr_of_mean
from ..models import VocabularySlice
from ..results._check import ReferenceLoss


FEWEST_TOKENS = 64
"""Predicted tokens below which nothing is judged: the first of a text have no context,
and their loss is not the model's."""
PARTS = 4
"""Of a text whose loss drifts; few, so that each is long."""
LEAST_ENTROPY = 1.0
"""Bits: a text of lower plug-in entropy repeats itself, and what a model that has seen
nothing like it makes of it says nothing about the model."""


class NextTokenLoss:
    """Collects -log2 p of each next token from logits that come a slice at a time.

    **Arguments:**

    - `ids`: (batch, seq); the tokens from the second on are predicted.
    """

    def __init__(self, ids: Int[np.ndarray, "batch seq"]):
        self._next = np.asarray(ids)[:, 1:]
        shape = self._next.shape
        self._top = np.full(shape, -np.inf)
        self._weight = np.zeros(shape)
        self._chosen = np.full(shape, -np.inf)

    def add(
        self, logits: Float[np.ndarray, "batch seq rows"], rows: VocabularySlice
    ) -> None:
        """Take in the logits of a slice of the vocabulary."""
        logits = np.asarray(logits, np.float64)[:, :-1, rows.behind :]
        place = self._next - (rows.start + rows.behind)
        inside = (place >= 0) & (place < logits.shape[-1])
        picked = np.take_along_axis(
            logits, np.where(inside, place, 0)[..., None], axis=-1
        )[..., 0]
        self._chosen = np.where(inside, picked, self._chosen)
        with np.errstate(invalid="ignore"):
            top = np.maximum(self._top, logits.max(axis=-1))
            power = logits - top[..., None]
            np.exp(power, out=power)
            self._weight *= np.exp(self._top - top)
            self._weight += power.sum(axis=-1)
        self._top = top

    def bits(self) -> Float[np.ndarray, "batch predicted"]:
        """The loss of each predicted token in bits; NaN where logits are not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            nats = np.log(self._weight) + self._top - self._chosen
        return nats / math.log(2)


def reference_loss(
    bits: Float[np.ndarray, "batch predicted"],
    ids: Int[np.ndarray, "batch seq"],
    vocab_size: int,
    *,
    is_text: bool,
    source: str = "",
    n_bytes: int | None = None,
) -> ReferenceLoss:
    """The loss of the reference beside what guessing and counting would need.

    **Arguments:**

    - `bits`: of each token of `ids[:, 1:]`.
    - `vocab_size`: without padding.
    - `is_text`: whether the tokens are text; of others nothing is judged.
    - `source`: of the tokens, in words.
    - `n_bytes`: of the text that was predicted, where a tokenizer tells.
    """
    predicted = np.asarray(ids)[:, 1:]
    mean = float(bits.mean())
    # copies of one sequence are one observation
    distinct = np.unique(ids, axis=0, return_index=True)[1]
    stderr, method = stderr_of_loss(bits[distinct])
    codes = code_lengths(predicted)
    unigram = frequencies_need(predicted, vocab_size)
    unigram_stderr, _ = stderr_of_loss((bits - codes)[distinct])
    reason = _not_judged(bits, codes, stderr, method, is_text, source)
    return ReferenceLoss(
        loss_bits_per_token=mean,
        stderr=stderr,
        stderr_method=method,
        bits_per_byte=mean * bits.size / n_bytes if n_bytes else None,
        uniform_bits=math.log2(vocab_size),
        unigram_bits=unigram,
        unigram_stderr=None if unigram is None else unigram_stderr,
        predicted=int(bits.size),
        judged=reason is None,
        reason=reason,
        by_text=bits.mean(axis=1).tolist() if len(bits) > 1 else None,
    )


def _not_judged(bits, codes, stderr, method, is_text, source) -> str | None:
    """Why the loss says nothing about the model, or None where it does."""
    if not is_text:
        if source.startswith("random"):
            return "the tokens are random"
        return "nobody said that these ids are text (--tokens-are-text)"
    if not np.isfinite(bits).all():
        return "the reference's logits are not finite"
    if bits.size < FEWEST_TOKENS:
        return f"{bits.size} predicted tokens, fewer than {FEWEST_TOKENS}"
    if stderr is None:
        return method
    if codes.mean() < LEAST_ENTROPY:
        return f"the text repeats itself ({codes.mean():.2g} bits a token)"
    return None


def stderr_of_loss(
    bits: Float[np.ndarray, "batch predicted"],
) -> tuple[float | None, str]:
    r"""Standard error of the mean over correlated tokens, and how it was formed.

    That of `stderr_of_mean`: of sequence means from 8 sequences on, else from the
    slowest cosines along all tokens. Where these give none (the loss drifts over a good
    part of the text, or there are fewer than 80 tokens), the range R of the means of 3
    parts stands in: the last of 4 equal ones, since the first has little context, and
    what is lost may take its tokens to show. R is at least $\sqrt 3$ standard
    deviations s of such a mean ($2 s^2 = \sum (m_i - m)^2 \le \frac{2}{3} R^2$, which
    two at one end reach). Independent parts would leave s / 2 of all 4, parts that all
    drift together s: R is too large an error, and a finding that exceeds it stands. Of
    a drift that is longer than the text no part of the text tells.

    **Returns:** None below 64 tokens, or where some loss is not finite.
    """
    if not np.isfinite(bits).all():
        return None, "the loss is not finite"
    error, method = stderr_of_mean(bits)
    if error is not None:
        return error, method
    if bits.size < FEWEST_TOKENS:
        return None, f"{bits.size} tokens are too few for a standard error"
    parts = np.array_split(bits.reshape(-1), PARTS)[1:]
    means = [float(part.mean()) for part in parts]
    why = method.removeprefix("none: ").replace("log decays drift", "it drifts")
    return max(means) - min(means), (
        f"largest less smallest of {len(means)} means of {bits.size // PARTS} tokens "
        f"each, no standard error but more ({why})"
    )


def code_lengths(
    tokens: Int[np.ndarray, "batch predicted"],
) -> Float[np.ndarray, "batch predicted"]:
    """-log2 of each token's frequency among all of them, in bits; their mean is the
    plug-in entropy."""
    _, place, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    return -np.log2(counts / tokens.size)[place.reshape(tokens.shape)]


def frequencies_need(
    tokens: Int[np.ndarray, "batch predicted"], vocab_size: int
) -> float | None:
    r"""Bits a token that a predictor needs that knows the text's frequencies alone.

    The plug-in entropy of n tokens is too low: it knows which tokens come at all. With
    the Good-Turing share of what n tokens have not shown, $f_1 / n$ ($f_1$ tokens came
    once), spread evenly over the rest of the vocabulary, this is an upper estimate:
    $C H + h(C) + (1 - C) \log_2 (V - K)$, with $C = 1 - f_1 / n$, h the entropy of a
    coin, K distinct tokens of V. It falls to the plug-in entropy as the text grows
    (bundled text: 4.5 bits from 512 bytes on).

    **Returns:** None where every token came once: the text is too short to count.
    """
    counts = np.unique(tokens, return_counts=True)[1]
    seen = 1 - float(np.sum(counts == 1)) / tokens.size
    if seen == 0:
        return None
    share = counts / tokens.size
    entropy = float(-np.sum(share * np.log2(share)))
    rest = vocab_size - counts.size
    if seen == 1 or rest == 0:
        return entropy
    coin = -seen * math.log2(seen) - (1 - seen) * math.log2(1 - seen)
    return seen * entropy + coin + (1 - seen) * math.log2(rest)
