r"""T2 and T3: what an execution's roundings are estimated to do to the logits.

T2 is the worst case to first order: $\sqrt{T\,\mathrm{E}\,w^2}$ plus the shift, w from
`adjoint`. T3 is sigma: $\sigma^2 = |shift|^2 + \mathrm{mean}_k |p_k - s|^2$, from
`probes` and `predicted`. The shift, what rounding the weights alone does, is computed.
Both are in the norm of `measured_rel_l2`, and both are estimates: nothing here is
certified.

T2 and the shares are of roundings at the execution's stores. T3 has the inner fp32
between them as well where nothing is stored in less; beside 16-bit stores it does not
show.

T3 holds under its model of roundings alone, so it is calibrated: at every token the L2
of what the run did beyond the shift, over the rms of what the probes did. The rms over
tokens is z, about 1 where the model holds.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..arithmetic._programs import program
from ..implementations import Execution
from ..models import Model, Sublayer, VocabularySlice
from ..results._check import Decisions, OutputDivergence
from ..sublayers.sites import LOGITS
from ._scatter import contexts_of, relative_error_of, widening
from .adjoint import Adjoints, Effects, at_tokens
from .predicted import RandomError, add_logits, no_sums, predicted_stable, random_error
from .probes import Probes


# The z between which sigma is shown.
CALIBRATED = (0.7, 1.3)


@dataclasses.dataclass(frozen=True)
class EndToEndEstimate:
    """T2 and T3 of one execution; relative L2 of the logits unless said otherwise."""

    estimate_t2: float | None
    estimate_t2_stderr: float | None
    sigma_t3: float
    """Withheld or not."""
    sigma_t3_stderr: float | None
    sigma_withheld: str | None
    calibration_z: float | None
    n_readouts: int
    """Tokens at which z was taken."""
    n_probes: int
    nonlinearity: float | None
    weights_rel_l2: float | None
    """None where the reference's logits are one value a token, as T2 and the shares."""
    sigma_by_site: dict[str, float] | None
    """Share of the variance of random roundings, by site."""
    state_share: float | None
    """Share of the variance of random roundings that the state's make, from a probe of
    them alone; None where the state is not stored below fp32."""
    sigma_share: dict[int, float] | None
    """The same by sublayer; what is missing from 1 is the head's."""
    predicted_stable: Bool[np.ndarray, "batch seq"]
    """Tokens whose leader keeps 4 sigma from every other; none where sigma is withheld,
    since it is the same sigma."""
    readout_z: Float[np.ndarray, " readouts"] | None
    """What the run did to each read-out of T2, over its sigma by adjoints."""

    def into(self, output: OutputDivergence) -> OutputDivergence:
        """The measured divergence with these estimates beside it."""
        withheld = self.sigma_withheld is not None
        return dataclasses.replace(
            output,
            estimate_t2=self.estimate_t2,
            estimate_t2_stderr=self.estimate_t2_stderr,
            sigma_t3=None if withheld else self.sigma_t3,
            sigma_t3_stderr=None if withheld else self.sigma_t3_stderr,
            sigma_withheld=self.sigma_withheld,
            calibration_z=self.calibration_z,
            n_readouts=self.n_readouts,
            n_probes=self.n_probes,
            nonlinearity=self.nonlinearity,
            weights_rel_l2=self.weights_rel_l2,
            sigma_by_site=self.sigma_by_site,
            state_share=None if withheld else self.state_share,
        )


