"""What the stores of a logit may move it by."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..formats import FormatNumbers, rounding_error_bound


def logit_roundings(
    magnitude: Float[Array, "..."], sites: dict[str, FormatNumbers], multiplier: float
) -> dict[str, Float[Array, "..."]]:
    """By site, the largest size of what it may move a logit by.

    **Arguments:**

    - `magnitude`: of the final logits, at most.
    - `sites`: of an execution; the head stores `logits`, and `logits_scaled` where
      the model multiplies them.
    - `multiplier`: of all logits.
    """
    found = {}
    if "logits" in sites:
        scale = abs(multiplier)
        found["logits"] = scale * rounding_error_bound(
            magnitude / scale, sites["logits"]
        )
    if "logits_scaled" in sites and multiplier != 1.0:
        before = found.get("logits", jnp.zeros_like(magnitude))
        found["logits_scaled"] = rounding_error_bound(
            magnitude + before, sites["logits_scaled"]
        )
    return found
