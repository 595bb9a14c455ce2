r"""How far changes of single weights move the logits: one way back for all of them.

With $\delta_t$ the first order of what a change of weights does to the logits of token
t, and p_t their softmax, the divergence of the two is to second order
$\frac12 \delta_t^T F_t \delta_t$, $F_t = \mathrm{diag}(p_t) - p_t p_t^T$. A probe draws
$g_t = \sqrt{p_t} \circ z_t - p_t (\sqrt{p_t} \cdot z_t)$, z normal, whose covariance is
F_t, for every token at once. The derivative of $\sum_t g_t \cdot l_t$ along a change of
weights is $s = \sum_t g_t \cdot \delta_t$: normal, of variance
$\sum_t \delta_t^T F_t \delta_t$, which is twice the sum of the divergences. One pull
through the network gives s for every change, and the sum of several is that of all made
together. The mean of n squares has a relative standard error of $\sqrt{2 / n}$.

Estimates: of first order in the weights and of second in the logits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import Exact
from ..arithmetic._programs import program
from ..arithmetic.random_keys import random_key
from ..models import Model, VocabularySlice
from ..sublayers.groups import OUTSIDE
from ..sublayers.kinds import registered
from ..sublayers.norm import Norm, normalise
from ..sublayers.residual import Incoming, final_norm, sublayer
from ._way_back import Pulls, Streams


Derivatives = dict[tuple[int | str, str], Float[np.ndarray, "sequences probes"]]
"""By sublayer, or `OUTSIDE`, and parameter."""


class WeightPulls:
    """Probes of a network and what each changed parameter does to them.

    First `sublayer` for each record of the reference, then `head`, then `logits` for
    each slice of the vocabulary, then `reverse` to its end; `derivatives` then has them
    all.

    **Arguments:**

    - `model`: the network. `changed`: the same with other weights.
    - `shape`: (batch, seq) of the tokens.
    - `n_probes`: how many each sequence has, at least 1.
    - `seed`: of the probes.
    """

    def __init__(
        self,
        model: Model,
        changed: Model,
        tokens: np.ndarray,
        *,
        n_probes: int,
        seed: int,
    ):
        self._model, self._changed, self._tokens = model, changed, tokens
        self._count, self._probes = len(tokens), n_probes
        self._seed = np.asarray(seed)
        self._streams = Streams()
        self._embedded: list[np.ndarray] = []
        self._normed: Any = None
        seq, width = tokens.shape[1], model.config.d_model
        self._sums = [_nothing(n_probes, seq, width) for _ in tokens]
        self.derivatives: Derivatives = {}

    def sublayer(self, reference) -> None:
        """Keep what the way back needs of the reference's record of a sublayer."""
        if reference.aside is not None:
            self._streams.append(reference.aside)
        if reference.embedded is not None and not self._embedded:
            self._embedded = [np.asarray(one) for one in reference.embedded]
        self._streams.append(reference.residual + reference.hidden)

    def head(self, reference) -> None:
        """The same of the reference's head."""
        stream = reference.residual + reference.hidden
        self._streams.append(stream)
        self._normed = _normed(stream, self._model.final_norm())

    def logits(self, rows: VocabularySlice, reference) -> None:
        """Take in a slice of the reference's logits, (batch, seq, rows)."""
        ends = rows.start, rows.stop
        ours, theirs = (one.head(*ends).matrix for one in (self._model, self._changed))
        for i in range(self._count):
            self._sums[i] = _add_slice(
                self._sums[i],
                self._seed,
                np.asarray(i),
                np.asarray(rows.start),
                rows.behind,
                reference[i],
                self._normed[i],
                ours,
                theirs,
                self._model.config.logits_end,
            )

    def reverse(self) -> Iterator[int]:
        """Go back through the network; yields each sublayer's number when done."""
        stream = self._streams.pop()
        pulls, found = [], []
        norms = self._model.final_norm(), self._changed.final_norm()
        for i in range(self._count):
            pull, of_head = _of_head(self._sums[i])
            of_norm, back = _through_norm(stream[i], pull, *norms)
            found.append({"head": of_head, **_named(of_norm, "norm_f", norms[0])})
            pulls.append(Pulls(back, jnp.zeros_like(back)))
        self._add(OUTSIDE, found)
        embedded: list[Any] = [0.0] * self._count
        for layer in reversed(self._model.sublayers):
            sizes = registered(self._model.config.sublayers[layer.layer])
            arrays = self._model.arrays(layer.layer)
            change = moved(arrays, self._changed.arrays(layer.layer))
            before = self._model.sublayers[layer.layer - 1] if layer.layer else None
            stream = self._streams.pop()
            aside = self._streams.pop() if before and before.aside else None
            beside = before is not None and before.shares
            found = []
            for i in range(self._count):
                incoming = Incoming(
                    stream[i],
                    np.zeros_like(stream[i]),
                    None if aside is None else aside[i],
                    self._embedded[i] if layer.embedded else None,
                )
                if not layer.shares:
                    pulls[i] = pulls[i].in_front_of(layer.aside)
                one, pulls[i], more = _through_sublayer(
                    sizes, incoming, pulls[i], arrays, change, beside
                )
                found.append(one)
                embedded[i] = embedded[i] + (0.0 if more is None else more)
            self._add(layer.layer, found)
            yield layer.layer
        self._embedding([pulls[i].stream + embedded[i] for i in range(self._count)])

    def _embedding(self, pulls: list) -> None:
        both = self._model, self._changed
        rows = [model.embedding_rows(self._tokens) for model in both]
        norms = [model.embedding_norm() for model in both]
        found = []
        for i in range(self._count):
            of_rows, of_norm = _through_embedding(
                rows[0][i], rows[1][i], *norms, pulls[i]
            )
            of_norms = _named(of_norm, "embedding_norm", norms[0])
            found.append({"embedding": of_rows, **of_norms})
        self._add(OUTSIDE, found)

    def _add(self, place: int | str, found: list[dict[str, Any]]) -> None:
        for name in found[0]:
            each = [np.asarray(one[name]) for one in found]
            self.derivatives[place, name] = np.stack(each)


