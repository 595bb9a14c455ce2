"""What was asked for, checked before the long work: tokens, layers, device, runs."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from .._arguments import shown, switch, whole
from .._errors import ArgumentError, UsageError
from ..implementations import Execution, executions_for
from ..implementations._constants import with_measured
from ..models import Model
from ..models._token_ids import check_range, integer_tokens
from ..models._tokens import Tokens, called_text, choose_tokens
from ..results._check import TokensFacts
from ._settings import CONSTANTS


def given_tokens(
    model: Model, tokens, seed: int, source: str
) -> tuple[np.ndarray, str]:
    """Tokens as (batch, seq) with where they came from; chosen where none are given."""
    chosen = tokens_to_check(model, tokens, seed, source)
    return chosen.ids, chosen.source


def tokens_to_check(
    model: Model,
    tokens,
    seed: int,
    source: str,
    *,
    are_text: bool = False,
    n_bytes: int | None = None,
) -> Tokens:
    """Tokens as (batch, seq), and whether they are text.

    **Arguments:**

    - `tokens`: (seq) or (batch, seq) integers; None chooses.
    - `are_text`: those given are text, of which `n_bytes` are predicted.

    **Raises:** `TokensError`, also where tokens that are called text were drawn.
    """
    if not isinstance(source, str):
        raise ArgumentError(
            f"token_source is {shown(source)}", hint="words, as token_source='my text'"
        )
    switch(are_text, "tokens_are_text")
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
    ids = integer_tokens(tokens, least=2)
    check_range(ids, model.config.vocab_size)
    given = Tokens(ids.astype(np.int64), source, False, n_bytes)
    return called_text(given, config) if are_text else given


def tokens_facts(ids: np.ndarray, source: str) -> TokensFacts:
    """What a report says of its tokens (batch, seq)."""
    return TokensFacts(
        source=source,
        batch=ids.shape[0],
        length=ids.shape[1],
        sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
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
        found = jax.devices({"gpu": "gpu", "cuda": "gpu"}.get(kind, kind))
        return found[int(number or 0)]
    except (RuntimeError, IndexError, ValueError):
        raise UsageError(
            f"no device {name!r}",
            hint=f"here: {', '.join(sorted({d.platform for d in jax.devices()}))}",
        ) from None


def chosen_executions(
    model: Model,
    precisions,
    state_precision,
    mode: str,
    measure: str,
    constants: str = "documented",
) -> list[Execution]:
    """One execution for each precision, of whatever measures.

    **Raises:** `UsageError` for constants that there are not, and as `executions_for`.
    """
    if constants not in CONSTANTS:
        raise UsageError(
            f"no constants {constants!r}", hint=f"one of {', '.join(CONSTANTS)}"
        )
    executions = executions_for(
        model.config,
        precisions,
        architecture=model.layout.architecture,
        mode=mode,
        measure=measure,
        state_precision=state_precision,
    )
    if constants == "documented":
        return executions
    return [with_measured(execution) for execution in executions]
