"""What state-space blocks look like from outside: names and shapes of their tensors.

What these leave open is an option: an attribute says it of a live module, whoever has
nothing but a file says it by name, and nothing is assumed. Rows and axes are those of
the families' readers (`checkpoints`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._errors import UsageError
from ..sublayers._sublayer import AbstractSublayer


Shapes = Mapping[str, tuple[int, ...]]


class NotOfKindError(UsageError):
    """The tensors are not those of such a block."""


class MissingOptionError(UsageError):
    """The tensors leave something open, and nobody said it.

    **Arguments:**

    - `names`: of the options.
    """

    def __init__(self, message: str, *, names: tuple[str, ...], hint: str = ""):
        super().__init__(message, hint=hint)
        self.names = names


class Option(NamedTuple):
    """One thing that tensors leave open."""

    meaning: str
    """In words, for whoever is asked."""
    attributes: tuple[str, ...]
    """Where modules have it, the first that is there."""
    read: Callable[[Any], Any]
    """Makes the value of what was given; `ValueError` or `TypeError` for what is
    none."""
    tried: tuple[Any, ...] = ()
    """What a live module is tried with that does not say it: its output tells which
    of them it is. Of a file somebody has to say it."""


class MixerKind(NamedTuple):
    """One kind of block."""

    kind: str
    """As in `lyapunov.sublayers.KINDS`."""
    title: str
    stored: Mapping[str, tuple[str, ...]]
    """By canonical name of a parameter, what it may be called inside the module."""
    needed: tuple[str, ...]
    """Canonical names without which a module is none of these."""
    options: Mapping[str, Option]
    sizes: Callable[[Shapes, Callable[[str], Any]], AbstractSublayer]
    """From canonical shapes, and a function that gives an option or raises
    `MissingOptionError`; `NotOfKindError` where the shapes are not such a block's."""


def whole_number(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number != value or number < 1:
        raise ValueError(value)
    return number


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def small(value: Any) -> float:
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(value)
    return number


def limits(value: Any) -> tuple[float, float]:
    low, high = (float(one) for one in value)
    if not 0.0 <= low < high:
        raise ValueError(value)
    return low, high


def silu(value: Any) -> str:
    name = value if isinstance(value, str) else getattr(value, "__name__", None)
    name = name or type(value).__name__
    if name.lower() not in ("silu", "swish", "siluactivation"):
        raise ValueError(value)
    return "silu"


def small_or_none(value: Any) -> float | None:
    return None if value is None or value == "none" else small(value)


def of_shape(shapes: Shapes, name: str, *wanted: int) -> None:
    """Hold a tensor to a shape, where it is there.

    **Raises:** `NotOfKindError`.
    """
    found = shapes.get(name)
    if found is not None and found != wanted:
        raise NotOfKindError(f"{name} has shape {found}; the others ask for {wanted}")


def axes(shapes: Shapes, name: str, count: int) -> tuple[int, ...]:
    if len(shapes[name]) != count or 0 in shapes[name]:
        raise NotOfKindError(f"{name} has shape {shapes[name]}, not {count} axes")
    return shapes[name]


def named(**names: str) -> dict[str, tuple[str, ...]]:
    return {canonical: tuple(stored.split()) for canonical, stored in names.items()}


AROUND = named(
    in_proj="in_proj.weight",
    in_proj_bias="in_proj.bias",
    conv_weight="conv1d.weight",
    conv_bias="conv1d.bias",
    A_log="A_log",
    D="D",
    out_proj="out_proj.weight",
    out_proj_bias="out_proj.bias",
)
ACTIVATION = Option(
    "behind the convolution, and of the gate; silu alone is covered",
    ("activation", "hidden_act", "act"),
    silu,
    ("silu",),
)
CHUNK = Option(
    "tokens of a chunk of its prefill, which decides where it rounds",
    ("chunk_size", "chunk_len", "config.chunk_size"),
    whole_number,
)
