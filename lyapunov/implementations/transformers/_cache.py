"""What transformers calls a network's cache, which differs by version and family."""

import inspect
from typing import Any


# transformers 5.24 calls it `cache` in ever more families and warns of the older names
_NAMES = ("cache", "past_key_values", "cache_params", "state")


def cache_argument(module: Any) -> str | None:
    """The argument of a module's call that takes the cache, None if there is none."""
    names = inspect.signature(module.forward).parameters
    return next((name for name in _NAMES if name in names), None)


def cache_of(result: Any) -> Any:
    """The cache that a call returned, None if it returned none.

    `result`: an output of transformers, a mapping of what is there.
    """
    return next((result[name] for name in _NAMES if name in result), None)
