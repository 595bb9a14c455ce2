"""How far an exponent would move on other text of the same kind."""

import math

import numpy as np
from jaxtyping import Float


FEWEST_SEQUENCES = 8
FEWEST_BLOCKS = 20


def stderr_of_mean(
    log_decay: Float[np.ndarray, "batch seq"],
) -> tuple[float | None, str]:
    """Standard error of the mean over all tokens of a correlated series.

    From batch 8 up the standard deviation of the sequence means over sqrt(batch);
    else that of the means of blocks of floor(sqrt(seq)) tokens, over the square root
    of their number (tokens left over at the end of a sequence are not used). Null
    where fewer than 20 blocks stand, or where a value is not finite.

    **Returns:** the standard error and how it was formed, in words.
    """
    batch, seq = log_decay.shape
    if batch >= FEWEST_SEQUENCES:
        means = log_decay.mean(axis=1)
        method = f"standard deviation of {batch} sequence means / sqrt({batch})"
    else:
        width = math.isqrt(seq)
        blocks = seq // width
        means = log_decay[:, : blocks * width].reshape(-1, width).mean(axis=1)
        method = (
            f"standard deviation of {means.size} means of blocks of {width} tokens "
            f"/ sqrt({means.size})"
        )
        if means.size < FEWEST_BLOCKS:
            return None, (
                f"none: {batch} sequence(s) of {seq} tokens give {means.size} blocks "
                f"of {width}, fewer than {FEWEST_BLOCKS}"
            )
    if not np.isfinite(means).all():
        return None, "none: the exponent is not finite"
    return float(means.std(ddof=1) / math.sqrt(means.size)), method
