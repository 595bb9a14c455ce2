"""Watch one request of a live vLLM engine (0.33.0; model runner V1, one GPU, eager).

Tokens of a batch are packed, decoding requests first. Each mixer's metadata say which
blocks of its cache belong to which request: `state_indices_tensor_d` (a block for each
token of a draft's window) and `state_indices_tensor_p`. With drafts a call goes on from
block `num_accepted_tokens - 1` of its row, and its window from that row of the kept
inputs; without, from the first (`mamba_mixer2.py`, `mamba_ssm.py`, `causal_conv1d.py`
in `model_executor/layers/mamba`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from .._errors import UsageError
from ._hooks import LOGITS_ALONE, AbstractHook, Mixer, Rows, Slots, found_mixers
from ._recorder import Recorder


KINDS = {"MambaMixer": "mamba1", "MambaMixer2": "mamba2"}
SWITCHES = {"residual_in_fp32": False}
"""vLLM keeps the stream in the activations' format, whatever the checkpoint says."""


class VllmHook(AbstractHook):
    """Watch a request; `vllm_hook` makes it."""

    def __init__(
        self,
        model: Any,
        mixers: list[Mixer],
        recorder: Recorder,
        request: str | None,
        names: Callable[[], list[str]] | None,
        context: Callable[[], Any],
    ):
        super().__init__(model, mixers, recorder)
        self._request, self._names, self._context = request, names, context

    def _metadata(self, one: Mixer) -> Any:
        """A mixer's, of the present call; None while the engine measures its memory."""
        found = self._context().attn_metadata
        if not isinstance(found, Mapping):
            return None
        return found.get(one.mixer.prefix)

    def _find(self, named: Mapping[str, Any]) -> Rows | None:
        del named
        metadata = self._metadata(self._mixers[0])
        if metadata is None:
            return None
        index = self._index(metadata.num_decodes + metadata.num_prefills)
        if index is None:
            return None
        if index < metadata.num_decodes:
            starts = metadata.query_start_loc_d
            bounds = (index, index + 1)
            if starts is not None:
                bounds = int(starts[index]), int(starts[index + 1])
            return Rows(*bounds, True, False, index)
        own = index - metadata.num_decodes
        starts = metadata.query_start_loc_p
        first, stop = (
            metadata.num_decode_tokens + int(starts[i]) for i in (own, own + 1)
        )
        empty = not bool(metadata.has_initial_states_p[own])
        return Rows(first, stop, False, empty, index)

    def _index(self, sequences: int) -> int | None:
        names = None if self._names is None else self._names()[:sequences]
        if names is not None and self._request is not None:
            own = [i for i, name in enumerate(names) if _is(name, self._request)]
            return own[0] if own else None
        if sequences != 1:
            raise UsageError(
                f"the batch has {sequences} requests, and the hook was not told which "
                "one to watch",
                hint="vllm_hook(worker, request='0', ...), given the worker: "
                "llm.collective_rpc(lambda worker: ...)",
            )
        return 0

    def _slots(self, one: Mixer, rows: Rows, given: Mapping[str, Any]) -> Slots:
        del given
        metadata = self._metadata(one)
        table = _table(metadata)
        own = table[rows.index]
        took, accepted = own[0], metadata.num_accepted_tokens
        offset = 0
        if rows.step and accepted is not None:
            offset = max(int(accepted[rows.index]) - 1, 0)
            took = own[offset]
        left = tuple((block, i) for i, block in enumerate(own))
        size = rows.stop - rows.first
        left = left[:size] if rows.step and accepted is not None else left[:1]
        others = [set(row) - {0} for i, row in enumerate(table) if i != rows.index]
        sharing = sum(bool(other & set(own)) for other in others)
        apart = frozenset(block for other in others for block in other)
        return Slots((took, offset), own[0], left, apart, sharing)

    def _blocks(self) -> frozenset[int]:
        metadata = self._metadata(self._mixers[0])
        return frozenset(b for row in _table(metadata) for b in row if b)

    def _cache(self, one: Mixer, given: Mapping[str, Any]) -> tuple[Any, Any]:
        del given
        windows, states = one.mixer.kv_cache
        channels = one.mixer.conv1d.weight.shape[0]
        if windows.shape[-1] != channels:  # VLLM_SSM_CONV_STATE_LAYOUT=DS
            windows = windows.transpose(-1, -2)
        return windows, states

    def _watch(self, one: Mixer) -> None:
        self._norm(one)
        self._projection(one, "in_proj", "xz", given=False)
        self._projection(one, "out_proj", "gated", given=True)
        if one.kind == "mamba2":
            self._projection(one, "norm", "scan_output", given=True)

        def before(module, args):
            self._taken(one, {})

        def after(module, args, named, output):
            if self._rows is None:
                return
            self._left(one, {})
            if output is None:  # Mamba-1 writes into what it is given
                output = named["output"] if "output" in named else args[1]
            self.recorder.rows(one.layer, "output", self._own(output))

        self._keep(one.mixer.register_forward_pre_hook(before))
        self._keep(one.mixer.register_forward_hook(after, with_kwargs=True))


