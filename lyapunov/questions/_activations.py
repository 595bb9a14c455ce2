"""What a check's executions quantise in front of products, and what is said of it."""

from collections.abc import Sequence

from .._errors import UsageError
from ..checkpoints._network import NetworkLayout
from ..formats._operand_table import AS_CONFIGURED, UNQUANTISED
from ..implementations import Execution
from ..implementations._configured_activations import (
    configured_activations,
    with_configured_activations,
)
from ..implementations._quantised_activations import with_quantised_activations


EMULATED = "emulated"
FOLLOWED = "as configured"
_OPTION = "--quantise-activations"


def quantising(
    executions: Sequence[Execution],
    layout: NetworkLayout,
    measure: str,
    asked: str | None,
) -> list[Execution]:
    """The same executions with activations quantised as it was asked for: to a format,
    or as the checkpoint's configuration has it, which the emulator does unasked.

    **Raises:** `UsageError` for what asks it of others than the emulator, for a format
    that is not declared, and where the configuration is to be followed and cannot be;
    `CorruptCheckpointError` for scales that are missing or no numbers.
    """
    if asked == UNQUANTISED or (asked is None and measure != EMULATED):
        return list(executions)
    if measure != EMULATED:
        raise UsageError(
            f"quantised activations are emulated, not run by {measure}",
            hint=f"--measure {EMULATED}, or leave {_OPTION} out",
        )
    if asked not in (None, AS_CONFIGURED):
        return [
            with_quantised_activations(one, layout.config, asked) for one in executions
        ]
    if asked == AS_CONFIGURED:
        _demand(executions, layout)
    configured = configured_activations(layout)
    if not configured.follows:
        return list(executions)
    return [
        one
        if one.runs_in.autocast
        else with_configured_activations(one, layout, configured)
        for one in executions
    ]


def _demand(executions: Sequence[Execution], layout: NetworkLayout) -> None:
    """Refuse what cannot be followed wholly.

    **Raises:** `UsageError` with the first thing.
    """
    told = layout.checkpoint.quantisation
    if told is None or not told.activations:
        raise UsageError(
            "this checkpoint's configuration has no activations quantised",
            hint=f"a format, as {_OPTION} fp8_e4m3-token, or leave it out",
        )
    left = configured_activations(layout).left
    if left:
        raise UsageError(
            left[0],
            hint=f"leave {_OPTION} out: the rest is followed and the report says so",
        )
    amp = [one.precision for one in executions if one.runs_in.autocast]
    if amp:
        raise UsageError(
            f"activations are not quantised under autocast ({amp[0]})",
            hint=f"--precision {amp[0].partition('-')[0]}",
        )


def followed(layout: NetworkLayout, measure: str, asked: str | None) -> str | None:
    """What executions quantise activations to, in a word for the report; None where
    they multiply them as they are."""
    if asked == UNQUANTISED or measure != EMULATED:
        return None
    if asked not in (None, AS_CONFIGURED):
        return asked
    configured = configured_activations(layout)
    if not configured.follows:
        return None
    return f"{FOLLOWED}, in part" if configured.left else FOLLOWED


def activation_lines(
    layout: NetworkLayout,
    executions: Sequence[Execution],
    measure: str,
    asked: str | None,
) -> list[str]:
    """What a report says of activations that the configuration has quantised: whether
    executions follow it, and what they do not; nothing where it has none.

    **Arguments:**

    - `executions`: of the report, as `quantising` made them.
    - `measure`: who runs them; `asked`: the option.
    """
    told = layout.checkpoint.quantisation
    if told is None or not told.activations:
        return []
    has = (
        "the configuration has activations quantised in front of products"
        f" ({told.activations})"
    )
    found = followed(layout, measure, asked)
    if found is not None and found == asked:
        return [f"{has}; executions quantise them to {asked}"]
    left = list(configured_activations(layout).left) if measure == EMULATED else []
    if found is None or asked == UNQUANTISED:
        why = "executions multiply them as they are"
        if asked == UNQUANTISED:
            why += f", as was asked ({_OPTION} {UNQUANTISED})"
        elif not told.asked:
            why += ", in no format that is declared here"
        elif measure != EMULATED:
            why += f"; --measure {EMULATED} follows them"
        return [
            f"not followed: {has}; reference and {why}, so that no bound here holds a"
            " server that quantises them",
            *([] if asked == UNQUANTISED else left),
        ]
    lines = [f"{has}; executions follow it module by module", *left]
    amp = sorted({one.precision for one in executions if one.runs_in.autocast})
    if amp:
        lines.append(f"not followed under autocast ({', '.join(amp)}): {has}")
    return lines
