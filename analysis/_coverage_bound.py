r"""The least share of wrong bars that any rule can have, by linear duality.

A rule sees a sample through the power $P_j$ of its slowest cosines, j from 1 to J,
and gives a half width h or withholds. It does not know the unit: h is as many times
the root mean power as it finds by the ratios of the $P_j$. Their density under a
drift, over that under white noise, is
$L = \prod_j S_j^{-1/2} \, (\sum_j P_j / S_j \,/ \sum_j P_j)^{-J/2}$, with S the
expected power; given them the error of the mean is a Student t of J degrees of freedom
(the cosines and the mean are taken for independent). The rule may know every parameter
of the drift. White noise binds it: of that at most 5 % is withheld, and the bars given
are in the mean at most 1.3 times $1.96 / \sqrt T$ wide. So for any multipliers
$\lambda, \kappa \ge 0$, and with E over white noise, its share of wrong bars is at
least

$$E \min\{\min_h [L P(|t| > h / s) + \lambda (h - 2.55)], \kappa\} - 0.05 \kappa,$$

of which the largest over the multipliers is the least share itself. Of several cells a
weighted sum bounds the weighted sum of shares, and so the largest of them, for a rule
that is one for all, whatever the weights are. A withheld bar may be counted as a part
of a wrong one.
"""

import numpy as np
from jaxtyping import Float
from scipy import optimize, signal, special


WITHHELD, WIDTH = 0.05, 1.3 * 1.96
"""Most of white noise: share, and mean half width in true standard errors."""
HALF_WIDTHS = np.concatenate([[0], np.linspace(0.8, 5, 43), np.geomspace(5.3, 60, 16)])
SAMPLES = 10_000
SEED = 20240600209


def spectrum(
    tokens: int, share: float, correlation: float, cosines: int
) -> Float[np.ndarray, " powers"]:
    """Expected power of the mean, times the tokens, and of the slowest cosines.

    Of white noise of variance 1 with a first-order autoregression of variance `share`,
    exact: $c^T R c = \\sum_t c_t (2 f_t - c_t)$ with $f_t = c_t + \\rho f_{t-1}$.
    """
    carried = np.exp(-1 / correlation)
    at = np.pi * (np.arange(tokens) + 0.5) / tokens
    waves = np.cos(np.arange(cosines + 1)[:, None] * at) * np.sqrt(2 / tokens)
    waves[0] /= np.sqrt(2)
    sums = signal.lfilter([1.0], [1.0, -carried], waves, axis=1)
    return 1 + share * np.sum(waves * (2 * sums - waves), axis=1)


def least(
    spectra: Float[np.ndarray, "cells powers"],
    weights: Float[np.ndarray, " cells"],
    withheld: Float[np.ndarray, " cells"],
) -> float:
    """Bound the weighted sum of the cells' shares of wrong bars, for one rule.

    **Arguments:**

    - `spectra`: of each cell, as of `spectrum`.
    - `withheld`: as what part of a wrong bar one that is withheld counts.
    """
    cells, cosines = spectra.shape[0], spectra.shape[1] - 1
    rng = np.random.default_rng(SEED)
    power = rng.chisquare(1, size=(SAMPLES, cosines))
    # half of the samples are the cells', so that what is rare in white noise is seen
    half = SAMPLES // 2
    power[:half] *= spectra[rng.integers(0, cells, half), 1:]
    left = (power / power.sum(axis=1, keepdims=True)) @ (1 / spectra[:, 1:]).T
    ratio = left ** (-cosines / 2) / np.sqrt(np.prod(spectra[:, 1:], axis=1))
    white = 1 / (0.5 + 0.5 * ratio.mean(axis=1))
    drift = ratio * white[:, None] * weights
    spread = np.sqrt(left * spectra[:, 0])
    wrong = sum(
        drift[:, i : i + 1]
        * 2
        * special.stdtr(cosines, -HALF_WIDTHS / spread[:, i : i + 1])
        for i in range(cells)
    )
    # mean of the root mean power of white noise, whatever the ratios are
    unit = np.exp(special.gammaln((cosines + 1) / 2) - special.gammaln(cosines / 2))
    over = HALF_WIDTHS * unit * np.sqrt(2 / cosines) - WIDTH
    held = drift @ withheld

    def dual(log_multiplier: float) -> float:
        best = (wrong + np.exp(log_multiplier) * white[:, None] * over).min(axis=1)
        excess = (best - held) / white
        order = np.argsort(excess)
        rank = np.searchsorted(np.cumsum(white[order]) / SAMPLES, 1 - WITHHELD)
        price = max(excess[order[min(rank, SAMPLES - 1)]], 0)
        return float(np.minimum(best, price * white + held).mean() - WITHHELD * price)

    found = optimize.minimize_scalar(
        lambda x: -dual(x), bounds=(-8, 2), method="bounded", options={"xatol": 0.02}
    )
    return max(-float(found.fun), 0.0)
