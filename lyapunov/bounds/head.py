"""What the stores of a logit may move it by."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..formats import FormatNumbers, rounding_error_bound
from ..sublayers.config import LogitsEnd


def logit_roundings(
    magnitude: Float[Array, "..."], sites: dict[str, FormatNumbers], end: LogitsEnd
) -> dict[str, Float[Array, "..."]]:
    """By site, the largest size of what it may move a logit by; behind a soft cap to
    first order in what is stored before it.

    **Arguments:**

    - `magnitude`: of the final logits, at most.
    - `sites`: of an execution; the head stores `logits`, and what is made of them where
      the model makes something.
    """
    if end.soft_cap is not None:
        return _capped(magnitude, sites, end)
    found = {}
    if "logits" in sites:
        scale = abs(end.multiplier)
        found["logits"] = scale * rounding_error_bound(
            magnitude / scale, sites["logits"]
        )
    if "logits_scaled" in sites and end.multiplier != 1.0:
        before = found.get("logits", jnp.zeros_like(magnitude))
        found["logits_scaled"] = rounding_error_bound(
            magnitude + before, sites["logits_scaled"]
        )
    return found


def _capped(magnitude, sites: dict[str, FormatNumbers], end: LogitsEnd) -> dict:
    cap = end.soft_cap
    assert cap is not None
    share = jnp.minimum(magnitude / cap, 1.0 - 2.0**-53)
    inner, slope = jnp.arctanh(share), 1.0 - share**2
    before = logit_roundings(cap * inner, sites, end._replace(soft_cap=None))
    found = {site: slope * size for site, size in before.items()}
    for site, of, scale in (
        ("logits_divided", inner, slope * cap),
        ("logits_tanh", share, cap),
        ("logits_capped", magnitude, 1.0),
    ):
        if site in sites:
            found[site] = scale * rounding_error_bound(of, sites[site])
    return found
