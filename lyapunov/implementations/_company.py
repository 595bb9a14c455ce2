"""Other texts for the batch in which an audited text is one of the rows."""

import numpy as np
from jaxtyping import Int


def in_company(
    tokens: Int[np.ndarray, "batch seq"], row: int
) -> tuple[Int[np.ndarray, "rows seq"], slice]:
    """Put the first text among at least two others.

    **Arguments:**

    - `row`: where it goes, from 0.

    **Returns:** the batch, and the row of the text.
    """
    others = company(tokens, max(row, 2))
    batch = np.concatenate([others[:row], tokens[:1], others[row:]])
    return batch, slice(row, row + 1)


def company(
    tokens: Int[np.ndarray, "batch seq"], rows: int
) -> Int[np.ndarray, "rows seq"]:
    """Make so many other texts: the other sequences, then the first one shifted."""
    seq = tokens.shape[1]
    shifted = [np.roll(tokens[:1], 1 + (i * seq) // (rows + 1)) for i in range(rows)]
    return np.concatenate([tokens[1:], *shifted])[:rows]
