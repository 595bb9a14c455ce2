"""How much sums of squares over draws and tokens scatter: errors of estimates."""

import math

import numpy as np
from jaxtyping import Float, Int


# Blocks of tokens whose errors count as independent in sigma's own standard error.
ERROR_BLOCKS = 16
# Tokens that are alike with so many in front of them count as copies of each other.
CONTEXT = 8


def relative_error_of(squares: Float[np.ndarray, "draws batch seq"]) -> float:
    """Standard error of the mean over draws of a sum of squares, over that mean.

    From the spread over draws and blocks of tokens, which are independent, as draws
    are anew at every token (a run's are not where its text repeats: `widening`).
    For a single block of a single draw it is the limit sqrt(2), that of one Gaussian
    number.
    """
    count = min(ERROR_BLOCKS, squares.shape[2])
    parts = np.array_split(squares, count, axis=2)
    blocks = np.stack([part.sum(axis=(1, 2)) for part in parts], axis=-1)
    if blocks.size < 3:
        return math.sqrt(2 / len(squares))
    relative = blocks / np.mean(blocks, axis=0) if len(squares) > 2 else blocks
    return float(np.std(relative, ddof=1) / np.mean(relative) / np.sqrt(blocks.size))


def contexts_of(tokens: Int[np.ndarray, "batch seq"]) -> Int[np.ndarray, "batch seq"]:
    """Number the tokens by what they are and by those in front of them."""
    batch, seq = tokens.shape
    padded = np.full((batch, CONTEXT - 1 + seq), -1, tokens.dtype)
    padded[:, CONTEXT - 1 :] = tokens
    each = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT, axis=1)
    _, numbers = np.unique(each.reshape(-1, CONTEXT), axis=0, return_inverse=True)
    return numbers.reshape(batch, seq)


def widening(
    squares: Float[np.ndarray, "batch seq"], contexts: Int[np.ndarray, "batch seq"]
) -> float:
    """How much more a run's sum of squares scatters than that of distinct tokens.

    A probe draws anew at every token; a run rounds the same values in the same way
    wherever a text repeats itself, so that the squares of one context rise and fall
    together. The effective number of tokens is Kish's, (sum)^2 over the sum of
    squares, once by context and once by token, each as large as its context's mean.

    ??? cite "Kish (1965), Survey Sampling, section 11.7"
    """
    counts = np.bincount(np.ravel(contexts))
    together = np.bincount(np.ravel(contexts), np.ravel(squares))
    apart = np.sum(together**2 / counts)
    return math.sqrt(np.sum(together**2) / apart) if apart > 0 else 1.0
