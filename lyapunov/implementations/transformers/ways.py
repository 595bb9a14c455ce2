"""transformers' own code run in several ways: in calls, padded, in a batch.

The library's classes and cache are used as its users use them: `attention_mask` for
padding, `use_cache` and the cache from one call to the next, no mask for the
steps after a prompt (as `generate` does). Hooks copy what the blocks are given and
store; only the audited text's own tokens are kept, the padding and the other rows of
the batch are not.

Steps go through all layers at each token, so the records of a text come when it is
through: they wait in memory in fp32, which holds every 16-bit number.
"""

from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...models import Model
from .. import Execution
from .._implementation import RefusedError
from .._segment import Segment
from .._torch import copied, watched
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from ._cache import cache_of, given_cache
from .network_runner import TransformersNetwork
from .runner import _build


class TransformersVariants:
    """Run one text with transformers on CPU, in any way that it has.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights.
    - `device`: a torch device.
    """

    def __init__(self, model: Model, execution: Execution, device: str = "cpu"):
        self._torch, self._network = _build(model, execution.precision, device)
        self._device = device
        self.name = f"transformers {version('transformers')}"

    @traced_in_fp64
    def trace(
        self, model: Model, tokens, variant: Variant, segments: tuple[Segment, ...]
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:**

        - `tokens`: (batch, seq); the ways with padding or a batch run the first
          sequence, with the others or shifted copies of it as company.

        **Raises:** `RefusedError` where the library raises.
        """
        del segments
        tokens = np.asarray(tokens)
        try:
            kept, normed = self._run(tokens, variant)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RefusedError(f"{self.name} refuses it: {reason}") from error
        before = None
        for layer, parts in zip(model.sublayers, kept, strict=True):
            seen = {name: np.concatenate(x, axis=1) for name, x in parts.items()}
            parts.clear()
            wide = {name: jnp.asarray(x, jnp.float64) for name, x in seen.items()}
            given, output = wide.pop("input"), wide.pop("mixer")
            residual, hidden = before or (given, jnp.zeros_like(given))
            stored = wide | {"residual": given, "out": output}
            yield SublayerRecord(
                layer.layer, layer.kind, residual, hidden, output, stored, {}
            )
            before = given, output
        assert before is not None
        yield HeadRecord(*before, self._logits(normed))

    def _logits(self, normed):
        def logits(start, stop):
            with self._torch.no_grad():
                rows = self._network.lm_head.weight[start:stop]
                return jnp.asarray(copied(normed @ rows.T))

        return logits

    def _run(self, tokens, variant: Variant):
        """All calls; what every block stored of the text, and what the head reads."""
        blocks = self._network.backbone.layers
        kept: list[dict[str, list[np.ndarray]]] = [{} for _ in blocks]
        normed, cache = [], None
        plan = _plan(tokens, variant)
        with self._torch.no_grad():
            for ids, mask, rows, columns in plan:
                result, seen = self._call(ids, mask, cache, keep=len(plan) > 1)
                cache = cache_of(result)
                for into, one in zip(kept, seen, strict=True):
                    for name, array in one.items():
                        own = array[rows][:, columns].astype(np.float32)
                        into.setdefault(name, []).append(own)
                normed.append(result.last_hidden_state[rows][:, columns])
            whole = self._torch.cat(normed, dim=1)
        return kept, whole.to(self._network.lm_head.weight.dtype)

    def _call(self, ids, mask, cache, *, keep: bool):
        torch, backbone = self._torch, self._network.backbone
        seen: list[dict[str, np.ndarray]] = [{} for _ in backbone.layers]
        with ExitStack() as stack:
            for block, into in zip(backbone.layers, seen, strict=True):
                stack.enter_context(watched(block, into))
                handle = block.register_forward_pre_hook(_input_into(into))
                stack.callback(handle.remove)
            options: dict[str, Any] = {"use_cache": keep}
            options |= given_cache(backbone, cache)
            if mask is not None:
                options["attention_mask"] = torch.as_tensor(mask, device=self._device)
            ids = torch.as_tensor(np.ascontiguousarray(ids), device=self._device)
            result = backbone(ids, **options)
        return result, seen


class NetworkVariants:
    """Run one text with transformers' own classes of any family: whole, by steps from
    a cache that holds nothing yet, or as one row of a batch.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights.
    - `device`: a torch device.
    """

    def __init__(self, model: Model, execution: Execution, device: str = "cpu"):
        self._built = TransformersNetwork(execution, device).built(model)
        self._device = device

    @traced_in_fp64
    def trace(
        self, model: Model, tokens, variant: Variant, segments: tuple[Segment, ...]
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:**

        - `tokens`: (batch, seq); a batch runs the first sequence among shifted ones.
        - `segments`: one, since every call of a run is of the same execution.

        **Raises:** `RefusedError` where the library raises.
        """
        (segment,) = segments
        runner = TransformersNetwork(segment.execution, self._device)
        tokens, row = np.asarray(tokens), slice(None)
        if variant.kind == "batched":
            ((tokens, _, row, _),) = _plan(tokens, variant)
        yield from runner.trace_of(self._built, model, tokens, row)


def _input_into(seen):
    return lambda module, inputs: seen.__setitem__("input", copied(inputs[0]))


def _plan(tokens, variant: Variant):
    """The calls: ids, mask or None, rows to keep, columns to keep."""
    seq = tokens.shape[1]
    text = slice(0, 1)
    if variant.kind == "batched":
        row = (variant.numbers or (1,))[0]
        rows = _company(tokens, max(row, 2))
        ids = np.concatenate([rows[:row], tokens[:1], rows[row:]])
        return [(ids, None, slice(row, row + 1), slice(0, seq))]
    if variant.kind.startswith("padded"):
        return _padded(tokens, variant, text)
    calls = []
    for call in variant.calls(seq):
        size = 1 if call.decode else call.stop - call.start
        for first in range(call.start, call.stop, size):
            span = slice(first, first + size)
            calls.append((tokens[:, span], None, slice(None), slice(0, size)))
    return calls


def _padded(tokens, variant: Variant, text: slice):
    """Row 0 is the text with padding, row 1 another text without."""
    seq, pads = tokens.shape[1], variant.numbers[0]
    prompt = variant.prompt or seq
    other = np.resize(_company(tokens, 1), (1, seq + pads))
    filler = np.zeros((1, pads), tokens.dtype)
    hidden, shown = np.zeros((1, pads), np.int64), np.ones((1, prompt), np.int64)
    if variant.kind == "padded_left":
        padded = np.concatenate([filler, tokens[:1, :prompt]], axis=1)
        mask = np.concatenate([hidden, shown], axis=1)
        columns = slice(pads, None)
    else:
        padded = np.concatenate([tokens[:1, :prompt], filler], axis=1)
        mask = np.concatenate([shown, hidden], axis=1)
        columns = slice(0, prompt)
    ids = np.concatenate([padded, other[:, : prompt + pads]])
    mask = np.concatenate([mask, np.ones_like(mask)])
    calls: list[Any] = [(ids, mask, text, columns)]
    for t in range(prompt, seq):
        step = np.concatenate(
            [tokens[:1, t : t + 1], other[:, t + pads : t + pads + 1]]
        )
        calls.append((step, None, text, slice(0, 1)))
    return calls


def _company(tokens, rows: int):
    """Other texts for a batch: the other sequences, then the first one shifted."""
    seq = tokens.shape[1]
    shifted = [np.roll(tokens[:1], 1 + (i * seq) // (rows + 1)) for i in range(rows)]
    return np.concatenate([tokens[1:], *shifted])[:rows]
