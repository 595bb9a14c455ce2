"""What fla's kernels of a chunk store for one another, copied where it calls them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from ..._errors import UsageError
from ...formats import TF32_OPERAND
from .._execution import Execution
from ..transformers.network_runner import Calls


class Chunk(NamedTuple):
    """The function that turns the keys of a text into the u and w of its chunks."""

    module: str
    """That calls it, by a global name."""
    function: str
    results: tuple[str | None, ...]
    """The sites of what it gives; None: of none."""
    given: Mapping[str, str]
    """The sites of what it is given, by the names of its arguments."""
    of_pairs: frozenset[str] = frozenset()
    """Sites whose memory is written for a token and those before it alone."""


# As fla-core 0.6.0 calls them, with every argument by name.
CHUNKS = {
    "gated_delta": Chunk(
        "fla.ops.gated_delta_rule.chunk", "chunk_gated_delta_rule_fwd_intra",
        ("w", "u", "inverse"), {"k": "k_unit"},
    ),
    "kimi_delta": Chunk(
        "fla.ops.kda.chunk_fwd", "chunk_kda_fwd_intra",
        ("w", "u", None, "k_decayed", "QK_decayed", "inverse"),
        {"q": "q_unit", "k": "k_unit"}, of_pairs=frozenset({"QK_decayed"}),
    ),
}  # fmt: skip


@contextmanager
def watched_chunks(execution: Execution, calls: Calls) -> Iterator[None]:
    """Copy what chunks store, for as long as the block runs.

    A tensor of fp32 that products read as TF32 is left out: what they read is not what
    was stored.

    **Arguments:**

    - `calls`: is filled in, by kind and site.

    **Raises:** `UsageError` where fla has no such function.
    """
    with ExitStack() as stack:
        for kind, own in execution.kinds.items():
            if not own.form.chunked or kind not in CHUNKS:
                continue
            one = CHUNKS[kind]
            holder: Any = import_module(one.module)
            original = getattr(holder, one.function, None)
            if original is None:
                raise UsageError(
                    f"fla has no {one.module}.{one.function}, which makes u and w",
                    hint="pip install fla-core==0.6.0",
                )
            kept = {site for site, fmt in own.sites.items() if fmt != TF32_OPERAND}
            copying = partial(_copying, original, one, kind, kept, calls)
            setattr(holder, one.function, copying)
            stack.callback(setattr, holder, one.function, original)
        yield


def _copying(
    original: Callable, chunk: Chunk, kind: str, kept: set[str], calls: Calls,
    *given, **named,
):  # fmt: skip
    results = original(*given, **named)
    shown = {site: named[name] for name, site in chunk.given.items()}
    shown |= dict(zip(chunk.results, results, strict=True))
    for site in kept & set(shown):
        own = site in chunk.of_pairs
        copy = _written(shown[site]) if own else shown[site].clone()
        calls.setdefault((kind, site), []).append(copy)
    return results


def _written(pairs: Any) -> Any:
    """Weights of tokens and of those before them in their chunk, (batch, tokens, heads,
    chunk): the memory of all others was never written, and nothing reads it."""
    import torch

    tokens, chunk = pairs.shape[1], pairs.shape[-1]
    place = torch.arange(chunk, device=pairs.device)
    token = torch.arange(tokens, device=pairs.device)[:, None, None] % chunk
    return pairs.masked_fill(place > token, 0.0)