class EndToEnd:
    """T2 and T3 beside a reference and the executions' runs, a sublayer at a time.

    In order: `sublayer` for each record of the reference, `head`, `logits` for each
    slice of the vocabulary, `reverse` to its end, `estimate` for each execution.

    **Arguments:**

    - `tokens`: (batch, seq).
    - `n_probes`: runs with random roundings for each execution, at least 1. From 2
      on the last is the first with opposite signs, which shows what is not linear (and
      offsets whose size changes where a value changes its binade).
    - `n_readouts`: read-outs for T2 and the attributions, shared by all executions;
      each costs a reverse pass over one sequence. 0 leaves both out.
    """

    def __init__(
        self,
        model: Model,
        tokens,
        executions: Sequence[Execution],
        *,
        n_probes: int = 1,
        n_readouts: int = 4,
        seed: int = 0,
    ):
        batch, seq = self._shape = np.shape(tokens)
        self._model = model
        self._contexts = contexts_of(np.asarray(tokens))
        self._executions = list(executions)
        self._vocabulary = model.config.vocab_size
        self._n_probes = n_probes
        self._probes = [
            Probes(
                model,
                tokens,
                execution,
                n_probes=n_probes,
                seed=seed + 1,
                of_state=True,
            )
            for execution in executions
        ]
        slices = model.vocabulary_slices()
        rows = max((one.stop - one.start for one in slices), default=0)
        self._sums = [
            no_sums(batch, seq, n_probes, rows, of_state=probes.draws_state)
            for probes in self._probes
        ]
        self._adjoints = (
            Adjoints(model, self._shape, executions, n_readouts=n_readouts, seed=seed)
            if n_readouts and self._executions
            else None
        )
        self._at_readouts: list[Any] = [0.0 for _ in executions]
        self._ran = False

    def sublayer(self, layer: Sublayer, reference) -> None:
        """Run one sublayer in all probes.

        **Arguments:**

        - `reference`: the reference's record of it.
        """
        if self._adjoints is not None:
            self._adjoints.sublayer(reference)
        for probes in self._probes:
            probes.sublayer(layer, reference)

    def head(self, reference) -> None:
        """Run the final norm.

        **Arguments:**

        - `reference`: the reference's head.
        """
        if self._adjoints is not None:
            self._adjoints.head(reference)
        for probes in self._probes:
            probes.head()

    def logits(self, rows: VocabularySlice, reference, others) -> None:
        """Take in a slice of the vocabulary.

        **Arguments:**

        - `reference`: logits (batch, seq, rows) of the reference.
        - `others`: the same of each execution's run; None where there was no run.
        """
        readouts = None
        if self._adjoints is not None:
            self._adjoints.logits(rows, reference)
            readouts = self._adjoints.tokens, self._adjoints.readout(rows)
        for i, other in enumerate(others):
            self._sums[i], moved = _taken_in(
                self._sums[i],
                reference,
                self._probes[i].logits(rows.start, rows.stop),
                other,
                _of_head(self._executions[i].site_numbers()),
                self._model.config.logits_end,
                rows.behind,
                readouts,
            )
            self._ran |= other is not None
            if moved is not None:
                self._at_readouts[i] += np.asarray(moved)

    def reverse(self) -> Iterator[int]:
        """Go back through the network; yields each sublayer's number when done."""
        if self._adjoints is not None:
            yield from self._adjoints.reverse()

    def estimate(self, i: int) -> EndToEndEstimate:
        """The estimates for the i-th execution."""
        error = random_error(self._sums[i], self._vocabulary)
        independent = self._probes[i].n_independent
        shift, size = np.sum(error.shift), np.sum(error.size)
        by_token = error.drawn[:independent]
        drawn = np.sum(by_token) / independent
        with np.errstate(invalid="ignore", divide="ignore"):
            sigma = float(np.sqrt((shift + drawn) / size))
            spread = relative_error_of(by_token) * drawn / (shift + drawn)
            spread *= widening(np.mean(by_token, axis=0), self._contexts)
            weights = float(np.sqrt(shift / size))
            of_state = (
                None
                if error.of_state is None or not drawn > 0
                else min(1.0, float(np.sum(error.of_state) / drawn))
            )
        z = _calibration(error) if self._ran else None
        effects = None if self._adjoints is None else self._adjoints.effects[i]
        t2, t2_stderr = (
            (None, None)
            if effects is None
            else _worst_case(effects, error.shift.size, size, weights)
        )
        by_site, by_layer = (None, None) if effects is None else _shares(effects)
        withheld = _why_withheld(sigma, z)
        if not size > 0:
            # a head of zeros, as muP starts: nothing has a size relative to nothing
            withheld = "the reference's logits are one value a token, without a size"
            t2 = t2_stderr = by_site = by_layer = None
        stable = predicted_stable(self._sums[i], self._vocabulary)
        return EndToEndEstimate(
            estimate_t2=t2,
            estimate_t2_stderr=t2_stderr,
            sigma_t3=sigma,
            sigma_t3_stderr=float(sigma * spread / 2) if size > 0 else None,
            sigma_withheld=withheld,
            calibration_z=z,
            n_readouts=error.shift.size,
            n_probes=self._n_probes,
            nonlinearity=(
                error.nonlinearity if self._probes[i].has_antithetic else None
            ),
            weights_rel_l2=weights if size > 0 else None,
            sigma_by_site=by_site,
            state_share=of_state,
            sigma_share=by_layer,
            predicted_stable=stable & (withheld is None),
            readout_z=(
                None
                if effects is None or not self._ran
                else np.ravel(self._at_readouts[i]) / np.sqrt(effects.total("variance"))
            ),
        )


