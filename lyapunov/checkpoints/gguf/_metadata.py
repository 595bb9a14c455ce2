"""Settings in a GGUF file's metadata, each refused by name where it is none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import quote
from ._header import Skipped


@dataclass(frozen=True)
class Metadata:
    """Read settings of a model.

    **Arguments:**

    - `values`: by their whole names.
    - `prefix`: what those of the model begin with, its architecture.
    - `shown`: the file, for messages.
    """

    values: Mapping[str, Any]
    prefix: str
    shown: str

    def has(self, key: str) -> bool:
        """Tell whether a setting is there."""
        return f"{self.prefix}.{key}" in self.values

    def refuse(self, key: str, wanted: str) -> CorruptCheckpointError:
        """Make the error that names a setting."""
        name = f"{self.prefix}.{key}"
        if name not in self.values:
            return CorruptCheckpointError(
                f"{self.shown} does not say {quote(name)}",
                hint="convert the model again, with a newer llama.cpp",
            )
        return CorruptCheckpointError(
            f"{self.shown} says {quote(name)} = {_told(self.values[name])}, which is"
            f" not {wanted}",
            hint="download the file again, or convert the model anew",
        )

    def integer(self, key: str) -> int:
        """Read a size, an integer of at least 1.

        **Raises:** `CorruptCheckpointError` where there is none.
        """
        found = self.natural(key)
        if found < 1:
            raise self.refuse(key, "a plausible size")
        return found

    def natural(self, key: str) -> int:
        """Read a count, which may be 0; of a list whose elements agree, one of them.

        **Raises:** `CorruptCheckpointError` where there is none.
        """
        found = self.values.get(f"{self.prefix}.{key}")
        if isinstance(found, list) and found and len(set(found)) == 1:
            found = found[0]
        if type(found) is not int or not 0 <= found < 2**31:
            raise self.refuse(key, "a plausible size")
        return found

    def by_layer(self, key: str, layers: int) -> list[int]:
        """Read a count of each layer; one number is that of all.

        **Raises:** `CorruptCheckpointError` where there is none, or another number of
        layers.
        """
        found = self.values.get(f"{self.prefix}.{key}")
        if type(found) is int:
            found = [found] * layers
        if not isinstance(found, list) or len(found) != layers:
            raise self.refuse(key, f"a list of {layers} sizes")
        if any(type(one) is not int or not 0 <= one < 2**31 for one in found):
            raise self.refuse(key, f"a list of {layers} sizes")
        return found

    def flags(self, key: str, layers: int) -> list[bool]:
        """Read a flag of each layer."""
        found = self.values.get(f"{self.prefix}.{key}")
        if not isinstance(found, list) or len(found) != layers:
            raise self.refuse(key, f"a list of {layers} flags")
        if any(one not in (0, 1) for one in found):
            raise self.refuse(key, f"a list of {layers} flags")
        return [bool(one) for one in found]

    def positive(self, key: str) -> float:
        """Read a positive, finite number.

        **Raises:** `CorruptCheckpointError` where there is none.
        """
        found: Any = self.values.get(f"{self.prefix}.{key}")
        if type(found) not in (int, float) or not 0 < found < math.inf:
            raise self.refuse(key, "a positive number")
        return float(found)

    def multiplier(self, key: str) -> float | None:
        """Read a multiplier; llama.cpp takes 0, and none, for what it does without."""
        found = self.values.get(f"{self.prefix}.{key}", 0)
        if type(found) not in (int, float) or not math.isfinite(found):
            raise self.refuse(key, "a number")
        return float(found) or None

    def flag(self, key: str, default: bool) -> bool:
        """Read a flag; where llama.cpp has a default of its own, that."""
        found = self.values.get(f"{self.prefix}.{key}", default)
        if type(found) is not bool:
            raise self.refuse(key, "true or false")
        return found

    def demand_absent(self, key: str, why: str, fine: Sequence[Any] = (0,)) -> None:
        """Refuse a setting that is there and is none of these values.

        **Raises:** `UnsupportedCheckpointError` that says `why`.
        """
        name = f"{self.prefix}.{key}"
        if name in self.values and self.values[name] not in fine:
            raise UnsupportedCheckpointError(
                f"{self.shown} says {quote(name)} = {_told(self.values[name])}: {why},"
                " which is not covered",
                hint="check the checkpoint that it was made from",
            )


def _told(value: Any) -> str:
    if isinstance(value, Skipped):
        return f"{value.length} elements"
    return quote(value, 60)