def vllm_hook(
    worker: Any,
    *,
    implementation: str,
    precision: str,
    request: str | None = None,
    state_precision: str | None = None,
    window_precision: str | None = None,
    sublayers: Mapping[str, int] | None = None,
    context: Callable[[], Any] | None = None,
) -> VllmHook:
    """Make a hook for one request of a vLLM engine, to be used in its worker.

    **Arguments:**

    - `worker`: what `LLM.collective_rpc` gives to a function, or the module that
      `LLM.apply_model` gives; of a module alone one request at a time is watched.
    - `implementation`, `precision`: whose flow it is held to, and the activations'
      format.
    - `request`: its id; None: there is one alone.
    - `state_precision`: None is the format of the cache that the engine made.
    - `window_precision`: where `--mamba-cache-dtype` says another than activations'.
    - `sublayers`: module name -> number, where blocks have more than a mixer.
    - `context`: gives vLLM's forward context; None is vLLM's own.

    **Raises:** `UsageError` where hooks would not fire, or see a part alone: compiled
    models, CUDA graphs, several GPUs, the second model runner.
    """
    runner = getattr(worker, "model_runner", None)
    config = getattr(worker, "vllm_config", None)
    if config is not None:
        _refuse(config)
    model = worker if runner is None else runner.get_model()
    mixers = found_mixers(model, KINDS, sublayers)
    if any(len(one.mixer.kv_cache) > 2 for one in mixers):
        raise UsageError(
            "the server keeps tokens in rings (--use-replayssm), so that a block is "
            "not the state behind the last token",
            hint=f"leave --use-replayssm out; {LOGITS_ALONE}",
        )
    if state_precision is None:
        state_precision = _format(mixers[0].mixer.kv_cache[1])
    names = None
    if runner is not None:
        if not hasattr(runner, "input_batch"):
            raise UsageError(
                "the engine's model runner has no input_batch, which tells requests "
                "apart",
                hint="model runner V1: VLLM_USE_V2_MODEL_RUNNER=0",
            )
        names = lambda: list(runner.input_batch.req_ids)
    recorder = Recorder(
        implementation=implementation,
        precision=precision,
        state_precision=state_precision,
        window_precision=window_precision,
        switches=SWITCHES,
    )
    found = context or _forward_context
    return VllmHook(model, mixers, recorder, request, names, found)


def _forward_context() -> Any:
    from vllm.forward_context import get_forward_context

    return get_forward_context()


def _refuse(config: Any) -> None:
    if not config.model_config.enforce_eager:
        raise UsageError(
            "the engine compiles the model or replays CUDA graphs, where no hook fires",
            hint=f"LLM(..., enforce_eager=True), --enforce-eager; {LOGITS_ALONE}",
        )
    ranks = config.parallel_config.tensor_parallel_size
    stages = config.parallel_config.pipeline_parallel_size
    if ranks != 1 or stages != 1:
        raise UsageError(
            f"the engine has {ranks} by {stages} ranks, each of which sees a part",
            hint=f"--tensor-parallel-size 1; {LOGITS_ALONE}",
        )


def _format(tensor: Any) -> str:
    """The name of a tensor's format.

    **Raises:** `UsageError` for one that no cache of states is audited in.
    """
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in names or not tensor.numel():
        what = f"in {kind}" if tensor.numel() else "not made yet"
        raise UsageError(
            f"the cache of states is {what}",
            hint="put the hook on once the engine is up, and say state_precision",
        )
    return names[kind]


def _table(metadata: Any) -> list[list[int]]:
    """Each request's blocks in a call, decoding ones first; block 0 is nobody's."""
    if metadata is None:
        return []
    decodes, prefills = metadata.num_decodes, metadata.num_prefills
    found: list[list[int]] = []
    if decodes:
        rows = metadata.state_indices_tensor_d.tolist()[:decodes]
        found += [_listed(row) for row in rows]
    if prefills:
        rows = metadata.state_indices_tensor_p.tolist()[:prefills]
        found += [_listed(row) for row in rows]
    return found


def _listed(row: Any) -> list[int]:
    return list(row) if isinstance(row, list) else [row]


def _is(name: str, request: str) -> bool:
    # the engine puts random letters behind an id
    return name == request or name.startswith(f"{request}-")
