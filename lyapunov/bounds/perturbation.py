r"""How far a perturbed state moves a linear recurrence with diagonal decays.

For $h_t = a_t h_{t-1} + b_t$ the difference of two trajectories obeys
$\delta_t = a_t \delta_{t-1} + e_t$, $e_t$ what is injected at token t. A one-off
perturbation therefore shrinks like the product of decays, which is what an exponent
at or below 0 says. A perturbation at every token does not: it grows to
$\varepsilon \max_t \mathrm{scan}(a, 1)_t$, which the exponents do not tell. The
formula $\varepsilon / (1 - e^\lambda)$ holds for a constant decay only.

Everything is in the maximum norm over channels and states, for decays in [0, 1],
and is rounded up.
"""

import math

import numpy as np
from jaxtyping import Array, Float

from ..results._check import UpperBound


UNIT = 2.0**-53
TIER = "state"

Decays = Float[Array | np.ndarray, "seq *state"]


def one_off_bound(epsilon: float, log_decay: Decays) -> UpperBound:
    r"""A perturbation of the state before the first of these tokens, after the last.

    $|\delta_T| = |\delta_0| \prod_t a_t \le \varepsilon \max_i \prod_t a_{t,i}$, with
    equality for a perturbation of the slowest channel and state. One perturbed input
    b_s is this for the tokens after s.

    **Arguments:**

    - `epsilon`: largest entry of the perturbation.
    - `log_decay`: log a, (seq, ...); an empty sequence leaves `epsilon`.
    """
    log_decay = _checked(log_decay)
    growth = float(np.max(log_decay.sum(axis=0), initial=-np.inf))
    return UpperBound(
        value=_times_up(epsilon, _exp_up(growth, len(log_decay))),
        tier=TIER,
        holds_for="a perturbation of the state before the first token, inputs held",
    )


def exponent_bound(epsilon: float, exponent: float, n_tokens: int) -> UpperBound:
    r"""The same in terms of the largest finite-time exponent: eps e^(N zeta).

    **Arguments:**

    - `exponent`: zeta, the largest mean log decay over these very tokens, or any
      upper bound of it such as 0. The exponent of other text is none.
    """
    return UpperBound(
        value=_times_up(epsilon, _exp_up(exponent * n_tokens, n_tokens)),
        tier=TIER,
        holds_for=(
            "a perturbation of the state before the first token, inputs held, on "
            "tokens whose largest exponent is at most the given one"
        ),
    )


def persistent_bound(epsilon: float, log_decay: Decays) -> UpperBound:
    r"""Perturbations of at most eps before the first and at every token.

    $|\delta_t| \le \varepsilon \max_{t,i} \mathrm{scan}(a, 1)_{t,i}$ at every token,
    the scan starting from a perturbed state: attained where all injections have one
    sign.
    """
    gain = persistent_gain(log_decay)
    return UpperBound(
        value=_times_up(epsilon, float(gain.max())),
        tier=TIER,
        holds_for="a perturbation of the state and of every update, inputs held",
    )


def largest_decay_bound(epsilon: float, largest_decay: float) -> UpperBound:
    r"""The same from the largest decay alone: eps / (1 - sup a), inf from 1 up.

    Holds for any number of tokens.
    """
    gain = math.inf
    if largest_decay < 1:
        gain = 1 / (1 - largest_decay) * (1 + 4 * UNIT)
    return UpperBound(
        value=_times_up(epsilon, gain),
        tier=TIER,
        holds_for=(
            "a perturbation of the state and of every update, inputs held, on tokens "
            "whose decays are at most the given one"
        ),
    )


def persistent_gain(log_decay: Decays) -> Float[np.ndarray, "*state"]:
    """The largest of scan(a, 1)_t over tokens, from 1 before the first, rounded up."""
    log_decay = _checked(log_decay)
    gain = np.ones(log_decay.shape[1:])
    largest = gain
    # exp within 2 ulp, a product and a sum: each token 6 roundings of positive terms
    step_up = 1 + 8 * UNIT
    for row in log_decay:
        gain = (np.exp(row) * gain + 1) * step_up
        largest = np.maximum(largest, gain)
    return largest


def _checked(log_decay) -> np.ndarray:
    log_decay = np.asarray(log_decay, np.float64)
    if log_decay.ndim < 1 or not np.all(log_decay <= 0):
        raise ValueError(
            "log decays must be (seq, ...) and at most 0, as dt A is; the largest is "
            f"{log_decay.max(initial=-np.inf)}"
        )
    return log_decay


def _exp_up(total: float, n_terms: int) -> float:
    """exp of a sum of so many numbers of one sign, rounded up."""
    if total == -math.inf:
        return 0.0
    above = total + (n_terms + 2) * UNIT * abs(total)
    if above > 709:
        return math.inf
    # below the smallest normal number a relative slack is none
    return math.exp(above) * (1 + 8 * UNIT) + math.ulp(0.0)


def _times_up(epsilon: float, gain: float) -> float:
    """|eps| gain, rounded up."""
    return math.nextafter(abs(epsilon) * gain, math.inf) if epsilon and gain else 0.0
