r"""How much the worst roundings, and random ones, move a read-out of the logits.

A read-out is a Gaussian vector r over the vocabulary, its mean removed, at one random
token t. To first order the roundings $\delta_s$ of all stored tensors move it by
$\sum_s \lambda_s \delta_s$, $\lambda$ the adjoint of the read-out: at most
$w = \sum |\lambda_s| b_s$ for $|\delta_s| \le b_s$, with variance
$\sum \lambda_s^2 b_s^2 / 3$ for independent uniform ones. As
$\mathrm{E}_r (e \cdot r)^2 = |e|^2$ for an error e of that token without its mean,
$\mathrm{E}_r w^2$ is at least the largest first-order $|e|^2$.

The same sums in FPTaylor (Solovyev et al. 2018, ACM TOPLAS 41(1)) and Satire (Das et
al. 2020, SC20), there with a certified remainder; here without one, so these are
estimates. One reverse pass, linearised at the reference, serves all executions.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic._programs import program
from ..arithmetic.random_keys import random_key
from ..formats import FP64
from ..implementations import Execution
from ..models import Model, Sublayer, VocabularySlice
from ..sublayers.residual import Incoming, final_norm, sublayer
from ._pull_back import pulled_back
from ._way_back import Pulls, Streams
from .head import logit_roundings


HEAD = -1


class Effects(NamedTuple):
    """What one execution's roundings do to each read-out, by place and site.

    A place is a sublayer's number, or `HEAD` for the final norm and the logits.
    """

    worst: dict[tuple[int, str], Float[np.ndarray, " readouts"]]
    variance: dict[tuple[int, str], Float[np.ndarray, " readouts"]]

    def total(self, by: str) -> Float[np.ndarray, " readouts"]:
        """The sum of `worst` or `variance` over all places and sites."""
        return np.sum(list(getattr(self, by).values()), axis=0)


class Adjoints:
    """Read-outs of a network and the way back through it.

    First `sublayer` for each record of the reference, then `head`, then `logits` for
    each slice of the vocabulary, then `reverse` to its end.

    **Arguments:**

    - `shape`: (batch, seq) of the tokens.
    - `executions`: whose stores are looked at, not the inner roundings between them.
    - `n_readouts`: at least 1; rounded up to as many for each sequence that is read.
    """

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int],
        executions: Sequence[Execution],
        *,
        n_readouts: int,
        seed: int,
    ):
        batch, seq = shape
        self._model = model
        self._executions = list(executions)
        self._numbers = [execution.site_numbers() for execution in executions]
        self._sequences = min(batch, n_readouts)
        each = -(-n_readouts // self._sequences)
        self._shape = (self._sequences, each)
        count = self._sequences * each
        rng = np.random.default_rng(seed)
        # one token from each of `count` equal parts of the text, in any sequence
        tokens = (np.arange(count) + rng.random(count)) * seq / count
        self.tokens = rng.permutation(tokens.astype(int)).reshape(self._shape)
        self._seed = np.asarray(seed)
        self._mean: Any = np.zeros(self._shape)
        parts = (self.readout(rows) for rows in model.vocabulary_slices())
        total = sum(np.asarray(part).sum(axis=-1) for part in parts)
        self._mean = total / model.config.vocab_size
        self._streams = Streams()
        self._embedded = np.zeros(0)
        self._normed_pull: Any = np.zeros((*self._shape, model.config.d_model))
        self.effects = [Effects({}, {}) for _ in executions]

    @property
    def n_readouts(self) -> int:
        """How many there are."""
        return self._shape[0] * self._shape[1]

    def readout(self, rows: VocabularySlice) -> Float[Array, "sequences readouts rows"]:
        """The read-outs on a slice of the vocabulary; 0 on rows of one before."""
        shape, first = (*self._shape, rows.stop - rows.start), np.asarray(rows.start)
        return _readout(self._seed, first, rows.behind, self._mean, shape)

    def sublayer(self, reference) -> None:
        """Keep what the way back needs of the reference's record of a sublayer."""
        aside, embedded = reference.aside, reference.embedded
        if aside is not None:
            self._streams.append(aside[: self._sequences])
        if embedded is not None and not self._embedded.size:
            self._embedded = np.asarray(embedded[: self._sequences])
        self._append(reference)

    def head(self, reference) -> None:
        """The same of the reference's head."""
        self._append(reference)

    def _append(self, reference) -> None:
        parts = reference.residual, reference.hidden
        residual, hidden = (np.asarray(x)[: self._sequences] for x in parts)
        self._streams.append(residual + hidden)

    def logits(self, rows: VocabularySlice, reference) -> None:
        """Take in a slice of the reference's logits, (batch, seq, rows)."""
        self._normed_pull, found = _of_logits(
            self.readout(rows),
            self.tokens,
            reference,
            self._model.head(rows.start, rows.stop),
            self._normed_pull,
            self._numbers,
            self._model.config.logits_end,
        )
        self._add(HEAD, [found])

    def reverse(self) -> Iterator[int]:
        """Go back through the network; yields each sublayer's number when done."""
        count, each = self._shape
        stream = self._streams.pop()
        p = self._model.final_norm()
        normed_pull = np.asarray(self._normed_pull)
        found, pulls = [], []
        for i in range(count):
            pull = np.zeros((each, *stream[i].shape))
            pull[np.arange(each), self.tokens[i]] = normed_pull[i]
            effects, pull = _through_norm(self._numbers, stream[i], pull, p)
            found.append(effects)
            pulls.append(pull)
        self._add(HEAD, found)
        for layer in reversed(self._model.sublayers):
            p = self._model.parameters(layer.layer)
            start = self._model.start(p)
            before = self._before(layer)
            stream = self._streams.pop()
            aside = self._streams.pop() if before and before.aside else None
            beside = before is not None and before.shares
            found = []
            for i in range(count):
                incoming = Incoming(
                    stream[i],
                    np.zeros_like(stream[i]),
                    None if aside is None else aside[i],
                    self._embedded[i] if layer.embedded else None,
                )
                if not layer.shares:
                    pulls[i] = pulls[i].in_front_of(layer.aside)
                effects, pulls[i] = _through_sublayer(
                    layer.flow,
                    self._numbers_of(layer),
                    incoming,
                    pulls[i],
                    p,
                    start,
                    beside,
                    self._executions[0].at(layer).form,
                )
                found.append(effects)
            self._add(layer.layer, found, self._unrounded(layer))
            yield layer.layer

    def _before(self, layer: Sublayer) -> Sublayer | None:
        return self._model.sublayers[layer.layer - 1] if layer.layer else None

    def _numbers_of(self, layer: Sublayer):
        numbers = [e.at(layer).site_numbers() for e in self._executions]
        for sites in numbers:
            for site in self._unrounded(layer) & set(sites):
                # a number for a number: the program is that of all other sublayers
                sites[site] = FP64.numbers()
        return numbers

    def _unrounded(self, layer: Sublayer) -> set[str]:
        """Sites that are not rounded here: nothing is added to the embedding yet, and
        sublayers side by side read one stream, which is rounded once."""
        before = self._before(layer)
        return {"residual"} if before is None or before.shares else set()

    def _add(self, place: int, found: list, but: Collection[str] = ()) -> None:
        """Take in effects, one entry a sequence, or one for all."""
        for i, effects in enumerate(self.effects):
            for kind in ("worst", "variance"):
                sums = getattr(effects, kind)
                for site in (s for s in found[0][i] if s not in but):
                    parts = [np.ravel(part[i][site][kind]) for part in found]
                    sums[place, site] = sums.get((place, site), 0.0) + np.concatenate(
                        parts
                    )


