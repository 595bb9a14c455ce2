"""transformers' own code in torch, watched from outside.

The modules run unchanged, block by block; hooks copy what goes in and out of them.
What happens between modules (the conv, dt, the scan) is not seen, so there T0 covers
a longer stretch.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..._errors import UsageError
from ...models import Model
from ...sublayers.config import plain_mamba1
from .. import Execution
from .._segment import Segment
from .._torch import copied, torch_dtype, watched
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant
from .network_runner import Inside, TransformersNetwork, nothing_inside


class Transformers:
    """Run a network with transformers' classes, on CPU unless told otherwise.

    A whole text goes block by block through plain Mamba-1, of which nothing is kept;
    every other network, and steps, go through `TransformersNetwork`.

    **Arguments:**

    - `execution`: whose `precision` says the dtype of the weights, or of autocast over
      weights in fp32, and whose `mode` says whether a cache is stepped through.
    - `device`: a torch device. `inside`: as for `TransformersNetwork`.

    **Raises:** `UsageError` for autocast on another device than the CPU, whose list of
    operations the execution follows; `MissingExtraError` without torch or transformers.
    """

    def __init__(
        self,
        execution: Execution,
        device: str = "cpu",
        inside: Inside = nothing_inside,
    ):
        if execution.runs_in.autocast and device != "cpu":
            raise UsageError(
                f"autocast is followed on cpu, not on {device}: the lists of "
                "operations that it casts differ",
                hint="leave --device out",
            )
        self.execution = execution
        self._device = device
        self._networks = TransformersNetwork(execution, device, inside)

    @traced_in_fp64
    def trace(
        self,
        model: Model,
        tokens,
        variant: Variant | None = None,
        segments: Sequence[Segment] = (),
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:** as for `Runner.trace`.

        **Raises:** `UsageError` for a checkpoint that transformers does not read, or a
        sublayer whose output no module puts out; `RefusedError` where the network
        itself raises.
        """
        variant = variant or self.execution.variant
        if variant.kind != "whole" or plain_mamba1(model.config) is None:
            yield from self._networks.trace(model, tokens, variant, segments)
            return
        torch, network = self._networks.network(model)
        with torch.no_grad():
            ids = torch.as_tensor(np.asarray(tokens), device=self._device)
        before, normed = None, None
        for seen in _layer_by_layer(torch, network, ids, self._autocast):
            if seen.normed is not None:
                normed = seen.normed
                continue
            output = jnp.asarray(seen.stored.pop("mixer"))
            given = jnp.asarray(seen.input)
            layer = model.sublayers[seen.layer]
            stored = {name: jnp.asarray(x) for name, x in seen.stored.items()}
            yield SublayerRecord(
                layer.layer,
                layer.kind,
                *(before or (given, jnp.zeros_like(given))),
                output,
                # what the block is given is what was added up
                stored | {"out": output, "residual": given},
                {},
            )
            before = given, output

        def logits(start, stop):
            with torch.no_grad(), self._autocast(torch):
                rows = network.lm_head.weight[start:stop]
                return jnp.asarray(copied(normed @ rows.T))

        assert before is not None
        yield HeadRecord(*before, logits)

    def _autocast(self, torch):
        """What the modules run under: autocast, or nothing."""
        if not self.execution.runs_in.autocast:
            return nullcontext()
        dtype = torch_dtype(torch, self.execution.precision)
        return torch.autocast("cpu", dtype=dtype)


class _Seen(NamedTuple):
    """What one block was given and stored; or, at the end, what the head reads."""

    layer: int
    input: np.ndarray
    stored: dict[str, np.ndarray]
    normed: Any = None


def _layer_by_layer(torch, network, ids, autocast) -> Iterator[_Seen]:
    """The whole sequence through one block after another."""
    with torch.no_grad():
        stream = network.backbone.embeddings(ids)
    for i, block in enumerate(network.backbone.layers):
        seen: dict[str, np.ndarray] = {}
        before = copied(stream)
        with torch.no_grad(), autocast(torch), watched(block, seen):
            stream = block(stream)
        yield _Seen(i, before, _cast(torch, seen, autocast))
    with torch.no_grad(), autocast(torch):
        normed = network.backbone.norm_f(stream)
    yield _Seen(-1, np.zeros(0), {}, normed.to(network.lm_head.weight.dtype))


def _cast(torch, seen, autocast):
    """Under autocast what in_proj and out_proj read is cast on the way in."""
    with autocast(torch):
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            for name in ("norm", "gated"):
                seen[name] = copied(torch.tensor(seen[name]).to(dtype))
    return seen