@program
def _taken_in(sums, reference, probes, other, sites, end, behind, readouts):
    """The sums with a slice of the vocabulary, of which `behind` rows are in them; and
    what the run did to the read-outs there."""
    shifted, drawn, norms, of_state = probes
    given = reference, shifted, drawn, norms, other
    sums = add_logits(sums, *given, sites, end, behind, of_state)
    if other is None or readouts is None:
        return sums, None
    tokens, readout = readouts
    return sums, jnp.sum(at_tokens(other - shifted, tokens) * readout, axis=-1)


def _of_head(sites: dict) -> dict:
    return {name: numbers for name, numbers in sites.items() if name in LOGITS}


def _calibration(error: RandomError) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.mean(error.drawn, axis=0)
        # where nothing is rounded on the way nothing may have happened
        ratio = np.where(
            (expected == 0) & (error.rest == 0), 1.0, error.rest / expected
        )
        return float(np.sqrt(np.mean(ratio)))


def _why_withheld(sigma: float, z: float | None) -> str | None:
    if not math.isfinite(sigma):
        return "a value may overflow, so random roundings have no finite size"
    if z is None:
        return None
    low, high = CALIBRATED
    if low <= z <= high:
        return None
    if not math.isfinite(z):
        return "the run's logits are not finite"
    kind = (
        "more than independent roundings of the stored tensors make: roundings of one "
        "sign, or roundings between the stores"
        if z > high
        else "less than independent roundings of the stored tensors make: values that "
        "are stored without rounding, or roundings that cancel"
    )
    return f"z is {_shown_apart(z)}, outside {low} to {high}: the run moved {kind}"


def _shown_apart(z: float) -> str:
    """As few digits as show that z is outside."""
    low, high = CALIBRATED
    shown = (f"{z:.{digits}g}" for digits in range(2, 17))
    return next((text for text in shown if not low <= float(text) <= high), repr(z))


def _worst_case(effects: Effects, tokens: int, size: float, shift: float):
    """T2 and its standard error, from the spread over read-outs."""
    squares = effects.total("worst") ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = float(np.sqrt(tokens * np.mean(squares) / size))
        stderr = None
        if len(squares) > 1:
            relative = np.std(squares, ddof=1) / np.sqrt(len(squares))
            stderr = float(rounding * relative / np.mean(squares) / 2)
    return rounding + shift, stderr


def _shares(effects: Effects) -> tuple[dict[str, float], dict[int, float]]:
    """Shares of the variance, by site and by sublayer."""
    total = float(np.sum(effects.total("variance")))
    by_site: dict[str, float] = {}
    by_layer: dict[int, float] = {}
    if not total > 0:
        return by_site, by_layer
    for (place, site), variance in effects.variance.items():
        share = float(np.sum(variance)) / total
        by_site[site] = by_site.get(site, 0.0) + share
        if place >= 0:
            by_layer[place] = by_layer.get(place, 0.0) + share
    return by_site, dict(sorted(by_layer.items()))


def decided(
    differs: Bool[np.ndarray, "batch seq"],
    tied: Bool[np.ndarray, "batch seq"],
    predicted: Bool[np.ndarray, "batch seq"],
    certified: Bool[np.ndarray, "batch seq"] | None,
) -> Decisions:
    """Greedy tokens, counted.

    A certified token may not even tie; a predicted one counts as flipped where the
    choice is another, and not one of several equal leaders of the reference.

    **Arguments:**

    - `differs`, `tied`: of the run, from its logits.
    - `predicted`, `certified`: tokens that were promised not to change; None where
      nobody looked for certified ones.
    """
    known = certified is not None
    return Decisions(
        total=int(differs.size),
        certified_stable=int(np.sum(certified)) if known else None,
        certified_flipped=int(np.sum(certified & differs)) if known else None,
        predicted_stable=int(np.sum(predicted)),
        predicted_flipped=int(np.sum(predicted & differs & ~tied)),
        ties=int(np.sum(differs & tied)),
    )
