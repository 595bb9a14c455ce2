"""A network on vLLM's own operators, recorded.

Sequences are packed one behind another and cut into calls as vLLM's scheduler does:
prefill from a cache at any token, a rest of one token as a step. Around the operators
stands a torch network of ours (`_layers`): vLLM's models need its whole engine.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..._errors import UsageError
from ...formats import FP32, state_format_named
from ...formats._precision import Precision
from ...models import Model
from .. import Execution
from .._company import company, in_company
from .._implementation import RefusedError
from .._launch import Launch
from .._segment import Segment
from .._torch import copied, exact_sums, import_torch, torch_dtype
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from . import _operators
from ._batch import packed_pass
from ._flashinfer import FlashInferStep
from ._network import Network
from ._plain import refuse_launch, refuse_others


class _Drafts(NamedTuple):
    """Steps that are made in one call, and how many of them are kept."""

    tokens: int
    kept: int


class _Planned(NamedTuple):
    """Tokens of one forward pass: those of the recorded sequences from `start`."""

    start: int
    stop: int
    width: int
    """Steps that it makes of each sequence, drafts that are thrown away among them; 0:
    a prefill."""


class Vllm:
    """Run plain Mamba-1 and Mamba-2 networks with vLLM's operators.

    They need an NVIDIA GPU, or Triton's interpreter (`TRITON_INTERPRET=1`), which runs
    small networks in fp32 and fp16.

    **Arguments:**

    - `execution`: that vLLM promises: whose `precision` says the dtype of the weights,
      and whose sites those of the cached state and of the convolution's window.
    - `launch`: how the server was started.
    - `seed`: of what is drawn, for a state that is rounded stochastically.

    **Raises:** `UsageError` for a start that is not followed here.
    """

    def __init__(
        self,
        execution: Execution,
        launch: Launch = Launch(),  # noqa: B008
        seed: int = 0,
    ):
        refuse_launch(launch)
        self.execution = execution
        self._launch = launch
        self._seed = seed
        self._step = FlashInferStep(launch.stochastic) if launch.flashinfer else None
        self._made: tuple[Model, Network] | None = None

    @traced_in_fp64
    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:** as for `Runner.trace`. A batch is packed; records of several
        calls come after the last.

        **Raises:** `RefusedError` for a prefill of Mamba-1 without vLLM's compiled
        part, and for drafts with other steps than Triton's of a Mamba-2; `UsageError`
        for other networks, formats and ways.
        """
        variant = variant or self.execution.variant
        rows = _rows(np.asarray(tokens), variant)
        kind = model.config.sublayers[0].kind
        network = self._network(model, self._backed(kind))
        own = self.execution.of(kind)
        segments = segments or (
            Segment(0, tokens.shape[1], self.execution, _cache_format(own)),
        )
        torch = import_torch()
        normed: Any = None
        before: Any = None
        last: Any = None
        passes = list(_passes(rows, segments, self._drafts(variant, kind)))
        for found in _recorded(torch, network, rows, segments, passes, self._launch):
            if not isinstance(found, dict):
                normed = found
                continue
            layer = model.sublayers[found.pop("layer")]
            stored = {name: copied(tensor) for name, tensor in found.items()}
            if before is None:
                # the first one's stream is the embedding
                before, last = stored["residual"], np.zeros_like(stored["residual"])
            yield SublayerRecord(
                layer.layer,
                layer.kind,
                jnp.asarray(before),
                jnp.asarray(last),
                jnp.asarray(stored["out"]),
                {site: jnp.asarray(array) for site, array in stored.items()},
                {},
            )
            before, last = stored["residual"], stored["out"]

        def logits(start, stop):
            with torch.no_grad():
                return jnp.asarray(copied(normed @ network.head[start:stop].T))

        yield HeadRecord(jnp.asarray(before), jnp.asarray(last), logits)

    def _backed(self, kind: str) -> _operators.Operators:
        """vLLM's, with the step of its backend.

        **Raises:** `UsageError` where FlashInfer's does not run.
        """
        found = _operators.operators()
        if self._step is None:
            return found
        if found.interpreted or kind != "mamba2":
            raise UsageError(
                "FlashInfer's step is one of Mamba-2 on an NVIDIA GPU",
                hint="leave out --mamba-backend flashinfer",
            )
        self._step.seed(self._seed)
        return found._replace(step=self._step)

    def _drafts(self, variant: Variant, kind: str) -> _Drafts | None:
        """The windows of steps; None where each step is a call.

        **Raises:** `RefusedError` for another step than Triton's, and for a Mamba-1,
        whose mixer in vLLM reads no accepted tokens.
        """
        if variant.kind == "drafts":
            if kind != "mamba2":
                raise RefusedError(
                    "vLLM steps through a Mamba-1 token by token, without drafts",
                    hint="steps",
                )
            if self._launch.ring is not None or self._launch.flashinfer:
                raise RefusedError(
                    "drafts are run with Triton's plain step alone",
                    hint="leave out --use-replayssm and --mamba-backend",
                )
            return _Drafts(variant.numbers[0], variant.kept)
        own = 1 + self._launch.drafts
        return _Drafts(own, own) if own > 1 else None

    def _network(self, model: Model, operators: _operators.Operators) -> Network:
        """The network on the device, made for the first text."""
        if self._made is None or self._made[0] is not model:
            refuse_others(model)
            torch = import_torch()
            precision = self.execution.precision
            said = Precision.named(precision)
            if said.cast or said.autocast:
                raise UsageError(
                    f"vLLM does not run in {precision}",
                    hint=f"--precision {said.format}",
                )
            if operators.interpreted and said.format == "bf16":
                raise UsageError(
                    "Triton's interpreter multiplies no bf16 numbers",
                    hint="--precision fp16 or fp32, or a GPU",
                )
            exact_sums(torch)
            dtype = torch_dtype(torch, precision)
            with torch.no_grad():
                made = Network(model, dtype, operators, self._launch.eager)
            self._made = model, made
        return self._made[1]


