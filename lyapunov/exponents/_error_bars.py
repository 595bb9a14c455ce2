"""How far an exponent would move on other text of the same kind."""

import math

import numpy as np
from jaxtyping import Float

from ._cosines import FEWEST_WINDOWS, SLOW, USED, slowest_cosines


FEWEST_SEQUENCES = 8
MOST_WINDOWS = 1024


def stderr_of_mean(
    log_decay: Float[np.ndarray, "batch seq"],
) -> tuple[float | None, str]:
    """Estimate the standard error of the mean over all tokens of a correlated series.

    From batch 8 up it is the standard deviation of the sequence means over
    sqrt(batch); else that of `SlowestCosines`, as in `SpectrumResult.stderr`, of the
    sequences joined end to end. Null where that has no bar, or where a value is not
    finite.

    **Returns:** the standard error in nats per token and how it was formed, in words.
    """
    batch, seq = log_decay.shape
    if not np.isfinite(log_decay).all():
        return None, "none: the exponent is not finite"
    if batch >= FEWEST_SEQUENCES:
        means = log_decay.mean(axis=1)
        method = f"standard deviation of {batch} sequence means / sqrt({batch})"
        return float(means.std(ddof=1) / math.sqrt(batch)), method
    tokens = batch * seq
    width = -(-tokens // MOST_WINDOWS)
    windows = tokens // width
    rate = log_decay.reshape(-1)[: windows * width].reshape(windows, width)
    found = slowest_cosines(rate.mean(axis=1)[:, None], windows, np)
    if found.given[0]:
        # the mean is over all tokens, some of which are in no window
        return float(np.sqrt(found.variance[0] * width / tokens)), (
            f"power of the {USED} slowest cosines along {tokens} tokens; Student's t "
            f"with {USED} degrees of freedom; a weak drift over more than "
            f"{tokens // SLOW} tokens would not be seen"
        )
    if windows < FEWEST_WINDOWS:
        return None, f"none: {tokens} tokens, fewer than {FEWEST_WINDOWS}"
    return None, (
        f"none: log decays drift too slowly for {tokens} tokens; about "
        f"{found.wanted[0] * width:.2g} are needed"
    )
