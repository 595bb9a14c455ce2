"""The one class of what is true of a kind of sublayer; each kind's file has its own."""

import abc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..arithmetic import AbstractArithmetic


Get = Callable[[str], Any]
"""A parameter in fp64 by its canonical name; None where the model has none."""


class Counts(NamedTuple):
    """How large a sublayer is: what a plan of memory and time rests on."""

    weights: int
    """Entries of its matrices: all arrays but vectors."""
    channels: int
    """Entries a token of the widest tensor between projections; scores that go through
    in blocks are none."""
    scores: int
    """Scores of attention that a temporary holds where they go through in blocks."""
    states: int
    """Entries of the recurrent state; 0 where nothing recurs."""
    arrays: int = 120
    """Of `channels` entries a token, alive at once for each execution while T0 and T1
    are at work; the most of any kind where a kind says nothing."""
    streams: int = 6
    """Arrays as large as the stream that T1 holds beside what goes in and comes out."""
    at_once: int | None = None
    """Most tokens, of all sequences, that it holds `channels` entries of; None: all."""


class HandedOn(NamedTuple):
    """One of the arrays that a call needs of the call before it."""

    name: str
    """The field of the state that the flow takes and gives."""
    how: Literal["state", "window", "cache"]
    """Every token so far is in a `state`, of fixed size; the last ones alone are in a
    `window`; a `cache` has a row for each token and grows with the text."""
    sites: tuple[str, ...]
    """The stores whose values it holds, side by side, in their formats."""


class Dynamics(NamedTuple):
    """How fast the states of a sublayer fade on the tokens, and what makes it so."""

    multiplicity: int
    """Coordinates of the state that share a decay."""
    log_decay: Float[np.ndarray, "batch seq *states"] | None = None
    """None where it is the time step times a rate, and as large as the state."""
    dt: Float[np.ndarray, "batch seq channels"] | None = None
    """Time steps; None where the recurrence has none."""
    rates: Float[np.ndarray, "channels states"] | None = None
    """Log decays over time steps; where they depend on the token, those that give the
    same exponents."""
    parameters: Mapping[str, Any] = MappingProxyType({})
    """As stored, and how they are used: fields of `exponents.StoredParameters`."""


class DeltaDynamics(NamedTuple):
    """What the step Jacobian of a delta rule is made of on the tokens.

    On the keys of a head it is (1 - rate k k^T) diag(exp(log_gate)), not diagonal.
    """

    multiplicity: int
    """Columns of a head's state, each with these exponents: the values of a head."""
    log_gate: Float[np.ndarray, "batch seq heads *key_dim"]
    """Log decays, one a head or one a head and key channel."""
    rate: Float[np.ndarray, "batch seq heads"]
    """Of the write, beta: beta |k|^2 is the share of what is read that is erased."""
    key: Float[np.ndarray, "batch seq key_heads key_dim"]
    """As the recurrence reads it; neighbouring heads share one where key heads are
    fewer."""
    parameters: Mapping[str, Any] = MappingProxyType({})
    """As stored, and how they are used: fields of `exponents.StoredParameters`."""


