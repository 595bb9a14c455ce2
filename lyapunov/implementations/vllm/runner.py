"""A network on vLLM's own operators, recorded.

Sequences are packed one behind another and cut into calls as vLLM's scheduler does:
prefill from a cache at any token, a rest of one token as a step. Around the operators
stands a torch network of ours (`_layers`): vLLM's models need its whole engine.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._errors import UsageError
from ...formats import FP32, state_format_named
from ...formats._precision import Precision
from ...models import Model
from .. import Execution
from .._implementation import RefusedError
from .._launch import Launch
from .._segment import Segment
from .._torch import copied, exact_sums, import_torch, torch_dtype
from .._trace import IN_FRONT, HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import SCHEDULED, Variant
from . import _operators
from ._batch import Planned
from ._delta_network import network_of
from ._flashinfer import FlashInferStep
from ._layers import Layer
from ._network import Network
from ._plain import refuse_launch
from ._schedule import Drafts, Scheduler, Turn, slots_of


Beside = Callable[[Any, dict[str, Any], Turn], dict[str, Any]]
"""What is told beside what a layer stored: from the layer, that, and the pass."""


class Vllm:
    """Run plain networks of Mamba-1, Mamba-2 or a delta rule with vLLM's operators.

    They need an NVIDIA GPU, or Triton's interpreter (`TRITON_INTERPRET=1`), which runs
    small networks in fp32 and fp16.

    **Arguments:**

    - `execution`: that vLLM promises: whose `precision` says the dtype of the weights,
      and whose sites those of the cached state and of the convolution's window.
    - `launch`: how the server was started.
    - `seed`: of what is drawn, for a state that is rounded stochastically.

    **Raises:** `UsageError` for a start that is not followed here.
    """

    ways = (
        *("whole", "steps", "chunks", "drafts", "batched", "packed", "initial_state"),
        *SCHEDULED,
    )
    """Kinds of `Variant` that there are."""
    stack = "vLLM"

    def __init__(
        self,
        execution: Execution,
        launch: Launch = Launch(),  # noqa: B008
        seed: int = 0,
    ):
        self._refuse_launch(launch)
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
        if variant.kind not in self.ways:
            raise UsageError(
                f"{self.stack} runs no text as {variant}",
                hint=f"one of {', '.join(self.ways)}",
            )
        tokens = np.asarray(tokens)
        kind = model.config.sublayers[0].kind
        operators = self._backed(kind)
        network = self._network(model, operators)
        own = self.execution.of(kind)
        segments = segments or (
            Segment(0, tokens.shape[1], self.execution, _cache_format(own)),
        )
        torch = import_torch()
        normed: Any = None
        before: Any = None
        last: Any = None
        scheduler = self._scheduler(model, variant)
        for found in self._found(network, scheduler, tokens, variant, segments):
            if not isinstance(found, dict):
                normed = found
                continue
            layer = model.sublayers[found.pop("layer")]
            stored = {name: copied(tensor) for name, tensor in found.items()}
            observed = {IN_FRONT: stored.pop(IN_FRONT)} if IN_FRONT in stored else {}
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
                observed,
            )
            before, last = stored["residual"], stored["out"]

        def logits(start, stop):
            with torch.no_grad():
                return jnp.asarray(copied(normed @ network.head[start:stop].T))

        yield HeadRecord(jnp.asarray(before), jnp.asarray(last), logits)

    def _refuse_launch(self, launch: Launch) -> None:
        """**Raises:** `UsageError` for a start that is not followed here."""
        refuse_launch(launch)

    def _put_together(
        self, model: Model, dtype: Any, operators: _operators.Operators
    ) -> Network:
        """The network.

        **Raises:** `UsageError` for one that is put together otherwise.
        """
        return network_of(model, dtype, operators, self._launch)

    def _found(
        self,
        network: Network,
        scheduler: Scheduler,
        tokens: np.ndarray,
        variant: Variant,
        segments: Sequence[Segment],
    ) -> Iterator[Any]:
        """Run tokens in a way and its segments: a dict a layer, then what the head
        reads."""
        turns = list(scheduler.turns(tokens, variant, segments))
        given = network, turns, segments, self._launch, self._beside
        yield from recorded(import_torch(), *given)

    def _beside(
        self, layer: Layer, found: dict[str, Any], turn: Turn
    ) -> dict[str, Any]:
        """What is told beside what a layer stored: nothing of vLLM's."""
        del layer, found, turn
        return {}

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

    def _scheduler(self, model: Model, variant: Variant) -> Scheduler:
        """Who plans the forward passes.

        **Raises:** `RefusedError` for blocks under a ring.
        """
        sizes: Any = model.config.sublayers[0]
        if variant.cached and self._launch.ring is not None:
            raise RefusedError(
                "blocks of states that are stored once a ring is full are not copied "
                "here",
                hint="leave out --use-replayssm",
            )
        # Mamba-2 alone keeps a state within a prefill (`get_kv_cache_spec`)
        keeps = sizes.d_conv - 1 if sizes.kind == "mamba2" else None
        drafts = self._drafts(variant, sizes.kind)
        return Scheduler(model.config.padded_vocab_size, drafts, keeps)

    def _drafts(self, variant: Variant, kind: str) -> Drafts:
        """The windows of steps.

        **Raises:** `RefusedError` for another step than Triton's, and for a Mamba-1,
        whose mixer in vLLM reads no accepted tokens.
        """
        if variant.kind == "drafts":
            if kind == "mamba1":
                raise RefusedError(
                    "vLLM steps through a Mamba-1 token by token, without drafts",
                    hint="steps",
                )
            if self._launch.ring is not None or self._launch.flashinfer:
                raise RefusedError(
                    "drafts are run with Triton's plain step alone",
                    hint="leave out --use-replayssm and --mamba-backend",
                )
            return Drafts(variant.numbers[0], variant.kept)
        own = 1 + self._launch.drafts
        return Drafts(own, own)

    def _network(self, model: Model, operators: _operators.Operators) -> Network:
        """The network on the device, made for the first text."""
        if self._made is None or self._made[0] is not model:
            torch = import_torch()
            precision = self.execution.precision
            said = Precision.named(precision)
            if said.cast or said.autocast:
                raise UsageError(
                    f"{self.stack} does not run in {precision}",
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
                made = self._put_together(model, dtype, operators)
            self._made = model, made
        return self._made[1]


def _cache_format(own: Execution) -> Any:
    """Of the state that a call leaves, and in which it stores those between chunks."""
    if own.mode == "decode":
        return state_format_named(own.state_precision)
    return own.sites.get("chunk_cached", FP32)


def recorded(
    torch: Any,
    network: Network,
    turns: Sequence[Turn],
    segments: Sequence[Segment],
    launch: Launch,
    beside: Beside | None = None,
) -> Iterator[Any]:
    """A dict a layer, (rows, tokens, width) by site, then what the head reads.

    **Arguments:**

    - `beside`: what else is told of the only pass, from its layer, what that stored of
      all texts, and the pass.
    """
    if len(turns) == 1:
        yield from _run(torch, network, turns, segments, launch, beside)
        return
    kept: list[list[dict[str, Any]]] = [[] for _ in network.layers]
    normed = []
    for found in _run(torch, network, turns, segments, launch):
        if isinstance(found, dict):
            kept[found.pop("layer")].append(found)
        else:
            normed.append(found)
    for i, parts in enumerate(kept):
        # what only some calls store is no tensor of the whole text, nor is one that is
        # as wide as a chunk of each call
        common = set.intersection(*map(set, parts)) - {"inverse"}
        names = [name for name in parts[0] if name in common]
        joined = {
            name: torch.cat([one.pop(name) for one in parts], 1) for name in names
        }
        yield joined | {"layer": i}
    yield torch.cat(normed, dim=1)


def _run(
    torch: Any,
    network: Network,
    turns: Sequence[Turn],
    segments: Sequence[Segment],
    launch: Launch,
    beside: Beside | None = None,
) -> Iterator[Any]:
    """Forward pass after forward pass, on caches of their own."""
    width = max(len(p.ids) if p.steps else 1 for turn in turns for p in turn.parts)
    caches = network.caches(
        slots_of(turns),
        window_dtype(torch, segments[0].execution.of(network.kind)),
        _state_dtype(torch, segments),
        launch.ring,
        width,
    )
    planned = Planned(network.embedding.device)
    for turn in turns:
        if turn.copies:
            network.copy(turn.copies, caches)
        ids = np.concatenate([part.ids for part in turn.parts]).astype(np.int64)
        ids = torch.as_tensor(ids, device=network.embedding.device)
        ends = accumulate(len(part.ids) for part in turn.parts)
        places = [
            slice(end - len(part.ids), end - len(part.ids) + part.seen)
            for part, end in zip(turn.parts, ends, strict=True)
            if part.seen
        ]
        plans = planned.plans(turn)
        with torch.no_grad():
            for i, found in enumerate(network.run(ids, plans, caches)):
                if not places:
                    continue
                if isinstance(found, dict):
                    seen = {name: _rows(torch, t, places) for name, t in found.items()}
                    more = beside(network.layers[i], found, turn) if beside else {}
                    yield seen | more | {"layer": i}
                else:
                    yield _rows(torch, found, places)


def _rows(torch: Any, tensor: Any, places: Sequence[slice]) -> Any:
    """Those of the recorded sequences, (rows, tokens, width)."""
    if len(places) == 1:
        # long decodes are made of small launches, and need no copy
        return tensor[places[0]][None]
    return torch.stack([tensor[place] for place in places])


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
