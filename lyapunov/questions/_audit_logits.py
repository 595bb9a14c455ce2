"""Runs of an audit of which the logits were seen and nothing else, or a part of them.

Each is held to the fp64 reference by KL and by T3: no sublayer was seen, so nothing is
certified, and the verdict never says more than that the logits are in range.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..bounds.probes import Probes
from ..bounds.seen_logits import Apart, SeenFew, SeenVocabulary, Slice, seen_by
from ..implementations import Execution, Reference
from ..models import Model, VocabularySlice
from ..results._audit import IN_RANGE, REFERENCE, SUSPICIOUS, LogitsAudit, VariantAudit
from ..sublayers.sites import LOGITS
from . import _compare
from ._audit_verdict import Z_LIMIT
from ._audit_ways import Way


# Of the difference's energy, what is left of it behind one factor.
EXPLAINED = 0.02
# Of leaders: how many agree one token away, and at most at the same, of shifted rows.
AGREE, DISAGREE = 0.8, 0.5


def nothing_seen(way: Way) -> VariantAudit:
    """The entry of a run without any sublayer."""
    executions = dict.fromkeys(s.execution.name for s in way.segments)
    return VariantAudit(str(way.variant), way.precision, IN_RANGE, list(executions))


def with_seen_logits(
    model: Model, ids, ways: list[Way], results, n_probes: int, seed: int, progress
) -> list[VariantAudit]:
    """The entries of all runs, those with logits of their own held to the reference.

    **Arguments:**

    - `ids`: (batch, seq).
    - `results`: one entry a way.
    - `n_probes`: draws that sigma is estimated from, of each execution.
    """
    chosen = [i for i, way in enumerate(ways) if way.logits is not None]
    if not chosen:
        return results
    # of several probes the last is no draw of its own
    n_probes += n_probes > 1
    probes: dict[int, Probes] = {}
    runs = []
    for i in chosen:
        execution = _of_most_tokens(ways[i])
        own = probes.get(id(execution)) or Probes(
            model, ids, execution, n_probes=n_probes, seed=seed + 1
        )
        probes[id(execution)] = own
        runs.append(_Run(ways[i], execution, own, n_probes))
    reference: Any = Reference().trace(model, ids)
    for layer in model.sublayers:
        record = next(reference)
        for one in probes.values():
            one.sublayer(layer, record)
        if progress is not None:
            progress.advance(1, f"logits alone, layer {layer.layer}")
    head = next(reference)
    for one in probes.values():
        one.head()
    for rows in model.vocabulary_slices():
        logits = head.logits(rows.start, rows.stop)
        drawn = {key: one.logits(rows.start, rows.stop) for key, one in probes.items()}
        for run in runs:
            run.add(model, rows, logits, *drawn[id(run.execution)][:3])
    out = list(results)
    for i, run in zip(chosen, runs, strict=True):
        first = next(other for other in runs if other.comparable(run))
        rows = [run.held(model)]
        if first is not run:
            rows.append(run.beside(model, first))
        out[i] = _judged(results[i], rows, alone=ways[i].trace is None)
    return out


def _of_most_tokens(way: Way) -> Execution:
    """The execution of most of a run's tokens, whose stores probes draw for."""
    tokens: dict[int, int] = {}
    for one in way.segments:
        own = id(one.execution)
        tokens[own] = tokens.get(own, 0) + one.stop - one.start
    return max(way.segments, key=lambda one: tokens[id(one.execution)]).execution


def _judged(
    result: VariantAudit, rows: list[LogitsAudit], *, alone: bool
) -> VariantAudit:
    """The entry with its logits, which are its verdict where nothing else is seen."""
    result = dataclasses.replace(result, logits=[*result.logits, *rows])
    if not alone:
        return result
    return dataclasses.replace(
        result,
        verdict=SUSPICIOUS if rows[0].beyond else IN_RANGE,
        z=rows[0].z,
        tokens=rows[0].tokens,
    )


