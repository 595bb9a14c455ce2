"""A network on SGLang's own operators, recorded.

What stands around them, schedules texts and records is vLLM's runner: both stacks made
theirs of mamba_ssm's. Here are the differences: chunks are cut in the stream of all
texts of a prefill, one kernel makes the gated norm, and texts of a batch are run one
after another, so that each has chunks of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..._errors import UsageError
from ...models import Model
from .._implementation import RefusedError
from .._launch import Launch
from .._segment import Segment
from .._torch import import_torch
from .._trace import IN_FRONT
from .._ways import Variant
from ..vllm._layers import Layer
from ..vllm._network import Network
from ..vllm._plain import refuse_others
from ..vllm._schedule import ONE, Scheduler, Turn
from ..vllm.runner import Vllm
from . import _operators


ABOVE = 1.0 + 2.0**-10
"""Of a sum in fp64 over that of fp32 numbers, which differ by some 2^-20 of them."""


class SglangLayer(Layer):
    """A mixer whose gated norm is one kernel (`Mixer2RMSNormGated.forward_cuda`)."""

    def _gated(self, y: Any, gate: Any) -> Any:
        from torch.nn.functional import silu

        weight, sizes = self.weights.get("gate_norm"), self.sizes
        if weight is None:
            return y * silu(gate.float()).to(y.dtype)
        return self.operators.gated_norm(
            x=y,
            weight=weight,
            bias=None,
            z=gate,
            eps=sizes.gate_norm_epsilon,
            group_size=sizes.d_inner // sizes.groups,
            norm_before_gate=False,
            is_rms_norm=True,
        )


def sum_in_front(layer: Layer, found: dict[str, Any], turn: Turn) -> dict[str, Any]:
    """How far sums of decays have come in front of the recorded text, in the chunk that
    it shares with another; nothing where it begins with a chunk of its own.

    **Arguments:**

    - `found`: what the layer stored of all tokens of the pass, by site.
    """
    import torch

    begin = steps = 0
    for part in turn.parts:
        if part.steps:
            steps += len(part.ids)
        elif part.seen:
            break
        else:
            begin += len(part.ids)
    else:
        return {}
    sizes, shared = layer.sizes, begin % layer.sizes.chunk
    if not shared:
        return {}
    rows = slice(steps + begin - shared, steps + begin)
    dt = found["xz"][rows, -sizes.heads :].double() + layer.weights["dt_bias"].double()
    dt = torch.nn.functional.softplus(dt)
    return {IN_FRONT: ABOVE * (dt * layer.weights["A"].double()).sum(0)}


class Sglang(Vllm):
    """Run plain Mamba-2 networks with SGLang's operators.

    They need an NVIDIA GPU, or Triton's interpreter (`TRITON_INTERPRET=1`), which runs
    small networks in fp32 and fp16.

    **Arguments:** as of `Vllm`.

    **Raises:** `UsageError` for a start that is not followed here.
    """

    ways = (
        *("whole", "steps", "chunks", "batched", "packed", "initial_state"),
        *("resumed", "preempted"),
    )
    stack = "SGLang"

    def _refuse_launch(self, launch: Launch) -> None:
        for what, given in (
            ("--tensor-parallel-size", launch.ranks > 1),
            ("--mamba-backend flashinfer", launch.flashinfer),
            ("--enable-mamba-cache-stochastic-rounding", launch.stochastic),
            ("--speculative-num-draft-tokens", launch.drafts),
        ):
            if given:
                raise UsageError(
                    f"with {what} SGLang's operators are not run here",
                    hint="--measure sglang_emulated follows it",
                )

    def _backed(self, kind: str) -> _operators.Operators:
        if kind != "mamba2":
            raise RefusedError(
                "of SGLang's operators those of Mamba-2 are run",
                hint="--measure sglang_emulated follows SGLang's flow for the others",
            )
        return _operators.operators()

    def _scheduler(self, model: Model, variant: Variant) -> Scheduler:
        del variant
        return Scheduler(model.config.padded_vocab_size, ONE, rest_is_step=False)

    def _put_together(
        self, model: Model, dtype: Any, operators: _operators.Operators
    ) -> Network:
        refuse_others(model)
        return Network(model, dtype, operators, eager=False, layer=SglangLayer)

    def _beside(
        self, layer: Layer, found: dict[str, Any], turn: Turn
    ) -> dict[str, Any]:
        return sum_in_front(layer, found, turn)

    def _found(
        self,
        network: Network,
        scheduler: Scheduler,
        tokens: np.ndarray,
        variant: Variant,
        segments: Sequence[Segment],
    ) -> Iterator[Any]:
        own = super()._found
        packed = ("whole", "chunks", "initial_state")
        if len(tokens) == 1 or variant.kind not in packed:
            yield from own(network, scheduler, tokens, variant, segments)
            return
        torch = import_torch()
        rows = [own(network, scheduler, row[None], variant, segments) for row in tokens]
        for parts in zip(*rows, strict=True):
            if not isinstance(parts[0], dict):
                yield torch.cat(parts)
                continue
            found = {"layer": parts[0]["layer"]}
            for site in set(parts[0]) - {"layer"}:
                found[site] = torch.cat([part[site] for part in parts])
            yield found
