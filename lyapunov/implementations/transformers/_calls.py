"""transformers' networks call by call, through their own cache."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..._errors import UsageError
from .._implementation import RefusedError
from .._torch import copied, threads_worth
from ._cache import cache_argument, cache_of
from .ways import Planned


def called(torch, network, plan: list[Planned], seen: dict, cache: Any = None) -> Any:
    """Logits of the audited text.

    **Arguments:**

    - `seen`: what hooks on the network's modules fill in, call by call; left as one
      call over all of the text's tokens leaves it.
    - `cache`: before the first call; None: none.

    **Raises:** `UsageError` for a network whose cache is not known here; `RefusedError`
    where the network itself raises.
    """
    names = inspect.signature(network.forward).parameters
    positioned = "position_ids" in names
    several = len(plan) > 1 or cache is not None
    slot = _slot(network) if several else None
    if several and cache is None and _forget(network):
        cache = _new_cache(network)  # which such a model does not return
    seen.clear()
    kept: dict[Any, list[list[np.ndarray]]] = {}
    logits = []
    for number, call in enumerate(plan):
        given: dict[str, Any] = {"use_cache": several}
        if slot is not None and cache is not None:
            given[slot] = cache
        if positioned and (several or call.mask is not None):
            # said, since some models count from 0 again at every call
            given["position_ids"] = _tensor(torch, network, call.positions)
        if call.mask is not None and (positioned or number == 0):
            # what sees no positions is shown no mask of steps, as by `generate`
            given["attention_mask"] = _tensor(torch, network, call.mask)
        width = network.get_input_embeddings().weight.shape[-1]
        with threads_worth(torch, call.ids.size * width), _refusals():
            result = network(_tensor(torch, network, call.ids), **given)
        cache = (cache_of(result) or cache) if several else None
        if result.logits.shape[:2] != call.ids.shape:
            # RWKV's steps of 5.24 multiply a batch by itself
            raise RefusedError(
                "transformers puts out logits of shape "
                f"{tuple(result.logits.shape[:2])} for tokens {call.ids.shape}"
            )
        logits.append(result.logits[call.rows, call.columns])
        for key, arrays in seen.items():
            for i, array in enumerate(arrays):
                if array.ndim == 2:
                    # some are given the tokens of all texts one after another
                    array = array.reshape(*call.ids.shape, -1)
                parts = kept.setdefault(key, [])
                if i == len(parts):
                    parts.append([])
                if array.shape[:2] != call.ids.shape:
                    # some modules are given all heads of all tokens in one row
                    array = array.reshape(*call.ids.shape, -1)
                parts[i].append(copied(array[call.rows, call.columns]))
        seen.clear()
    for key, found in kept.items():
        seen[key] = [np.concatenate(p, axis=1) if len(p) > 1 else p[0] for p in found]
    return torch.cat(logits, dim=1)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the network raises is its own refusal, and nothing else is."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RefusedError(f"transformers refuses it: {reason}") from error


def compiled_by_torch(torch, network) -> Any:
    """The network as `torch.compile` makes it, by default options.

    **Raises:** `RefusedError` where there is no C++ compiler, which a CPU needs.
    """
    import torch._dynamo
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise RefusedError(
            "torch.compile needs a C++ compiler on a CPU, and finds none "
            f"({' '.join(str(error).split())[:100]})",
            hint="apt install g++, or CXX=PATH",
        ) from error
    # what was compiled before knows nothing of hooks that came later
    torch._dynamo.reset()
    return torch.compile(network)


def of_no_token(torch, network, ids) -> Any:
    """A cache as after no token at all, so that the first token is a step as well.

    One token makes it as the model does; its states are then set to 0 and its keys
    taken out. One without attention raises where transformers asks it how long it is,
    to make a mask that nothing reads; this one says that it is empty.

    **Raises:** `UsageError` for a network whose cache is not known here.
    """
    cache = _new_cache(network)
    ids = _tensor(torch, network, ids[:, :1])
    slot = _slot(network)
    if slot == "state":
        # RWKV's is a list, which a call makes where there is none
        return None
    if network.config.model_type == "xlstm":
        with _refusals():
            own = network(ids, use_cache=True)[slot]
        own.reset()
        return own
    with _refusals():
        network(ids, **{slot: cache, "use_cache": True})
    for layer in cache.layers:
        for states in ("conv_states", "recurrent_states"):
            for state in getattr(layer, states, {}).values():
                if state is not None:
                    state.zero_()
        for name in ("keys", "values"):
            array = getattr(layer, name, None)
            if array is not None:
                setattr(layer, name, array[..., :0, :])
        if getattr(layer, "cumulative_length", 0):
            layer.cumulative_length = 0  # a window counts all tokens that it saw
    for state in getattr(cache, "linear_cache", ()):
        if len(state):
            state.zero_()
    _forget(network)
    return cache


def _new_cache(network) -> Any:
    from transformers import DynamicCache
    from transformers.cache_utils import CacheLayerMixin

    module = sys.modules[type(network).__module__]
    for kind in vars(module).values():
        # MiniMax takes no other cache than its own
        own = getattr(kind, "__module__", "") == module.__name__
        if own and isinstance(kind, type) and issubclass(kind, DynamicCache):
            return kind()
    cache: Any = DynamicCache(config=network.config)
    if not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        cache.get_seq_length = lambda layer_idx=0: 0
        cache.get_mask_sizes = lambda query_length, layer_idx=0: (query_length, 0)
    return cache


def _forget(network) -> bool:
    """Whether states lie in the network's modules (RecurrentGemma's do, and stay there
    from one text to the next); they are as after no token then."""
    found = [m for m in network.modules() if hasattr(m, "conv1d_state")]
    for module in found:
        module.conv1d_state = None
    return bool(found)


def _slot(network) -> str:
    slot = cache_argument(network)
    if slot is None:
        raise UsageError(
            f"{type(network).__name__} takes no cache that is known here",
            hint="--mode prefill, or --measure emulated",
        )
    return slot


def _tensor(torch, network, array) -> Any:
    return torch.tensor(np.ascontiguousarray(array), device=network.device)
