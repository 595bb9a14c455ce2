"""The runs that the end-to-end estimates rest on: rounded weights, random roundings.

Each goes a sublayer at a time beside the reference, so that nothing but the stream of
each is held.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._devices import over_batch
from ..arithmetic import Exact, Sampled, Weight
from ..arithmetic._programs import program
from ..arithmetic.random_keys import random_key
from ..formats import FP32, FP64
from ..formats._precision import Precision
from ..implementations import Execution
from ..implementations._reference import run_norm
from ..models import Model, Sublayer
from ..sublayers.config import LogitsEnd
from ..sublayers.residual import Stream, beside, final_norm, logits, sublayer
from ..sublayers.sites import LOGITS
from .passes import exact_pass


class ProbeLogits(NamedTuple):
    """A slice of the vocabulary in every run."""

    exact: Float[Array, "batch seq rows"]
    probes: Float[Array, "probes batch seq rows"]
    norms: Float[Array, " rows"]
    """L2 norms of the head's rows."""
    of_state: Float[Array, "batch seq rows"] | None
    """Of the run that draws the state's roundings alone."""


class Probes:
    """Runs of one network with the weights that an execution holds.

    One is exact: what rounding the weights alone does. The others draw an offset at
    every stored site. The last of several probes takes the first one's draws with the
    opposite sign, so that the two show what is not linear; it is not counted as
    another draw.

    **Arguments:**

    - `tokens`: (batch, seq).
    - `n_probes`: how many to run, at least 1.
    - `of_state`: run one more, which draws nothing but the state's roundings, where
      that is stored below fp32: what they make of all is its share.
    """

    def __init__(
        self,
        model: Model,
        tokens,
        execution: Execution,
        *,
        n_probes: int,
        seed: int,
        of_state: bool = False,
    ):
        self._model = model
        self._execution = execution
        self._sites = execution.site_numbers()
        # behind the last that a probe draws for: their effect has a closed form
        for site in LOGITS:
            self._sites.pop(site, None)
        # Beside a 16-bit store the roundings between two stores don't show; without
        # one they are of the stores' size.
        reduced = any(fmt.is_reduced for fmt in execution.sites.values())
        self._inner = None if reduced else FP32.numbers()
        self.n_independent = max(1, n_probes - 1)
        # arrays, so that one program serves all
        numbered = [*range(self.n_independent), *[0] * (n_probes > 1)]
        signs = [1.0] * self.n_independent + [-1.0] * (n_probes > 1)
        self._draws = [
            Draw(n_probes, np.asarray([seed, number]), np.asarray(sign))
            for number, sign in zip(numbered, signs, strict=True)
        ]
        held = Precision.named(execution.state_precision).format
        self.draws_state = of_state and held not in ("fp32", "fp64")
        """Whether it runs one of the state's roundings alone."""
        embedded = model.embed(tokens, execution)
        self._held_exactly = np.array_equal(embedded, model.embed(tokens))
        start = Stream.start(embedded, model.sublayers)
        self._exact = start
        self._probes = [start for _ in self._draws]
        self._of_state = start
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
        own = self._execution.at(layer)
        p = self._model.parameters(layer.layer, own)
        start = self._model.start(p)
        self._held_exactly &= self._model.held_exactly(layer.layer, own)
        incoming, output = reference.incoming, reference.output
        if not self._held_exactly:
            incoming = self._exact.incoming(layer)
            output = exact_pass(layer.flow, incoming, p, start)
        residual = incoming.residual + incoming.hidden
        self._exact = self._exact.after(layer, residual, output, jnp.add)
        place = np.asarray(layer.layer)

        def drawn(before: Stream, draw: Draw, sites, around) -> Stream:
            incoming = before.incoming(layer)
            given = self._inner, draw, place, incoming, p, start, own.form
            residual, output = run_sampled(layer.flow, sites, *given)
            together = lambda one, other: _together(around, draw, place, one, other)
            return before.after(layer, residual, output, together)

        sites = own.site_numbers()
        self._probes = [
            drawn(before, draw, sites, self._sites)
            for before, draw in zip(self._probes, self._draws, strict=True)
        ]
        if self.draws_state:
            alone = _state_alone(sites), _state_alone(self._sites)
            self._of_state = drawn(self._of_state, self._draws[0], *alone)

    def head(self) -> None:
        """Run the norm in front of the head."""
        p = self._model.final_norm(self._execution)
        beyond = np.asarray(len(self._model.sublayers))
        self._normed = [run_norm(self._exact.residual, self._exact.hidden, p)]
        for probe, draw in zip(self._probes, self._draws, strict=True):
            self._normed.append(
                _norm_sampled(self._sites, self._inner, draw, beyond, probe, p)
            )
        if self.draws_state:
            alone = _state_alone(self._sites), self._inner, self._draws[0], beyond
            self._normed.append(_norm_sampled(*alone, self._of_state, p))

    def logits(self, start: int, stop: int) -> ProbeLogits:
        """A slice of the vocabulary, before logits are stored."""
        rows = self._model.head(start, stop, self._execution)
        exact, drawn, norms = _logits(self._normed, rows, self._model.config.logits_end)
        count = len(self._draws)
        return ProbeLogits(
            exact, drawn[:count], norms, drawn[count] if self.draws_state else None
        )


def _state_alone(sites: dict) -> dict:
    """The same sites, so that one program serves, all but the state's in fp64."""
    exact = FP64.numbers()
    return {k: v if k == "state" else exact for k, v in sites.items()}


class Draw(NamedTuple):
    """Which of the probes' draws, and with which sign."""

    n_probes: int
    numbers: Int[np.ndarray, "2"]
    """The seed, and which of the keys that it is split into."""
    sign: Any
    """1 or -1, as an array of no axes."""

    def at(self, place):
        """The key of a sublayer, or of what is beyond the last."""
        seed, number = self.numbers
        keys = jax.random.split(random_key(seed), self.n_probes)
        return jax.random.fold_in(keys[number], place)


@program
def run_sampled(flow, sites, inner, draw: Draw, place, incoming, p, start, form):
    """Run one sublayer over a batch with drawn roundings: stream and output."""

    def run(key, incoming):
        at = Sampled(sites, key, draw.sign, inner=inner, form=form)
        return sublayer(at, flow, incoming, p, start)[:2]

    keys = jax.random.split(draw.at(place), incoming.residual.shape[0])
    return over_batch(run, keys, incoming)


@program
def _together(sites, draw: Draw, place, output, other):
    own = jax.random.fold_in(draw.at(place), 1)  # the sublayer itself splits the key
    return beside(Sampled(sites, own, draw.sign), output, other)


@program
def _norm_sampled(sites, inner, draw: Draw, beyond, stream: Stream, p):
    keys = jax.random.split(draw.at(beyond), stream.residual.shape[0])

    def run(key, residual, hidden):
        at = Sampled(sites, key, draw.sign, inner=inner)
        return final_norm(at, residual, hidden, p)

    return over_batch(run, keys, stream.residual, stream.hidden)


@program
def _logits(normed, rows: Weight, end: LogitsEnd):
    exact, *probes = (logits(Exact(), one, rows, end) for one in normed)
    norms = jnp.linalg.norm(rows.matrix, axis=-1) * abs(end.multiplier)
    return exact, jnp.stack(probes), norms
