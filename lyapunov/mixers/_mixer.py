"""A state-space block on its own: what it is, and its weights."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._arguments import choice, shown
from .._errors import ArgumentError, UsageError
from ..models._from_torch import copied
from ..sublayers._sublayer import AbstractSublayer
from ._kind import MissingOptionError, MixerKind, NotOfKindError
from ._kinds import KINDS


@dataclass(frozen=True, eq=False)
class Mixer:
    """Hold a block without the network around it.

    **Arguments:**

    - `sizes`: of its kind, without a norm in front.
    - `weights`: by canonical name, as the kind's flow takes them.
    """

    sizes: AbstractSublayer
    weights: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def kind(self) -> str:
        """Name of its kind, such as `mamba1`."""
        return self.sizes.kind

    @property
    def n_params(self) -> int:
        """Count its weights."""
        return sum(array.size for array in self.weights.values())


def mixer(kind: str, weights: Mapping[str, Any], **options: Any) -> Mixer:
    """Make a block of arrays, for a class that `watch` does not know.

    **Arguments:**

    - `kind`: `mamba1`, `mamba2` or `mamba3`.
    - `weights`: torch tensors or arrays by canonical name, rows as in the families'
      own modules: `in_proj` (rows, d_model), `conv_weight` (channels, taps), `x_proj`,
      `dt_proj`, `dt_bias`, `A_log`, `D`, `out_proj`, and the other names of
      `lyapunov.mixers.KINDS[kind].stored`.
    - `options`: what these leave open, by the names of `KINDS[kind].options`.

    **Raises:** `UsageError` for a weight that is missing, unknown or of another shape,
    and for an option that is missing or out of range.
    """
    known = KINDS[choice(kind, "kind", tuple(KINDS))]
    strangers = sorted(set(weights) - set(known.stored))
    missing = [name for name in known.needed if name not in weights]
    if strangers or missing:
        what = f"no {missing[0]}" if missing else f"an unknown {shown(strangers[0])}"
        raise UsageError(
            f"a {known.title} block with {what}",
            hint=f"its weights are {', '.join(known.stored)}",
        )
    arrays = {name: as_array(name, value) for name, value in weights.items()}
    asked = Options(known, given_options(known, options))
    try:
        sizes = known.sizes({name: a.shape for name, a in arrays.items()}, asked)
    except NotOfKindError as error:
        raise UsageError(
            f"a {known.title} block: {error.message}", hint="axes as `mixer` says them"
        ) from None
    return Mixer(sizes, arrays)


def as_array(name: str, value: Any) -> np.ndarray:
    """A weight on the host, in its own type.

    **Raises:** `ArgumentError` for what holds no finite real numbers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if not value.is_floating_point() or value.device.type == "meta":
            raise ArgumentError(
                f"{name} is of {value.dtype} on {value.device}",
                hint="weights in memory, of fp64, fp32, fp16 or bf16",
            )
        array = copied(value)
    else:
        array = np.asarray(value)
    wide = array.astype(np.float64) if array.dtype.kind in "fV" else None
    if wide is None or not np.isfinite(wide).all():
        raise ArgumentError(
            f"{name} is of {array.dtype} and shape {array.shape}, or not finite",
            hint="finite weights of fp64, fp32, fp16 or bf16",
        )
    return array


def given_options(known: MixerKind, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as somebody gave them, in their types.

    **Raises:** `ArgumentError`.
    """
    found = {}
    for name, value in options.items():
        if name not in known.options:
            raise ArgumentError(
                f"a {known.title} block has no option {shown(name)}",
                hint=f"one of {', '.join(known.options)}",
            )
        found[name] = read_option(known, name, value)
    return found


def read_option(known: MixerKind, name: str, value: Any) -> Any:
    """One option in its type.

    **Raises:** `ArgumentError` that says what it means.
    """
    option = known.options[name]
    try:
        return option.read(value)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{name} is {shown(value)}", hint=f"{name}: {option.meaning}"
        ) from None


class Options:
    """Give the options that somebody said, and raise for one that is asked for.

    **Arguments:**

    - `given`: by name, in their types.
    """

    def __init__(self, known: MixerKind, given: Mapping[str, Any]):
        self._known = known
        self._given = given
        self.asked: list[str] = []
        """What was asked for so far."""

    def __call__(self, name: str) -> Any:
        """**Raises:** `MissingOptionError`."""
        self.asked.append(name)
        if name in self._given:
            return self._given[name]
        meaning = self._known.options[name].meaning
        raise MissingOptionError(
            f"nothing says {name} of a {self._known.title} block: {meaning}",
            names=(name,),
            hint=f"{name}=...",
        )