def _cache_format(own: Execution) -> Any:
    """Of the state that a call leaves, and in which it stores those between chunks."""
    if own.mode == "decode":
        return state_format_named(own.state_precision)
    return own.sites.get("chunk_cached", FP32)


class _Rows(NamedTuple):
    """Sequences of a run, and which of them are recorded."""

    sequences: list[np.ndarray]
    own: slice


def _rows(tokens: np.ndarray, variant: Variant) -> _Rows:
    """The sequences that a way packs.

    **Raises:** `UsageError` for a way that vLLM has not.
    """
    if variant.kind == "batched":
        tokens, own = in_company(tokens, variant.row)
        return _Rows(list(tokens), own)
    if variant.kind == "packed":
        (count,) = variant.numbers
        other = np.resize(company(tokens, 1)[0], count)
        return _Rows([other, tokens[0]], slice(1, 2))
    if variant.kind not in ("whole", "steps", "chunks", "drafts", "initial_state"):
        raise UsageError(
            f"vLLM runs no text as {variant}",
            hint="whole, steps, chunks, drafts, initial_state, batched or packed",
        )
    return _Rows(list(tokens), slice(None))


def _recorded(
    torch: Any,
    network: Network,
    rows: _Rows,
    segments: Sequence[Segment],
    passes: Sequence[_Planned],
    launch: Launch,
) -> Iterator[Any]:
    """A dict a layer, (rows, tokens, width) by site, then what the head reads."""
    if len(passes) == 1:
        yield from _run(torch, network, rows, segments, passes, launch)
        return
    kept: list[list[dict[str, Any]]] = [[] for _ in network.layers]
    normed = []
    for found in _run(torch, network, rows, segments, passes, launch):
        if isinstance(found, dict):
            kept[found.pop("layer")].append(found)
        else:
            normed.append(found)
    for i, parts in enumerate(kept):
        names = list(parts[0])
        joined = {
            name: torch.cat([one.pop(name) for one in parts], 1) for name in names
        }
        yield joined | {"layer": i}
    yield torch.cat(normed, dim=1)