@program
def _through_sublayer(
    flow, numbers, incoming: Incoming, pulls: Pulls, p, start, beside, form
):
    """Of one of those side by side; of the first of them unless `beside`."""

    def run(at, inputs):
        stream, aside = inputs
        given = incoming._replace(residual=stream, aside=aside)
        residual, output, _ = sublayer(at, flow, given, p, start)
        return residual, output

    through = jnp.zeros_like(pulls.stream) if beside else pulls.stream
    effects, (stream, aside) = pulled_back(
        run,
        (incoming.residual, incoming.aside),
        (through, pulls.out),
        numbers,
        form,
    )
    if beside:
        stream = pulls.stream + stream
    aside = pulls.aside if aside is None else pulls.aside + aside
    return effects, Pulls(stream, aside, pulls.out)


@program
def _through_norm(numbers, stream, pulls, p):
    run = lambda at, given: final_norm(at, given[0], jnp.zeros_like(given[0]), p)
    effects, (pull,) = pulled_back(run, (stream,), pulls, numbers)
    return effects, Pulls(pull, jnp.zeros_like(pull))


def at_tokens(x, tokens):
    """A tensor (batch, ...) at tokens (sequences, readouts) of its first sequences."""
    return x[np.arange(len(tokens))[:, None], tokens]


@program
def _readout(seed, start, behind, mean, shape):
    key = jax.random.fold_in(random_key(seed), start)
    drawn = jax.random.normal(key, shape, jnp.float64) - mean[..., None]
    return jnp.where(jnp.arange(shape[-1]) >= behind, drawn, 0.0)


@program
def _of_logits(readout, tokens, logits, rows, pull, numbers, end):
    logits, found = at_tokens(logits, tokens), []
    pull = pull + (readout * end.slope(logits)) @ rows.matrix
    for sites in numbers:
        effects = {}
        sizes = logit_roundings(jnp.abs(logits), sites, end)
        for site, size in sizes.items():
            moved = jnp.abs(readout) * jnp.where(jnp.isfinite(size), size, 0.0)
            effects[site] = {
                "worst": jnp.sum(moved, axis=-1),
                "variance": jnp.sum(moved**2, axis=-1) / 3,
            }
        found.append(effects)
    return pull, found
