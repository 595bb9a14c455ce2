"""A network on a server's operators in Triton's interpreter, in a process of its own.

`python -m tests.runners.vllm_runs FOLDER OUT RUN...` writes logits and stored tensors
of runs, by `Run.name`, of the tokens in FOLDER/tokens.npy to OUT; what a run is refused
with goes there as text. It needs Triton, and
the server's files.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np


LOST = {
    "gated_delta": "an initial state of a delta rule is lost",
    "kimi_delta": "an initial state of Kimi's is lost",
}
"""Faults of `analysis.vllm_kernels`, by kind."""


class Run(NamedTuple):
    """One run of a text."""

    precision: str
    state: str
    way: str
    flags: str = ""
    """How the server is started, a word."""
    lost: bool = False
    """Whether what a cache holds is dropped in front of every prefill."""
    stack: str = "vllm"
    """Whose operators run it."""

    @property
    def name(self) -> str:
        return "/".join(map(str, self))


@contextmanager
def products_by_rows() -> Iterator[None]:
    """Have torch multiply each row of tokens alone: how its sums are made then does not
    depend on how many there are, and what still differs is of the operators."""
    import torch

    whole = torch.nn.functional.linear

    def each(rows: Any, *given: Any) -> Any:
        return torch.cat([whole(row[None], *given) for row in rows])

    with mock.patch.object(torch.nn.functional, "linear", each):
        yield


def run(model: Any, tokens: np.ndarray, one: Run) -> dict[str, Any]:
    """Its arrays, by names that begin with its own."""
    from lyapunov._errors import LyapunovError
    from lyapunov.formats import state_format_named
    from lyapunov.implementations import HeadRecord, Segment, implementation_named
    from lyapunov.implementations._ways import parse_variant

    package = importlib.import_module(f"lyapunov.implementations.{one.stack}")
    way = parse_variant(one.way)
    stack = implementation_named(f"{one.stack} {one.flags}".strip())
    prefill, decode = (
        stack.execution(
            model.config,
            one.precision,
            architecture=model.layout.architecture,
            mode=mode,
            state_precision=one.state,
        )
        for mode in ("prefill", "decode")
    )
    if way.kind == "drafts":
        decode = decode.in_windows(way.kept)
    cache = state_format_named(one.state)
    prefill = prefill.behind(way.in_front(tokens.shape[1]))
    segments = [
        Segment(call.start, call.stop, decode if call.decode else prefill, cache)
        for call in way.calls(
            tokens.shape[1], first_is_step=True, rest_is_step=stack.rest_is_step
        )
    ]
    others: dict[str, Any] = {}
    broken = nullcontext()
    kind = model.config.sublayers[0].kind
    if one.lost and kind in LOST:
        from analysis._vllm_faults import patched

        broken = patched(LOST[kind])
    elif one.lost:
        whole = package.operators().chunk_scan
        others["chunk_scan"] = lambda *given, **named: whole(
            *given, **named | {"initial_states": None}
        )
    seen: dict[str, Any] = {}
    try:
        with package.operators_replaced(**others), broken, products_by_rows():
            for record in stack.runner(prefill).trace(model, tokens, way, segments):
                if isinstance(record, HeadRecord):
                    logits = record.logits(0, model.config.padded_vocab_size)
                    seen[f"{one.name}::logits"] = np.asarray(logits)
                    continue
                for site, array in record.stored.items():
                    seen[f"{one.name}::{record.layer}.{site}"] = np.asarray(array)
    except LyapunovError as error:
        seen[f"{one.name}::refused"] = np.array(f"{error.code}: {error}")
    return seen


def main(folder: str, out: str, *named: str) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov

    model = lyapunov.load(folder)
    tokens = np.load(Path(folder) / "tokens.npy")
    found: dict[str, Any] = {}
    for one in named:
        precision, state, way, flags, lost, stack = one.split("/")
        wanted = Run(precision, state, way, flags, lost == "True", stack)
        found |= run(model, tokens, wanted)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