def _passes(
    rows: _Rows, segments: Sequence[Segment], drafts: _Drafts | None
) -> Iterator[_Planned]:
    """The forward passes of the calls, one a token or a window where they are steps.

    **Raises:** `UsageError` where sequences of different lengths would need several.
    """
    lengths = {len(sequence) for sequence in rows.sequences}
    width, kept = drafts or (1, 1)
    for segment in segments:
        if segment.execution.mode != "decode":
            yield _Planned(segment.start, segment.stop, 0)
            continue
        for t in range(segment.start, segment.stop, kept):
            yield _Planned(t, min(t + kept, segment.stop), width)
    if len(lengths) > 1 and (
        len(segments) > 1 or segments[0].execution.mode != "prefill"
    ):
        raise UsageError(
            "texts of different lengths are packed in one prefill alone",
            hint="packed without steps",
        )


def _run(
    torch: Any,
    network: Network,
    rows: _Rows,
    segments: Sequence[Segment],
    passes: Sequence[_Planned],
    launch: Launch,
) -> Iterator[Any]:
    """Forward pass after forward pass, on caches of their own."""
    device = network.embedding.device
    count = len(rows.sequences)
    whole = lambda numbers: torch.tensor(numbers, dtype=torch.int32, device=device)
    width = max(1, *(planned.width for planned in passes))
    # slot 0 is nobody's
    slots = whole(range(1, count * width + 1)).view(count, width)
    first = slots[:, 0].contiguous()
    caches = network.caches(
        count * width + 1,
        window_dtype(torch, segments[0].execution.of(network.kind)),
        _state_dtype(torch, segments),
        launch.ring,
        width,
    )
    turn, accepted = 0, 1
    same = len({len(sequence) for sequence in rows.sequences}) == 1
    for planned in passes:
        kept = planned.stop - planned.start
        own = slice(planned.start, planned.stop) if same else slice(None)
        parts = [sequence[own] for sequence in rows.sequences]
        windows = planned.width > 1
        if windows:
            vocabulary = network.embedding.shape[0]
            parts = [
                _with_wrong(sequence, planned, vocabulary)
                for sequence in rows.sequences
            ]
        lengths = [len(part) for part in parts]
        ids = torch.as_tensor(np.concatenate(parts).astype(np.int64), device=device)
        plan = packed_pass(
            lengths,
            [planned.start] * count,
            planned.width > 0,
            slots if windows else first,
            turn,
            whole([accepted] * count) if windows else None,
        )
        turn = turn + 1 if planned.width else 0
        accepted = kept if windows else 1

        def shown(tensor, lengths=lengths, kept=kept if windows else None):
            if len(lengths) == 1:
                # long decodes are made of small launches, and need no copy
                return tensor[None, :kept]
            return torch.stack(
                [part[:kept] for part in tensor.split(lengths)[rows.own]]
            )

        with torch.no_grad():
            for i, found in enumerate(network.run(ids, plan, caches)):
                if isinstance(found, dict):
                    seen = {name: shown(tensor) for name, tensor in found.items()}
                    yield seen | {"layer": i}
                else:
                    yield shown(found)


def _with_wrong(sequence: Any, planned: _Planned, vocabulary: int) -> Any:
    """A window of a text: tokens that are kept, and others than the text's behind."""
    window = sequence[planned.start : planned.start + planned.width].copy()
    kept = planned.stop - planned.start
    window = np.resize(window, planned.width)
    window[kept:] = (window[kept:] + 1) % vocabulary
    return window


def window_dtype(torch: Any, execution: Execution) -> Any:
    """The torch dtype of the convolution's window: of the site where it is stored."""
    sites = execution.sites
    found = sites.get("conv_input") or sites.get("conv_product") or FP32
    return torch_dtype(torch, found.name)


def _state_dtype(torch: Any, segments: Sequence[Segment]) -> Any:
    """The torch dtype of the cached states.

    **Raises:** `UsageError` for a format that vLLM's caches do not have.
    """
    names = list(dict.fromkeys(segment.cache.name for segment in segments))
    if len(names) > 1:
        raise UsageError(
            f"a cache in {' and '.join(names)} at once is not run",
            hint="one --state-precision for all calls",
        )
    kinds = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp16-stochastic": torch.float16,
        "int16-scaled": torch.int16,
    }
    prefilled = any(segment.execution.mode != "decode" for segment in segments)
    if names[0] not in kinds or (names[0] == "int16-scaled" and prefilled):
        known = [name for name in kinds if "-" not in name]
        raise UsageError(
            f"vLLM keeps states in {', '.join(known)}, not in {names[0]}",
            hint="--measure emulated",
        )
    return kinds[names[0]]
