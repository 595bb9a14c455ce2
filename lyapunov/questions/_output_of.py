"""Which tensor of a network's output is looked at, and what it decides."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .._arguments import shown
from .._errors import ArgumentError, UsageError
from ..models._from_torch import copied


WAYS = (
    'output="logits" (an attribute or a key), output=0 (an index), output=True (the '
    "tensor itself), or a function of what the network gives"
)
ARGMAX = "argmax of the last axis"


class Decided(NamedTuple):
    """What a metric says of one output."""

    decisions: np.ndarray | None
    number: float | None

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return self.decisions is not None or self.number is not None


class OutputOf:
    """Take the tensor that is looked at out of what a network gives.

    **Arguments:**

    - `output`: a string names an attribute or a key; an integer an index; True is the
      tensor itself; a function is given everything.
    - `metric`: a function of that tensor which gives decisions (whole numbers or truth
      values, of any shape) or a number; None is the argmax of the last axis where that
      is 2 or longer; False is nothing.

    **Raises:** `ArgumentError` for anything else.
    """

    def __init__(self, output: Any, metric: Any = None):
        is_name = isinstance(output, str) and bool(output)
        if not (is_name or isinstance(output, int) or callable(output)) or (
            output is False
        ):
            raise ArgumentError(f"output is {shown(output)}", hint=WAYS)
        if not (metric is None or metric is False or callable(metric)):
            raise ArgumentError(
                f"metric is {shown(metric)}",
                hint="a function of the output, such as lambda y: y > 0.5; False for "
                "none",
            )
        self._output: Any = output
        self._metric: Any = metric

    @property
    def name(self) -> str:
        """What reports call it."""
        if self._output is True:
            return "the whole output"
        if not isinstance(self._output, str | int):
            return _called(self._output)
        return self._output if isinstance(self._output, str) else f"[{self._output}]"

    def tensor(self, result: Any) -> Any:
        """The torch tensor of one run.

        **Raises:** `UsageError` where there is no such tensor, or it holds no numbers.
        """
        torch = sys.modules["torch"]
        found = self._taken(result)
        if not isinstance(found, torch.Tensor):
            raise UsageError(
                f"output={shown(self._output)} is {type(found).__name__}, no tensor",
                hint=_hint(result),
            )
        if not found.is_floating_point() or not found.numel():
            raise UsageError(
                f"output={shown(self._output)} is of {found.dtype} and shape "
                f"{tuple(found.shape)}",
                hint="scores, before they are made decisions: those are for metric=",
            )
        return found.detach()

    def decided(self, tensor: Any) -> Decided:
        """What the output decides.

        **Raises:** `UsageError` where the metric raises, or gives neither decisions nor
        a number.
        """
        if self._metric is False:
            return Decided(None, None)
        if self._metric is None:
            if tensor.ndim == 0 or tensor.shape[-1] < 2:
                return Decided(None, None)
            return Decided(np.argmax(_wide(tensor), axis=-1), None)
        try:
            found = self._metric(tensor)
        except Exception as error:
            raise UsageError(
                f"metric {_called(self._metric)} raised {type(error).__name__}: "
                f"{shown(str(error))}",
                hint=f"it is given {self.name}, {tuple(tensor.shape)} of "
                f"{tensor.dtype}",
            ) from error
        return _of_metric(found, _called(self._metric))

    @property
    def decision(self) -> str:
        """What decides, in words."""
        return ARGMAX if self._metric is None else _called(self._metric)

    def _taken(self, result: Any) -> Any:
        output = self._output
        if output is True:
            return result
        if not isinstance(output, str | int):
            try:
                return output(result)
            except Exception as error:
                raise UsageError(
                    f"output {_called(output)} raised {type(error).__name__}: "
                    f"{shown(str(error))}",
                    hint=_hint(result),
                ) from error
        if isinstance(output, str):
            if isinstance(result, Mapping) and output in result:
                return result[output]
            found = None if isinstance(result, Mapping) else _own(result, output)
            if found is None:
                raise UsageError(
                    f"the network gives no {shown(output)}", hint=_hint(result)
                )
            return found
        if not isinstance(result, tuple | list) or not (
            -len(result) <= output < len(result)
        ):
            raise UsageError(f"the network gives no [{output}]", hint=_hint(result))
        return result[output]


def values_of(tensor: Any) -> Float[np.ndarray, "..."]:
    """The output's numbers in fp64, on the host."""
    return _wide(tensor)


def _wide(tensor: Any) -> np.ndarray:
    return copied(tensor).astype(np.float64)


def _own(result: Any, name: str) -> Any:
    """An attribute that a result has for itself; of a tensor none is meant."""
    torch = sys.modules["torch"]
    return None if isinstance(result, torch.Tensor) else getattr(result, name, None)


def _of_metric(found: Any, name: str) -> Decided:
    torch = sys.modules["torch"]
    array = copied(found) if isinstance(found, torch.Tensor) else np.asarray(found)
    if array.dtype.kind in "biu" and array.size:
        return Decided(array, None)
    if array.dtype.kind in "fV" and array.size == 1:
        return Decided(None, float(array.astype(np.float64).reshape(())))
    raise UsageError(
        f"metric {name} gave {array.dtype} of shape {array.shape}",
        hint="decisions (whole numbers or truth values), or one number",
    )


def _called(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _hint(result: Any) -> str:
    """What there is to name."""
    torch = sys.modules["torch"]
    if isinstance(result, torch.Tensor):
        return f"it gives one tensor {tuple(result.shape)}: output=True"
    if isinstance(result, Mapping):
        return f"it gives {', '.join(map(str, result))}; {WAYS}"
    if isinstance(result, tuple | list):
        return f"it gives {len(result)} things: output=0, or {WAYS}"
    return f"it gives {type(result).__name__}; {WAYS}"