def moved(arrays: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """W' - W of the parameters in which the two differ, by name."""
    return {
        name: changed[name] - array
        for name, array in arrays.items()
        if not np.array_equal(changed[name], array)
    }


def _named(of_norm: dict[str, Any], name: str, norm: Norm | None) -> dict[str, Any]:
    """By whole names, of what the norm has."""
    has = {} if norm is None else {"": norm.weight, "_bias": norm.bias}
    return {
        f"{name}{part}": of_norm[part] for part, own in has.items() if own is not None
    }


@program
def _through_sublayer(sizes, incoming: Incoming, pulls: Pulls, arrays, change, beside):
    """Of one of those side by side; of the first of them unless `beside`.

    **Returns:** the derivatives by parameter (probes), and the pulls in front of it, of
    the embedding where it reads that.
    """

    def run(along, stream, aside, embedded):
        here = {
            name: array + along[name] * change[name] if name in change else array
            for name, array in arrays.items()
        }
        p = sizes.parameters(here.get)
        given = incoming._replace(residual=stream, aside=aside, embedded=embedded)
        start = p.initial_state()
        at = Exact(observes=False)
        residual, output, _ = sublayer(at, sizes.flow, given, p, start)
        return residual, output

    through = jnp.zeros_like(pulls.stream) if beside else pulls.stream
    along = {name: jnp.zeros(()) for name in change}
    read = incoming.residual, incoming.aside, incoming.embedded
    _, back = jax.vjp(run, along, *read)
    found, stream, aside, embedded = jax.lax.map(back, (through, pulls.out))
    if beside:
        stream = pulls.stream + stream
    aside = pulls.aside if aside is None else pulls.aside + aside
    return found, Pulls(stream, aside, pulls.out), embedded


def _between(norm: Norm, changed: Norm, along: dict[str, Any]) -> Norm:
    """The norm, moved along its change; "" is its weight."""

    def one(a, b, name):
        return a if a is None else a + along[name] * (b - a)

    return Norm(
        one(norm.weight, changed.weight, ""),
        one(norm.bias, changed.bias, "_bias"),
        norm.epsilon,
        norm.centred,
        norm.offset,
    )


_ALONG: dict[str, float] = {"": 0.0, "_bias": 0.0}


def _zeros() -> dict[str, Any]:
    return {name: jnp.zeros(()) for name in _ALONG}


@program
def _normed(stream, norm: Norm):
    run = lambda x: final_norm(Exact(), x, jnp.zeros_like(x), norm)
    return jax.vmap(run)(stream)


@program
def _through_norm(stream, pulls, norm: Norm, changed: Norm):
    def run(along, x):
        here = _between(norm, changed, along)
        return final_norm(Exact(), x, jnp.zeros_like(x), here)

    _, back = jax.vjp(run, _zeros(), stream)
    return jax.lax.map(back, pulls)


@program
def _through_embedding(rows, changed_rows, norm, changed_norm, pulls):
    def run(along, of_norm):
        here = rows + along * (changed_rows - rows)
        if norm is None:
            return here
        return normalise(Exact(), here, _between(norm, changed_norm, of_norm))

    _, back = jax.vjp(run, jnp.zeros(()), _zeros())
    return jax.lax.map(back, pulls)


# ---- the head, a slice of the vocabulary after the other


def _nothing(n_probes: int, seq: int, width: int) -> dict[str, Any]:
    """Sums over the vocabulary before the first slice, each scaled by e^-largest, or
    its root where a probe is drawn.

    `pull`, `drawn`, `of_head`: of sqrt(p) z times the head's rows, one, and what the
    head's change does; `mean_pull`, `total`, `mean_of_head`: of p times the same.
    """
    return {
        "largest": np.full(seq, -np.inf),
        "pull": np.zeros((n_probes, seq, width)),
        "drawn": np.zeros((n_probes, seq)),
        "of_head": np.zeros((n_probes, seq)),
        "mean_pull": np.zeros((seq, width)),
        "total": np.zeros(seq),
        "mean_of_head": np.zeros(seq),
    }


def drawn(seed, sequence, start, probe, shape) -> Float[Array, "seq rows"]:
    """The normal numbers z of one probe of a sequence on a slice of the vocabulary."""
    key = jax.random.fold_in(random_key(seed), start)
    for number in (sequence, probe):
        key = jax.random.fold_in(key, number)
    return jax.random.normal(key, shape, jnp.float64)


@program
def _add_slice(sums, seed, sequence, start, behind, logits, normed, rows, changed, end):
    new = jnp.arange(logits.shape[-1]) >= behind
    known = jnp.where(new, logits, -jnp.inf)
    largest = jnp.maximum(sums["largest"], jnp.max(known, axis=-1))
    kept = jnp.exp(sums["largest"] - largest)
    weight = jnp.exp(known - largest[:, None])
    slope = end.slope(logits)
    of_head = jnp.matmul(normed, (changed - rows).T, precision="highest") * slope

    def probe(number, pull, total, of_change):
        z = drawn(seed, sequence, start, number, logits.shape)
        mine = jnp.sqrt(weight) * z
        half = jnp.sqrt(kept)
        return (
            half[:, None] * pull + jnp.matmul(mine * slope, rows, precision="highest"),
            half * total + jnp.sum(mine, axis=-1),
            half * of_change + jnp.sum(mine * of_head, axis=-1),
        )

    numbers = jnp.arange(len(sums["drawn"]))
    each = numbers, sums["pull"], sums["drawn"], sums["of_head"]
    pull, total, of_change = jax.lax.map(lambda one: probe(*one), each)
    mean = jnp.matmul(weight * slope, rows, precision="highest")
    return {
        "largest": largest,
        "pull": pull,
        "drawn": total,
        "of_head": of_change,
        "mean_pull": kept[:, None] * sums["mean_pull"] + mean,
        "total": kept * sums["total"] + jnp.sum(weight, axis=-1),
        "mean_of_head": kept * sums["mean_of_head"]
        + jnp.sum(weight * of_head, axis=-1),
    }


@program
def _of_head(sums):
    """Pulls of the normalised stream, and the derivatives along the head's change."""
    root = jnp.sqrt(sums["total"])
    share = sums["drawn"] / (root * sums["total"])
    pull = sums["pull"] / root[:, None] - share[..., None] * sums["mean_pull"]
    of_head = sums["of_head"] / root - share * sums["mean_of_head"]
    return pull, jnp.sum(of_head, axis=-1)
