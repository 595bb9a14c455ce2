"""What was asked for, checked before the long work: tokens, layers, device, runs."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from .._arguments import shown, whole
from .._errors import ArgumentError, UsageError
from ..findings._verdict import Verdict
from ..formats import Precision
from ..implementations import Execution, executions_for
from ..implementations._constants import with_measured
from ..implementations._registry import measuring
from ..models import Model
from ..models._load import demand_head
from ..models._token_ids import check_range, integer_tokens
from ..models._tokens import Tokens, called_text, choose_tokens
from ..results._check import CheckpointFacts, TokensFacts
from ._activations import followed, quantising
from ._effort import SWITCHES, Effort
from ._quantisation import quantisation_facts
from ._settings import checked_settings
from ._weight_sets import ParameterChange, chosen_changes


class AsEffort:
    """A switch that nobody set: it is as `effort` says."""

    def __repr__(self) -> str:
        return "<as effort says>"


AS_EFFORT = AsEffort()


@dataclass(frozen=True)
class Request:
    """Say what a check is to do: which runs and sublayers, how much, and what counts.

    Fields are as the arguments of `check`, in the types that the work expects.
    """

    precisions: tuple[Precision, ...] = (Precision("bf16"), Precision("fp16"))
    state_precision: Precision | None = None
    mode: str = "prefill"
    layers: tuple[int, ...] | None = None
    measure: str = "emulated"
    constants: str = "documented"
    device: str | None = None
    against: str | None = None
    round_weights: tuple[str, ...] = ()
    quantise_activations: str | None = None
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    tokens_are_text: bool = False
    verdict: Verdict = field(default_factory=Verdict)

    @classmethod
    def of(cls, **named: Any) -> "Request":
        """Make a request of the arguments of `check`, by name.

        **Raises:** `LyapunovError` with a hint for the first that is wrong.
        """
        settings = checked_settings(
            {name: value for name, value in named.items() if value is not AS_EFFORT}
        )
        switches = {name: settings.pop(name) for name in SWITCHES if name in settings}
        verdict = Verdict.among(settings)
        for name in verdict.settings():
            settings.pop(name, None)
        state = settings.get("state_precision")
        if "precisions" in settings:
            settings["precisions"] = map(Precision.named, settings["precisions"])
        if state is not None:
            settings["state_precision"] = Precision.named(state)
        return cls(
            **_frozen(settings)
            | {
                "effort": Effort.of(settings.get("effort", "standard"), **switches),
                "verdict": verdict,
            }
        )

    def on(self, model: Model, tokens: Tokens) -> "Request":
        """The request as it is for this model and these tokens, defaults resolved."""
        n_params = model.layout.n_params
        return dataclasses.replace(
            self,
            effort=self.effort.on(has_head=model.has_head, n_params=n_params),
            tokens_are_text=tokens.is_text,
        )

    def settings(self) -> dict[str, Any]:
        """The request as a report repeats it: plain JSON types."""
        flat: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Effort | Verdict):
                flat |= value.settings()
            else:
                flat[one.name] = _plain(value)
        return flat

    def sublayers(self, model: Model) -> tuple[int, ...]:
        """The sublayers to bound and compare, ascending."""
        return chosen_layers(model, self.layers)

    def executions(self, model: Model) -> list[Execution]:
        """One execution for each precision, of whatever measures.

        **Raises:** `UsageError` for what the implementation does not run.
        """
        state = self.state_precision
        executions = executions_for(
            model.config,
            [str(precision) for precision in self.precisions],
            architecture=model.layout.architecture,
            mode=self.mode,
            measure=self.measure,
            state_precision=None if state is None else str(state),
        )
        if self.constants != "documented":
            executions = [with_measured(execution) for execution in executions]
        return quantising(
            executions, model.layout, self.measure, self.quantise_activations
        )

    def changes(self, model: Model) -> list[ParameterChange]:
        """The weight sets to hold against the model."""
        return chosen_changes(model, self.against, self.round_weights)


def demand_logits(model: Model, request: Request) -> None:
    """Refuse a model without a head where logits are needed.

    **Raises:** `UsageError` that says what can be done without.
    """
    measured = measuring(request.measure)
    headless = measured is None or measured.runs_without_head
    if request.against or request.round_weights or not headless:
        demand_head(model)


def _frozen(settings: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list | map) else value
        for name, value in settings.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Precision) else value


def chosen_tokens(
    model: Model,
    tokens,
    seed: int = 0,
    *,
    are_text: bool = False,
    n_bytes: int | None = None,
) -> Tokens:
    """Tokens as (batch, seq), where they came from, and whether they are text.

    **Arguments:**

    - `tokens`: (seq) or (batch, seq) integers, or `Tokens`; None chooses.
    - `are_text`: those given are text, of which `n_bytes` are predicted.

    **Raises:** `TokensError`, also where tokens that are called text were drawn.
    """
    if n_bytes is not None:
        whole(n_bytes, "token_bytes", 1)
    checkpoint = model.checkpoint
    config = None if checkpoint is None else checkpoint.config
    if tokens is None:
        return choose_tokens(
            vocab_size=model.config.vocab_size,
            seed=seed,
            config=config,
            folder=None if checkpoint is None else checkpoint.folder,
            are_text=are_text,
        )
    told = tokens if isinstance(tokens, Tokens) else Tokens(tokens, "given")
    if not isinstance(told.source, str):
        raise ArgumentError(
            f"the source of the tokens is {shown(told.source)}",
            hint='words, as Tokens(ids, "my text")',
        )
    ids = integer_tokens(told.ids, least=2)
    check_range(ids, model.config.vocab_size)
    given = dataclasses.replace(told, ids=ids.astype(np.int64))
    if n_bytes is not None:
        given = dataclasses.replace(given, n_bytes=n_bytes)
    return called_text(given, config) if are_text else given


def tokens_facts(tokens: Tokens) -> TokensFacts:
    """What a report says of its tokens."""
    batch, length = tokens.ids.shape
    digest = hashlib.sha256(tokens.ids.astype("<i8").tobytes()).hexdigest()
    return TokensFacts(tokens.source, batch, length, digest)


def checkpoint_facts(
    model: Model, request: Request | None = None, *, hashed: bool = True
) -> CheckpointFacts:
    """What a report says of its checkpoint; its files are read whole to be hashed.

    **Arguments:**

    - `request`: what was asked for, where executions may follow the configuration.
    """
    follows = None
    if request is not None:
        asked = request.measure, request.quantise_activations
        follows = followed(model.layout, *asked)
    return CheckpointFacts(
        source=model.source,
        architecture=model.layout.architecture,
        n_layers=len(model.sublayers),
        n_params=model.layout.n_params,
        dtype=model.layout.dtype,
        files=model.checkpoint.hashes() if hashed and model.checkpoint else [],
        n_blocks=model.layout.n_blocks,
        quantisation=quantisation_facts(model.layout, follows),
    )


def chosen_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The sublayers to compare, ascending; None is all.

    **Raises:** `UsageError` where one is not there, or none was chosen.
    """
    count = len(model.sublayers)
    if layers is None:
        return tuple(range(count))
    if not len(layers):
        raise UsageError("no sublayer was chosen", hint="None is all of them")
    beyond = [layer for layer in layers if not 0 <= layer < count]
    if beyond:
        raise UsageError(
            f"there is no sublayer {beyond[0]}; this model has {count}",
            hint=f"--layers 0-{count - 1}",
        )
    return tuple(sorted(set(layers)))


def device_named(name: str | None):
    """A JAX device by name, such as `gpu:0`."""
    if name is None:
        return None
    kind, _, number = name.partition(":")
    try:
        found = jax.local_devices(backend={"cuda": "gpu"}.get(kind, kind))
        return found[int(number or 0)]
    except (RuntimeError, IndexError, ValueError):
        here = sorted({device.platform for device in jax.local_devices()})
        raise UsageError(
            f"no device {name!r}", hint=f"here: {', '.join(here)}"
        ) from None