class _Run:
    """One run's logits on the way through the vocabulary."""

    def __init__(self, way: Way, execution: Execution, probes: Probes, n_probes: int):
        assert way.logits is not None
        self.name, self.execution = str(way.variant), execution
        self._seen = way.logits
        self._independent = probes.n_independent
        self._held = seen_by(way.logits, n_probes)
        self._sums = _compare.no_logits(*self._held.shape)

    def add(
        self, model: Model, rows: VocabularySlice, reference, shifted, drawn, norms
    ) -> None:
        """Take in a slice of the vocabulary, of the reference and of the probes."""
        at = self._seen.positions
        numbers, stores = self.execution.site_numbers(), self.execution.sites
        sites = [site for site in LOGITS if site in numbers]
        part = Slice(
            rows,
            jnp.asarray(reference)[:, at],
            shifted[:, at],
            drawn[:, :, at],
            norms,
            {site: numbers[site] for site in sites},
            max((stores[site].unit_roundoff for site in sites), default=0.0),
            model.config.logits_end,
        )
        self._held.add(part)
        if isinstance(self._held, SeenVocabulary):
            given = self._seen.values(rows.start, rows.stop)
            self._sums = _compare.add_logits(self._sums, part.reference, given, rows)

    def comparable(self, other: "_Run") -> bool:
        """Whether both have rows of the whole vocabulary at the same tokens."""
        if self is other:
            return True
        whole = self._seen.ids is None and other._seen.ids is None
        same = np.array_equal(self._seen.positions, other._seen.positions)
        return whole and same

    def beside(self, model: Model, first: "_Run") -> LogitsAudit:
        """This run's logits beside those of another."""
        sums = _compare.no_logits(*self._held.shape)
        for rows in model.vocabulary_slices():
            one, own = (x._seen.values(rows.start, rows.stop) for x in (first, self))
            sums = _compare.add_logits(sums, one, own, rows)
        return _compare.logits_audit(first.name, sums, model.config.vocab_size)

    def held(self, model: Model) -> LogitsAudit:
        """This run's logits beside the reference's, in sigmas."""
        vocabulary = model.config.vocab_size
        apart = self._held.apart(vocabulary, self._independent)
        z, positions = apart.z, self._seen.positions
        beyond = z > Z_LIMIT
        worst = np.unravel_index(np.argmax(z), z.shape)
        found = (
            _of_few(self._held)
            if isinstance(self._held, SeenFew)
            else _compare.logits_audit(REFERENCE, self._sums, vocabulary)
        )
        first = int(positions[np.argmax(beyond.any(axis=0))])
        return dataclasses.replace(
            found,
            sigma=apart.sigma,
            z=float(z[worst]),
            z_token=int(positions[worst[1]]),
            z_rms=float(np.sqrt(np.mean(z**2))),
            beyond=int(np.sum(beyond)),
            first_beyond=first if beyond.any() else None,
            tokens=int(z.size),
            looks_like=self._words(apart, vocabulary) if beyond.any() else None,
        )

    def _words(self, apart: Apart, vocabulary: int) -> str | None:
        """What a difference looks like that is no rounding."""
        if not isinstance(self._held, SeenVocabulary):
            return None
        host = jax.tree.map(np.asarray, self._sums)
        bad = int(np.sum(host.other_non_finite))
        if bad:
            reached = ", fp16 reaches 65,504" if self._seen.unit == 2.0**-11 else ""
            return f"{bad:,} of them are infinite or NaN{reached}"
        if not (apart.z_centred > Z_LIMIT).any():
            return (
                "each row is off by a constant of its own: log-probabilities, which "
                "are called logprobs?"
            )
        size = np.sum(host.square - host.total**2 / vocabulary)
        energy = np.sum(host.difference_square - host.difference**2 / vocabulary)
        across = (self._held.square - host.square - host.difference_square) / 2
        slope = np.sum(across - host.total * host.difference / vocabulary) / size
        if energy - slope**2 * size < EXPLAINED * energy and slope > -1:
            return f"all are {1 + slope:.3g} times the reference's: a temperature?"
        agree = lambda one, other: float(np.mean(one == other))
        if agree(host.place, host.other_place) < DISAGREE:
            for behind, which in ((1, "before"), (-1, "behind")):
                one = np.roll(host.place, behind, axis=1)
                kept = slice(1, None) if behind > 0 else slice(None, -1)
                if agree(one[:, kept], host.other_place[:, kept]) > AGREE:
                    return f"each row is that of the token {which} it: `positions`?"
        return None


def _of_few(held: SeenFew) -> LogitsAudit:
    """A few log-probabilities a token beside the reference's."""
    there = held.ids >= 0
    own, given = held.log_probabilities[0], held.given
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mass = np.where(there, np.exp(own), 0.0)
        of_these = np.sum(np.where(mass > 0, mass * (own - given), 0.0), axis=-1)
        rest = np.maximum(1 - np.sum(mass, axis=-1), 0.0)
        left = np.sum(np.where(there, np.exp(given), 0.0), axis=-1)
        left = np.maximum(1 - left, held.seen.unit)
        # a rest that the given values do not resolve says nothing
        of_rest = np.where(rest > held.seen.unit, rest * np.log(rest / left), 0.0)
        kl = np.maximum(of_these + of_rest, 0.0)
    kl = np.where(np.isnan(kl), np.inf, kl)
    leads = np.argmax(np.where(there, given, -np.inf), axis=-1)[..., None]
    chosen = np.take_along_axis(held.ids, leads, axis=-1)[..., 0]
    differs = chosen != held.leader
    tied = differs & (np.take_along_axis(own, leads, axis=-1)[..., 0] == held.best)
    return LogitsAudit(
        against=REFERENCE,
        rel_l2=None,
        max=float(np.max(np.where(there, np.abs(given - own), 0.0))),
        kl_max=float(np.max(kl)),
        flips=int(np.sum(differs & ~tied)),
        ties=int(np.sum(differs & tied)),
        kl_mean=float(np.mean(kl)),
    )
