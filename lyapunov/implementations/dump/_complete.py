"""Which keys of a sublayer there have to be, and which go together."""

from ..._errors import DumpError


def is_index(text: str) -> bool:
    """Whether part of a key is a number of a sublayer or a call."""
    return text.isdecimal() and len(text) < 7


def check_complete(run: str, layer: int, keys: set[str]) -> None:
    """**Raises:** `DumpError` for a sublayer without an output, or an input."""
    where = f"layer {layer} of the run {run[:60]!r}"
    if "output" not in keys:
        raise DumpError(f"{where} has no output", hint=f"layer.{layer}.output")
    halves = keys & {"residual", "hidden"}
    if "input" in keys and halves:
        raise DumpError(
            f"{where} has both input and {sorted(halves)[0]}",
            hint="input alone, or residual and hidden",
        )
    if "input" not in keys and len(halves) < 2:
        raise DumpError(
            f"{where} has no input",
            hint=f"layer.{layer}.input, or layer.{layer}.residual and .hidden",
        )
