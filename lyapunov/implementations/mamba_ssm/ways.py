"""mamba_ssm's own kernels, run in the ways that its Mamba-1 has."""

import numpy as np

from ...models import Model
from .._segment import Segment
from .._trace import HeadRecord, Trace, traced_in_fp64
from .._ways import Variant
from .runner import MambaSsm


class MambaSsmVariants:
    """Run one text with mamba_ssm on an NVIDIA GPU: whole, by steps, in a batch.

    **Arguments:**

    - `device`: a torch device.
    """

    def __init__(self, device: str = "cuda"):
        self._device = device

    @traced_in_fp64
    def trace(
        self, model: Model, tokens, variant: Variant, segments: tuple[Segment, ...]
    ) -> Trace:
        """Records of all sublayers for the text alone, then the head.

        **Arguments:**

        - `tokens`: (batch, seq).
        - `segments`: one, since every call of a run is of the same execution.
        """
        (segment,) = segments
        runner = MambaSsm(segment.execution, device=self._device)
        if variant.kind != "batched":
            yield from runner.trace(model, tokens)
            return
        row = (variant.numbers or (1,))[0]
        copies = [np.roll(tokens[:1], 1 + i) for i in range(max(row, 2))]
        batch = np.concatenate([*copies[:row], tokens[:1], *copies[row:]])
        own = slice(row, row + 1)
        for record in runner.trace(model, batch):
            if isinstance(record, HeadRecord):
                yield _head_of(record, own)
                continue
            yield record._replace(
                residual=record.residual[own],
                hidden=record.hidden[own],
                output=record.output[own],
                stored={site: x[own] for site, x in record.stored.items()},
            )


def _head_of(record: HeadRecord, own: slice) -> HeadRecord:
    return HeadRecord(
        record.residual[own],
        record.hidden[own],
        lambda start, stop: record.logits(start, stop)[own],
    )
