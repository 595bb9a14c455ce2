"""What an adapter reaches of its base, and names in its settings that reach nothing."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..checkpoints._adapter import AdaptedLayout, Adapter, adapted_module
from ..results._check import AdapterCoverage


# A tied head is no tensor of its own, and a module that an adapter may name.
_HEADS = ("lm_head", "embed_out")


def adapter_coverage(merged: AdaptedLayout, adapter: Adapter) -> AdapterCoverage:
    """Hold what an adapter's settings name to what it changes.

    **Arguments:**

    - `merged`: the base with the adapter. Its low-rank factors are read.
    """
    moving = {name for name, one in merged.updates.items() if not one.is_zero()}
    touched = [
        any(name in moving for part in parts.values() for name in part.names)
        for parts in merged.parts
    ]
    recurrent = [one.recurrent for one in merged.config.sublayers]
    named = list(_named(adapter.settings))
    of_base = {*_HEADS, *_paths(merged.checkpoint.names())}
    of_adapter = set(_paths(f"{adapted_module(n)}." for n in adapter.tensors))
    absent = [name for name in named if not _matches(name, of_base)]
    return AdapterCoverage(
        recurrent_touched=sum(a and b for a, b in zip(touched, recurrent, strict=True)),
        recurrent_total=sum(recurrent),
        sublayers_touched=sum(touched),
        sublayers_total=len(touched),
        updates=len(merged.updates),
        zero_updates=len(merged.updates) - len(moving),
        names_absent=absent,
        names_without_weights=[
            name
            for name in named
            if name not in absent and not _matches(name, of_adapter)
        ],
        layers_chosen=adapter.settings.get("layers_to_transform") is not None,
    )


def _named(settings: dict[str, Any]) -> Iterator[str]:
    """Modules by name; a single text is an expression, which names none."""
    seen = set()
    for key in ("target_modules", "modules_to_save"):
        found = settings.get(key)
        for name in found if isinstance(found, list) else ():
            if isinstance(name, str) and name not in seen:
                seen.add(name)
                yield name


def _paths(stored: Iterable[str]) -> Iterator[str]:
    """The modules that stored names lie in: `a`, `a.b` of `a.b.weight`."""
    for name in stored:
        parts = name.split(".")
        for end in range(1, len(parts)):
            yield ".".join(parts[:end])


def _matches(name: str, modules: set[str]) -> bool:
    """Whether PEFT takes a module of that name, or one whose path ends in it."""
    ends = f".{name}"
    # mamba_ssm and transformers call one module by two names
    other = {"embedding": "embeddings", "embeddings": "embedding"}.get(name, name)
    return any(
        module in (name, other) or module.endswith((ends, f".{other}"))
        for module in modules
    )
