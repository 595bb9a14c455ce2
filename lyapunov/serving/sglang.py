"""Watch one request of a live SGLang server (0.5.23; Mamba-2, one GPU, eager).

A `ForwardBatch` names its requests (`rids`) and how many tokens each of them extends
by; requests that are prefilled come first, those that decode behind them. SGLang calls
a mixer's `forward` and not the module, so that it is wrapped here; cache and metadata
are what it is given (`layers/attention/mamba/mamba.py` and
`hybrid_linear_attn_backend.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from .._errors import UsageError
from ._hooks import LOGITS_ALONE, AbstractHook, Mixer, Rows, Slots, found_mixers
from ._recorder import Recorder


KINDS = {"MambaMixer2": "mamba2"}
SWITCHES = {"residual_in_fp32": False}
"""The stream has the activations' format, whatever the checkpoint says."""


class SglangHook(AbstractHook):
    """Watch a request; `sglang_hook` makes it."""

    def __init__(
        self, model: Any, mixers: list[Mixer], recorder: Recorder, request: str | None
    ):
        super().__init__(model, mixers, recorder)
        self._request = request

    def _find(self, named: Mapping[str, Any]) -> Rows | None:
        batch = named["forward_batch"]
        names = list(batch.rids or [None] * int(batch.batch_size))
        if self._request is None and len(names) != 1:
            raise UsageError(
                f"the batch has {len(names)} requests, and the hook was not told which "
                "one to watch",
                hint="sglang_hook(model, request=the rid that it was sent with, ...)",
            )
        if self._request is not None and self._request not in names:
            return None
        index = 0 if self._request is None else names.index(self._request)
        mode = batch.forward_mode
        if mode.is_target_verify():
            raise UsageError(
                "draft windows of SGLang are not watched: their states are in buffers "
                "of their own",
                hint=f"without --speculative-algorithm; {LOGITS_ALONE}",
            )
        if mode.is_decode():
            return Rows(index, index + 1, True, False, index)
        sizes = list(batch.extend_seq_lens_cpu)
        before = list(batch.extend_prefix_lens_cpu)
        if index >= len(sizes):  # decodes beside prefills
            first = sum(sizes) + index - len(sizes)
            return Rows(first, first + 1, True, False, index)
        first = sum(sizes[:index])
        return Rows(first, first + sizes[index], False, before[index] == 0, index)

    def _slots(self, one: Mixer, rows: Rows, given: Mapping[str, Any]) -> Slots:
        del one
        blocks = [int(block) for block in given["metadata"].mamba_cache_indices]
        block, *_ = own = blocks[rows.index : rows.index + 1]
        others = [b for i, b in enumerate(blocks) if i != rows.index and b >= 0]
        sharing = sum(other in own for other in others)
        place = block, 0
        return Slots(place, block, (place,), frozenset(others), sharing)

    def _cache(self, one: Mixer, given: Mapping[str, Any]) -> tuple[Any, Any]:
        cache = given["layer_cache"]
        windows = cache.conv[0]
        if windows.shape[-1] != one.mixer.conv1d.weight.shape[0]:
            windows = windows.transpose(-1, -2)
        return windows, cache.temporal

    def _watch(self, one: Mixer) -> None:
        self._norm(one)
        self._projection(one, "in_proj", "xz", given=False)
        self._projection(one, "out_proj", "gated", given=True)
        self._projection(one, "norm", "scan_output", given=True)

        def around(original: Callable, *args: Any, **named: Any) -> Any:
            self._taken(one, named)
            results = original(*args, **named)
            if self._rows is not None:
                self._left(one, named)
                self.recorder.rows(one.layer, "output", self._own(results[0]))
            return results

        self._wrap(one.mixer, "forward", around)


def sglang_hook(
    model: Any,
    *,
    implementation: str,
    precision: str,
    state_precision: str,
    request: str | None = None,
    window_precision: str | None = None,
    through_int8: bool = False,
    sublayers: Mapping[str, int] | None = None,
) -> SglangHook:
    """Make a hook for one request of a SGLang server, to be used where its model is.

    **Arguments:**

    - `model`: the network's module.
    - `implementation`, `precision`, `state_precision`: whose flow it is held to, in
      which formats; SGLang keeps states in fp32 unless it is told otherwise.
    - `request`: its `rid`; None: there is one alone.
    - `window_precision`: of the convolution's window, which SGLang keeps in bf16
      whatever the activations' format is.
    - `through_int8`: whether the server runs with `--enable-int8-mamba-checkpoint`.
    - `sublayers`: module name -> number, where blocks have more than a mixer.

    **Raises:** `UsageError` for a network without Mamba-2 mixers.
    """
    recorder = Recorder(
        implementation=implementation,
        precision=precision,
        state_precision=state_precision,
        window_precision=window_precision,
        through_int8=through_int8,
        switches=SWITCHES,
    )
    mixers = found_mixers(model, KINDS, sublayers)
    return SglangHook(model, mixers, recorder, request)


def forward_hook(settings: Mapping[str, Any]) -> Callable:
    """Make what SGLang's own `--forward-hooks` put on a model, in a server's process.

    The first call of the model puts the hook on, such as the server's warm-up; the dump
    is written once so many tokens of the request were seen.

    **Arguments:**

    - `settings`: those of `sglang_hook`, and besides `path`, of the dump, and `tokens`,
      how many to wait for.

    **Raises:** `UsageError` where one of the two is not there.
    """
    settings = dict(settings)
    lost = [name for name in ("path", "tokens") if name not in settings]
    if lost:
        raise UsageError(
            f"the hook was not told {' and '.join(lost)}",
            hint='"config": {"path": "run.npz", "tokens": 64, "request": ...}',
        )
    path, tokens = settings.pop("path"), int(settings.pop("tokens"))
    on: list[SglangHook] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        del args, output
        if not on:
            on.append(sglang_hook(module, **settings).on())
            return
        calls = on[0].recorder.calls
        if calls and calls[-1].stop >= tokens and on[0].watching:
            on[0].off()
            on[0].write(path)

    return hook