class AbstractSublayer(abc.ABC):
    """A sublayer with the norm before it: its sizes are the fields of the final class,
    a frozen dataclass, and what holds of all of its kind are class variables.

    Every kind says all of this, and has no default to fall back to. It is registered
    in `lyapunov.sublayers.KINDS`, and nowhere else.
    """

    kind: ClassVar[str]
    """Name of the kind, in reports and in executions."""
    recurrent: ClassVar[bool]
    """Whether it has a state of fixed size that every token so far is in. One that has
    none scans nothing: its bounds do not read how deep an execution's scans are."""
    joins_calls: ClassVar[bool]
    """Whether its flow on all tokens, told of the calls that they come in
    (`Form.calls`), is that of the calls one after another, so long as
    nothing is rounded between them."""
    sites: ClassVar[tuple[str, ...]]
    """Tensors that its flow may store, in the order in which reports name them."""
    weight_groups: ClassVar[Mapping[str, frozenset[str]]]
    """Groups that each of its parameters is in, by canonical name; one is its role."""
    flow: ClassVar[Callable[..., tuple[Any, Any]]]
    """`(at, residual, p, start) -> (output, after)` on one sequence. A recurrence shows
    `state` to `at.observe`, and what `exponents` reads."""

    aside: ClassVar[bool] = False
    """Whether its output goes to the next sublayer alone, and not into the stream."""
    embedded: ClassVar[bool] = False
    """Whether it reads the embedding beside the stream."""
    beside: bool = False
    """Whether it reads what the sublayer before it read, not what that one wrote."""
    norm_front: bool = True
    """Whether it normalises what it reads."""
    keeps: float = 1.0
    """What the stream in front of it is multiplied by, which its output joins."""
    halvings: int = 0
    """How often transformers has halved the stream in front of it, and its output."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        said = ("kind", "recurrent", "joins_calls", "sites", "weight_groups", "flow")
        missing = [name for name in said if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"{cls.__name__} does not say its {', '.join(missing)}")

    @property
    @abc.abstractmethod
    def hand_over(self) -> tuple[HandedOn, ...]:
        """What a call needs of the one before it; empty where tokens do not meet."""

    @property
    def adds_out(self) -> bool:
        """Whether what it adds to the stream is its site `out`."""
        multipliers = ("out_multiplier", "down_multiplier")
        return not getattr(self, "norm_behind", False) and all(
            getattr(self, name, 1.0) == 1.0 for name in multipliers
        )

    def handed(self, at: AbstractArithmetic, after: Any) -> Any:
        """Give what the next call starts from.

        **Arguments:**

        - `at`: stores states in the formats of their cache; windows and rows of a cache
          hold what was stored when it was computed.
        - `after`: what the flow gave.
        """
        for one in self.hand_over:
            if one.how == "state":
                (site,) = one.sites
                kept = at.store(site, getattr(after, one.name))
                after = eqx.tree_at(lambda s: getattr(s, one.name), after, kept)  # noqa: B023
        return after

    @abc.abstractmethod
    def parameters(self, get: Get) -> Any:
        """Put the flow's parameters together from stored ones.

        **Returns:** a PyTree whose `initial_state()` is the flow's first `start`.
        """

    @abc.abstractmethod
    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states.

        **Arguments:**

        - `length`: tokens that attention sees. `batch`: sequences side by side.
        """

    @abc.abstractmethod
    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics | DeltaDynamics | str:
        """Find what the Lyapunov exponents are made of, or say why there are none.

        **Arguments:**

        - `raw`: parameters as stored, by canonical name.
        - `observed`: what the flow showed on the tokens, (batch, seq, ...) each.

        **Returns:** the dynamics of a recurrence; of any other kind the reason, as
        reports word it.
        """


ROLES = ("recurrence", "projections", "biases", "norms", "conv")
"""What a flow does with a parameter; every one has exactly one of these."""


def within(*places: str, **roles: str) -> dict[str, frozenset[str]]:
    """Give the groups of parameters that are in all of these places.

    **Arguments:**

    - `roles`: names with blanks between them, by what the flow does with them.

    **Returns:** by parameter, its places and its role.
    """
    unknown = set(roles) - set(ROLES)
    if unknown:
        raise TypeError(f"no role {', '.join(sorted(unknown))}: {', '.join(ROLES)}")
    return {
        name: frozenset({*places, role})
        for role, names in roles.items()
        for name in names.split()
    }


def with_biases(*names: str) -> str:
    """Give names, each with that of its bias."""
    return " ".join(f"{name} {name}_bias" for name in names)


def convolution(get: Get) -> dict[str, Any]:
    """Give the weights and the bias of a causal convolution; zeros if it has none."""
    weight, bias = get("conv_weight"), get("conv_bias")
    if weight is not None and bias is None:
        bias = jnp.zeros(weight.shape[0])
    return {"conv_weight": weight, "conv_bias": bias}


def as_stored(raw: Mapping[str, np.ndarray], *names: str) -> dict[str, Any]:
    """Give stored parameters in fp64, flat."""
    return {name: raw[name].astype(np.float64).ravel() for name in names}
