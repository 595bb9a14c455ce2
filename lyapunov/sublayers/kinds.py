"""The registry of the kinds of sublayers; a class is imported when it is asked for.

The names are there without JAX, which the classes need. A new kind is a class and a
line here; one that lives elsewhere is registered by `KINDS["name"] = ItsSublayer`.
"""

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from .._errors import UsageError


class Kinds(MutableMapping[str, Any]):
    """Classes of sublayers by kind.

    **Raises:** `UsageError` for a kind that is not there, and for a class that calls
    itself otherwise.
    """

    def __init__(self, **places: str):
        self._kinds: dict[str, Any] = dict(places)

    def __getitem__(self, kind: str) -> Any:
        if kind not in self._kinds:
            raise UsageError(
                f"no kind of sublayer {kind!r}; there are {', '.join(self._kinds)}",
                hint=f"register it: lyapunov.sublayers.KINDS[{kind!r}] = its class",
            )
        found = self._kinds[kind]
        if isinstance(found, str):
            module = importlib.import_module(f".{kind}", __package__)
            found = self._kinds[kind] = getattr(module, found)
        return found

    def __setitem__(self, kind: str, found: Any) -> None:
        from ._sublayer import AbstractSublayer

        if not (isinstance(found, type) and issubclass(found, AbstractSublayer)):
            raise UsageError(
                f"{found!r} is no kind of sublayer",
                hint="a class that is lyapunov.sublayers.AbstractSublayer",
            )
        if found.kind != kind:
            raise UsageError(
                f"{found.__name__} is of kind {found.kind!r}, not {kind!r}",
                hint=f"KINDS[{found.kind!r}] = {found.__name__}",
            )
        self._kinds[kind] = found

    def __delitem__(self, kind: str) -> None:
        del self._kinds[kind]

    def __contains__(self, kind: object) -> bool:
        return kind in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def imported(self) -> list[Any]:
        """List the classes that are here already, those of others among them."""
        return [one for one in self._kinds.values() if not isinstance(one, str)]


KINDS = Kinds(
    mamba1="Mamba1Sizes",
    mamba2="Mamba2Sizes",
    mamba3="Mamba3Sizes",
    gated_delta="GatedDeltaSizes",
    kimi_delta="KimiDeltaSizes",
    attention="AttentionSizes",
    mlp="MlpSizes",
    experts="ExpertsSizes",
    shared="SharedSizes",
    short_conv="ShortConvSizes",
    rg_lru="RGLRUSizes",
    rwkv4="Rwkv4Sizes",
    channel_mix="ChannelMixSizes",
    lightning="LightningSizes",
    norm="NormSizes",
    mlstm="MLSTMSizes",
    selective_scan="SelectiveScanSizes",
    chunk_scan="ChunkScanSizes",
)
"""Every kind that a network may be made of. Each lies in the file of its name."""


def registered(sublayer: Any) -> Any:
    """Give a sublayer back whose kind is registered.

    **Raises:** `UsageError`.
    """
    kind = getattr(sublayer, "kind", type(sublayer).__name__)
    if not isinstance(sublayer, KINDS[kind]):
        raise UsageError(
            f"{type(sublayer).__name__} is not what is registered as {kind!r}",
            hint=f"a {KINDS[kind].__name__}, or register it under a name of its own",
        )
    return sublayer
