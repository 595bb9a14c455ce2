"""Values of a `config.json`, each refused by name where it is none."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from .files._files import disagreeing, quote


LIST_HINT = "what is covered: lyapunov-check --list-architectures"

_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 10_000

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
}
"""transformers' names of activations, and ours."""


def unsupported(what: str) -> UnsupportedCheckpointError:
    """The error for what is not covered."""
    return UnsupportedCheckpointError(what, hint=LIST_HINT)


def activation(config: Mapping[str, Any], default: str, key: str = "hidden_act") -> str:
    """The MLP's activation by our name."""
    given = config.get(key, default)
    if not isinstance(given, str) or given not in ACTIVATIONS:
        raise unsupported(
            f"config.json says {key} = {quote(given)}; covered are"
            f" {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[given]


def silu_only(config: Mapping[str, Any], key: str = "hidden_act") -> None:
    """Refuse a mixer's activation other than silu."""
    act = config.get(key, "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedCheckpointError(
            f"config.json says {key} = {quote(act)}; only silu is covered",
            hint="Mamba's published models use silu",
        )


def rotary(
    config: Mapping[str, Any],
    head_dim: int,
    share: float | None = None,
    theta: float = 10000.0,
) -> tuple[int, float]:
    """Channels of a head that turn with position, and the base of their rates.

    **Arguments:**

    - `share`, `theta`: where config.json does not say. With None for `share` whole
      heads turn, whatever it says of `partial_rotary_factor`, which the code of most
      families does not read.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise refuse("rope_parameters", rope, "an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise unsupported(f"positions of rope_type {quote(kind)} are not covered")
    merged = {k: v for k, v in {**config, **rope}.items() if v is not None}
    part = 1.0
    if share is not None:
        part = positive(merged, "partial_rotary_factor", share)
    return int(head_dim * part), positive(merged, "rope_theta", theta)


def limits(config: Mapping[str, Any], key: str) -> tuple[float, float]:
    """Limits of dt, none where there are none."""
    value = config.get(key)
    value = (0.0, math.inf) if value is None else value
    try:
        # transformers writes an infinite end as {"__float__": "Infinity"}
        low, high = (
            float(end["__float__"] if isinstance(end, dict) else end) for end in value
        )
    except (KeyError, TypeError, ValueError):
        raise refuse(key, value, "a pair of numbers") from None
    if not 0 <= low < high:
        raise refuse(key, value, "a range of positive numbers")
    return low, high


def refuse(key: str, value: object, wanted: str) -> CorruptCheckpointError:
    """The error that names a setting."""
    return CorruptCheckpointError(
        f"config.json says {key} = {quote(value, 40)}, which is not {wanted}",
        hint="download config.json again",
    )


def integer(config: Mapping[str, Any], key: str, default: int) -> int:
    """A size: an integer of at least 1."""
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= _MAX_SIZE:
        raise refuse(key, value, "a plausible size")
    return value


def natural(config: Mapping[str, Any], key: str, default: int) -> int:
    """A count that may be 0, such as an offset."""
    value = config.get(key, default)
    return 0 if type(value) is int and value == 0 else integer(config, key, default)


def layer_count(config: Mapping[str, Any], key: str, default: int) -> int:
    """How many layers there are; each costs a table, so that nonsense must end here."""
    value = integer(config, key, default)
    if value > _MAX_LAYERS:
        raise refuse(key, value, "a plausible number of layers")
    return value


def switch(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise refuse(key, value, "true or false")
    return value


def positive(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive, finite number."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise refuse(key, value, "a positive number")
    return float(value)


def expanded(config: Mapping[str, Any], d_model: int, key: str = "expand") -> int:
    """Channels of a mixer."""
    value = config.get(key, 2)
    if type(value) not in (int, float) or not 0 < value * d_model <= _MAX_SIZE:
        raise refuse(key, value, "a plausible factor")
    return int(value * d_model)


def rank(config: Mapping[str, Any], key: str, d_model: int) -> int:
    """The rank of the projection that makes dt."""
    if config.get(key, "auto") == "auto":
        return math.ceil(d_model / 16)
    return integer(config, key, 1)


def number(config: Mapping[str, Any], key: str, default: float = 1.0) -> float:
    """A finite number other than 0, such as a multiplier."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not math.isfinite(value) or value == 0:
        raise refuse(key, value, "a number")
    return float(value)


def numbers(config: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """So many finite numbers; ones where there are none."""
    value = config.get(key)
    if value is None:
        return (1.0,) * count
    if not isinstance(value, list) or len(value) != count:
        raise refuse(key, value, f"a list of {count} numbers")
    return tuple(number({key: one}, key) for one in value)


def head_count(config: Mapping[str, Any], default: int) -> tuple[int, int]:
    """Heads of an attention, and heads of its keys and values."""
    heads = integer(config, "num_attention_heads", default)
    if config.get("num_key_value_heads") is None:
        return heads, heads
    kv_heads = integer(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise refuse("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    return heads, kv_heads


def head_size(config: Mapping[str, Any], d_model: int, heads: int) -> int:
    """Channels of a head."""
    if config.get("head_dim") is not None:
        return integer(config, "head_dim", 1)
    if d_model % heads:
        raise refuse("num_attention_heads", heads, f"a divisor of {d_model}")
    return d_model // heads


def layer_kinds(
    config: Mapping[str, Any], keys: tuple[str, ...], default: list[str] | None
) -> list[str]:
    """What each layer is, with transformers' older words in place of its newer ones."""
    older = {"linear_attention": "mamba", "full_attention": "attention"}
    for key in keys:
        found = config.get(key)
        if found is None:
            continue
        if not isinstance(found, list) or not found:
            raise refuse(key, found, "a list of layers")
        return [older.get(str(one), str(one)) for one in found]
    if default is None:
        raise refuse(keys[0], None, "a list of layers")
    return default


def covered_layers(
    config: Mapping[str, Any], covered: Iterable[str], default: list[str]
) -> list[str]:
    """What each layer is by `layer_types`, as many as there are in `default`.

    **Raises:** `CorruptCheckpointError` for another number of layers,
    `UnsupportedCheckpointError` for kinds that are not covered.
    """
    kinds, layers = layer_kinds(config, ("layer_types",), default), len(default)
    if len(kinds) != layers:
        raise disagreeing(f"config.json names {len(kinds)} layers, and counts {layers}")
    only_covered(kinds, covered)
    return kinds


def only_covered(kinds: Iterable[str], covered: Iterable[str]) -> None:
    """Refuse layers of other kinds."""
    if unknown := sorted(set(kinds) - set(covered)):
        raise unsupported(
            f"config.json names layers that are not covered: {quote(unknown)}"
        )
