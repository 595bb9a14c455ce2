"""Token ids as they are given from Python: integers, in range, of one shape."""

from typing import Any

import numpy as np
from jaxtyping import Int

from .._errors import TokensError


def integer_tokens(tokens: Any, least: int = 1) -> np.ndarray:
    """Tokens from Python as integers of shape (batch, seq).

    **Arguments:**

    - `least`: tokens a sequence.

    **Raises:** `TokensError` for rows of different lengths, for what are no integers,
    for tensors that are not in main memory, and for too few.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:
        raise TokensError(
            "the sequences of tokens are not of one length",
            hint="cut or pad them to one length: integers of shape (batch, seq)",
        ) from None
    except (TypeError, RuntimeError):
        raise TokensError(
            f"tokens are {type(tokens).__name__} that NumPy cannot read",
            hint="a tensor on a GPU: give tokens.cpu()",
        ) from None
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise TokensError(
            f"tokens are {ids.dtype} of shape {ids.shape}",
            hint="integers of shape (seq) or (batch, seq)",
        )
    ids = np.atleast_2d(ids)
    if ids.shape[0] == 0 or ids.shape[1] < least:
        wanted = f"{least} token{'s' if least > 1 else ''}"
        raise TokensError(
            f"tokens have shape {ids.shape}", hint=f"at least {wanted} a sequence"
        )
    return ids


def check_range(ids: Int[np.ndarray, "batch seq"], vocab_size: int) -> None:
    """**Raises:** `TokensError` that names the first id outside the vocabulary."""
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        row, position = (int(i) for i in np.argwhere(outside)[0])
        place = f"position {position}"
        if ids.shape[0] > 1:
            place = f"sequence {row}, {place}"
        others = int(outside.sum()) - 1
        more = f" ({others:,} more)" if others else ""
        raise TokensError(
            f"token id {ids[row, position]} at {place} is outside the vocabulary "
            f"of {vocab_size:,}: 0 to {vocab_size - 1}{more}",
            hint="were the tokens made with another model's tokenizer?",
        )
