"""transformers' networks token by token, from a cache that holds nothing yet."""

import inspect
from typing import Any

import numpy as np

from ..._errors import UsageError
from ._cache import cache_argument


def stepped(torch, network, ids, calls: dict) -> Any:
    """Logits of a sequence, one token a call.

    **Arguments:**

    - `calls`: what hooks on the network's modules fill in, call by call; rearranged so
      that each entry is a whole sequence, as one call over all tokens leaves it.

    **Raises:** `UsageError` for a network whose cache is not known here.
    """
    names = inspect.signature(network.forward).parameters
    slot = cache_argument(network)
    if slot is None:
        raise UsageError(
            f"{type(network).__name__} takes no cache that is known here",
            hint="--mode prefill, or --measure emulated",
        )
    cache = _of_no_token(torch, network, ids, slot)
    calls.clear()
    logits = []
    for t in range(ids.shape[1]):
        given = {slot: cache, "use_cache": True}
        if "position_ids" in names:
            # said, since some models count from 0 again at every call
            given["position_ids"] = torch.full_like(ids[:, :1], t)
        logits.append(network(ids[:, t : t + 1], **given).logits)
    for key, found in calls.items():
        each = len(found) // ids.shape[1]
        calls[key] = [np.concatenate(found[i::each], axis=1) for i in range(each)]
    return torch.cat(logits, dim=1)


def _of_no_token(torch, network, ids, slot: str) -> Any:
    """A cache as after no token at all, so that the first token is a step as well.

    One token makes it as the model does; its states are then set to 0 and its keys
    taken out.
    """
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=network.config)
    network(ids[:, :1], **{slot: cache, "use_cache": True})
    for layer in cache.layers:
        for states in ("conv_states", "recurrent_states"):
            for state in getattr(layer, states, {}).values():
                if state is not None:
                    state.zero_()
        for name in ("keys", "values"):
            array = getattr(layer, name, None)
            if array is not None:
                setattr(layer, name, array[..., :0, :])
    return cache
