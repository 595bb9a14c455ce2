"""The runs that the end-to-end estimates rest on: rounded weights, random roundings.

Each goes a sublayer at a time beside the reference, so that nothing but the stream of
each is held.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._devices import over_batch
from ..arithmetic import Exact, Sampled, Weight
from ..formats import FP32
from ..implementations import Execution
from ..models import Model, Sublayer
from ..sublayers.residual import Incoming, Stream, beside, final_norm, logits, sublayer


# Sites behind the last one that a probe draws for: their effect has a closed form.
LAST = ("logits", "logits_scaled")


class Probes:
    """Runs of one network with the weights that an execution holds.

    One is exact: what rounding the weights alone does. The others draw an offset at
    every stored site. The last of several probes takes the first one's draws with the
    opposite sign, so that the two show what is not linear; it is not counted as
    another draw.

    **Arguments:**

    - `tokens`: (batch, seq).
    - `n_probes`: how many to run, at least 1.
    """

    def __init__(
        self, model: Model, tokens, execution: Execution, *, n_probes: int, seed: int
    ):
        self._model = model
        self._execution = execution
        self._sites = execution.site_numbers()
        for site in LAST:
            self._sites.pop(site, None)
        # Beside a 16-bit store the roundings between two stores don't show; without
        # one they are of the stores' size.
        reduced = any(fmt.is_reduced for fmt in execution.sites.values())
        self._inner = None if reduced else FP32.numbers()
        keys = jax.random.split(jax.random.key(seed), n_probes)
        self.n_independent = max(1, n_probes - 1)
        self._draws = [(key, 1.0) for key in keys[: self.n_independent]]
        if n_probes > 1:
            self._draws.append((keys[0], -1.0))
        embedded = model.embed(tokens, execution)
        self._held_exactly = bool(jnp.array_equal(embedded, model.embed(tokens)))
        start = Stream.start(embedded, model.sublayers)
        self._exact = start
        self._probes = [start for _ in self._draws]
        self._normed: list[Float[Array, "batch seq d_model"]] = []

    @property
    def has_antithetic(self) -> bool:
        """Whether the last probe is the first one's opposite."""
        return len(self._draws) > self.n_independent

    def sublayer(self, layer: Sublayer, reference) -> None:
        """Run one sublayer in every run.

        **Arguments:**

        - `reference`: the reference's record of it. It is the exact run's as well as
          long as the execution holds all weights as they are.
        """
        own = self._execution.of(layer.kind)
        p = self._model.parameters(layer.layer, own)
        start = self._model.start(p)
        self._held_exactly &= self._model.held_exactly(layer.layer, own)
        if self._held_exactly:
            found = reference.residual + reference.hidden, reference.output
        else:
            found = _run_exact(layer.flow, self._exact.incoming(layer), p, start)
        self._exact = self._exact.after(layer, *found, jnp.add)
        sites = own.site_numbers()
        for i, (key, sign) in enumerate(self._draws):
            key = jax.random.fold_in(key, layer.layer)
            residual, output = _run_sampled(
                layer.flow,
                sites,
                self._inner,
                key,
                sign,
                self._probes[i].incoming(layer),
                p,
                start,
                own.chunked,
            )
            together = lambda one, other, key=key, sign=sign: _together(
                self._sites, key, sign, one, other
            )
            self._probes[i] = self._probes[i].after(layer, residual, output, together)

    def head(self) -> None:
        """Run the norm in front of the head."""
        p = self._model.final_norm(self._execution)
        beyond = len(self._model.sublayers)
        self._normed = [_norm_exact(self._exact, p)]
        for probe, (key, sign) in zip(self._probes, self._draws, strict=True):
            key = jax.random.fold_in(key, beyond)
            self._normed.append(
                _norm_sampled(self._sites, self._inner, key, sign, probe, p)
            )

    def logits(
        self, start: int, stop: int
    ) -> tuple[
        Float[Array, "batch seq rows"],
        Float[Array, "probes batch seq rows"],
        Float[Array, " rows"],
    ]:
        """A slice of the vocabulary, before logits are stored.

        **Returns:** logits of the exact run, of all probes, and the L2 norms of the
        head's rows.
        """
        rows = self._model.head(start, stop, self._execution)
        multiplier = self._model.config.logits_multiplier
        exact, *probes = (_logits(normed, rows, multiplier) for normed in self._normed)
        norms = jnp.linalg.norm(rows.matrix, axis=-1) * abs(multiplier)
        return exact, jnp.stack(probes), norms


@eqx.filter_jit
def _run_exact(flow, incoming: Incoming, p, start):
    return over_batch(lambda i: sublayer(Exact(), flow, i, p, start)[:2], incoming)


@eqx.filter_jit
def _run_sampled(flow, sites, inner, key, sign, incoming, p, start, chunked):
    def run(key, incoming):
        at = Sampled(sites, key, sign, inner=inner, chunked=chunked)
        return sublayer(at, flow, incoming, p, start)[:2]

    keys = jax.random.split(key, incoming.residual.shape[0])
    return over_batch(run, keys, incoming)


@eqx.filter_jit
def _together(sites, key, sign, output, other):
    own = jax.random.fold_in(key, 1)  # the sublayer itself splits the key
    return beside(Sampled(sites, own, sign), output, other)


@eqx.filter_jit
def _norm_exact(stream: Stream, p):
    run = lambda r, h: final_norm(Exact(), r, h, p)
    return over_batch(run, stream.residual, stream.hidden)


@eqx.filter_jit
def _norm_sampled(sites, inner, key, sign, stream: Stream, p):
    keys = jax.random.split(key, stream.residual.shape[0])

    def run(key, residual, hidden):
        at = Sampled(sites, key, sign, inner=inner)
        return final_norm(at, residual, hidden, p)

    return over_batch(run, keys, stream.residual, stream.hidden)


@eqx.filter_jit
def _logits(normed, rows: Weight, multiplier: float):
    return logits(Exact(), normed, rows, multiplier)
