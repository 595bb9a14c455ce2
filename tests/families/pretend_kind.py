"""A kind of sublayer that the library does not have, in one file, and who runs it.

A selective recurrence like Mamba-1's, without convolution, gate and skip.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lyapunov.arithmetic import AbstractArithmetic, Weight
from lyapunov.checkpoints import NetworkLayout, open_checkpoint
from lyapunov.checkpoints._network import Part, TopNames, recognise_network
from lyapunov.formats import BF16, FP32
from lyapunov.implementations import AbstractImplementation, Emulated, Execution
from lyapunov.implementations.mamba_ssm.networks import mamba_ssm_network
from lyapunov.recurrences.mamba1 import selective_scan
from lyapunov.sublayers import (
    AbstractSublayer,
    Counts,
    Dynamics,
    HandedOn,
    MlpSizes,
    NetworkConfig,
)
from lyapunov.sublayers._sublayer import Get, within
from lyapunov.sublayers.norm import Norm, normalise
from lyapunov.sublayers.sites import FRONT, TOKEN

from .test_against_numpy import save


class LeakyParameters(eqx.Module):
    """The norm and the recurrence after it."""

    norm: Norm
    leaky_in: Weight
    """(2 d_inner + 2 d_state, d_model), rows u, dt, B, C."""
    leak: Float[Array, "d_inner d_state"]
    leaky_out: Weight

    def initial_state(self) -> "LeakyState":
        """Zeros, as at the start of a text."""
        return LeakyState(jnp.zeros(self.leak.T.shape))


class LeakyState(eqx.Module):
    """What the next token needs."""

    state: Any
    """(d_state, d_inner)."""


def leaky(at: AbstractArithmetic, residual, p: LeakyParameters, start: LeakyState):
    """One sublayer over a sequence."""
    d_inner, d_state = p.leak.shape
    x = normalise(at, at.store("norm_input", residual), p.norm)
    x = at.store("leaky_in", at.matmul(x, p.leaky_in))
    u, dt = x[..., :d_inner], x[..., d_inner : 2 * d_inner]
    B, C = x[..., 2 * d_inner : -d_state], x[..., -d_state:]
    dt = at.store("softplus", at.softplus(dt))
    at.observe("dt", dt)
    rates = at.negate(at.exp(p.leak.T))
    nothing = jnp.zeros(d_inner)
    y, state = selective_scan(at, dt, u, B, C, rates, nothing, start.state)
    out = at.matmul(at.store("leaky_y", y), p.leaky_out)
    return at.store("out", out), LeakyState(state)


@final
@dataclasses.dataclass(frozen=True)
class LeakySublayer(AbstractSublayer):
    """Sizes of one leaky recurrence."""

    d_model: int
    d_inner: int
    d_state: int
    norm_epsilon: float = 1e-5

    kind: ClassVar = "leaky"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(leaky)
    sites: ClassVar = (*FRONT, "leaky_in", "softplus", *TOKEN, "leaky_y", "out")
    weight_groups: ClassVar = within(
        "leaky",
        "mixers",
        projections="leaky_in leaky_out",
        recurrence="leak",
        norms="norm norm_bias",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The state alone."""
        return (HandedOn("state", "state", ("state",)),)

    def parameters(self, get: Get) -> LeakyParameters:
        """Put the flow's parameters together from stored ones."""
        return LeakyParameters(
            norm=Norm(get("norm"), get("norm_bias"), self.norm_epsilon),
            leaky_in=Weight(get("leaky_in")),
            leak=get("leak"),
            leaky_out=Weight(get("leaky_out")),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and states."""
        return Counts(
            weights=3 * self.d_inner * (self.d_model + self.d_state)
            + 2 * self.d_state * (self.d_model - self.d_inner),
            channels=2 * (self.d_inner + self.d_state),
            scores=0,
            states=self.d_inner * self.d_state,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find a decay for every state, with no time step told apart."""
        dt = np.asarray(observed["dt"], np.float64)
        rates = -np.exp(raw["leak"].astype(np.float64))
        return Dynamics(1, dt[..., None] * rates)


@final
class LeakyImplementation(AbstractImplementation):
    """The emulator, with a format for all that the pretend kind stores."""

    name = "leaky_emulated"
    measures = True
    needs_gpu = False
    extra = None
    ways = ()
    refused_ways: ClassVar[Mapping[str, str]] = {}
    stored: ClassVar = BF16
    """The format that the run stores in, whatever was promised."""

    def state_precisions(self, mode: str) -> tuple[str, ...] | None:
        """Only what registers hold."""
        return (FP32.name,)

    def promised(
        self, config, precision, architecture, mode, state_precision
    ) -> Execution:
        """What is declared of MLPs, and of this kind with its own sites."""
        return self._execution(config, architecture, BF16)

    def runner(self, execution: Execution):
        """Run it, in the format that it really stores in."""
        return _Leaking(self)

    def really(self, model) -> Execution:
        """What it does, whatever was promised."""
        return self._execution(model.config, model.layout.architecture, self.stored)

    def _execution(self, config, architecture: str, fmt) -> Execution:
        known = [one for one in config.sublayers if one.kind != "leaky"]
        around = dataclasses.replace(config, sublayers=tuple(known))
        found = mamba_ssm_network(around, architecture, "bf16", "prefill")
        block = found.of("mlp")
        sites = {name: block.sites[name] for name in ("residual", *FRONT[::2])}
        sites |= dict.fromkeys(("leaky_in", "leaky_y", "out"), fmt)
        own = dataclasses.replace(block, kind="leaky", sites=sites)
        return dataclasses.replace(found, kinds=found.kinds | {"leaky": own})


class _Leaking:
    """The emulator of what is really done."""

    def __init__(self, whose: LeakyImplementation):
        self._whose = whose

    def trace(self, model, tokens, variant=None, segments=()):
        return Emulated(self._whose.really(model)).trace(model, tokens)


VOCAB, WIDTH, INNER, STATES, HIDDEN, EPSILON = 29, 6, 4, 3, 10, 1e-5


def config() -> NetworkConfig:
    """A leaky recurrence and an MLP."""
    own = LeakySublayer(WIDTH, INNER, STATES, EPSILON)
    behind = MlpSizes(WIDTH, HIDDEN, "silu", True, EPSILON)
    return NetworkConfig(VOCAB, VOCAB, WIDTH, (own, behind), EPSILON)


def layout(folder) -> tuple[NetworkLayout, dict[str, np.ndarray]]:
    """A checkpoint of it with drawn weights, and these."""
    rng = np.random.default_rng(3)
    shapes = {"embedding": (VOCAB, WIDTH), "norm_f": (WIDTH,)}
    parts = []
    for i, one in enumerate(config().sublayers):
        own = {
            "leaky": {
                "norm": (WIDTH,),
                "leaky_in": (2 * (INNER + STATES), WIDTH),
                "leak": (INNER, STATES),
                "leaky_out": (WIDTH, INNER),
            },
            "mlp": {
                "norm": (WIDTH,),
                **{name: (HIDDEN, WIDTH) for name in ("up", "gate")},
                "down": (WIDTH, HIDDEN),
            },
        }[one.kind]
        shapes |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
        parts.append({n: Part(f"layers.{i}.{n}", s) for n, s in own.items()})
    weights = {
        name: (rng.normal(size=shape) / 2 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    checkpoint = open_checkpoint(save(folder, weights, {"model_type": "leaky"}))
    names = TopNames("embedding", "norm_f", "embedding", ("layers.",))
    return recognise_network(checkpoint, "leaky", config(), names, parts), weights


def numpy_forward(weights: dict[str, np.ndarray], tokens: np.ndarray):
    """NumPy alone, a token at a time: logits, and each recurrence's log decays."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    norm = lambda x, g: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPSILON) * g
    x, decays = w["embedding"][tokens], {}
    for i, one in enumerate(config().sublayers):
        p = {n.split(".")[-1]: a for n, a in w.items() if n.startswith(f"layers.{i}.")}
        read = norm(x, p["norm"])
        if one.kind == "mlp":
            gate = read @ p["gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (read @ p["up"].T)) @ p["down"].T
            continue
        made = read @ p["leaky_in"].T
        u, dt, B, C = np.split(made, np.cumsum([INNER, INNER, STATES]), axis=-1)
        dt = np.log1p(np.exp(dt))
        decays[i] = dt[..., None] * -np.exp(p["leak"])
        h, out = np.zeros((INNER, STATES)), []
        for t in range(len(tokens)):
            h = np.exp(decays[i][t]) * h + (dt[t] * u[t])[:, None] * B[t]
            out.append(h @ C[t])
        x = x + np.array(out) @ p["leaky_out"].T
    return norm(x, w["norm_f"]) @ w["embedding"].T, decays
