"""How much memory a check would take: a sum of what is alive at once.

Of short texts stages overlap; of long ones, whose stored tensors are large, one works
at a time, and what it has at work is gone before the next begins. The numbers of arrays
are those of compiled programs (`memory_analysis`) of Granite-4-H's widths.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._devices import devices, has_gpu
from ..arithmetic.perturbed import STATES_AT_ONCE
from ..bounds._way_back import KEPT_BYTES
from ..bounds.floor import FLOOR_TOKENS
from ..implementations import Execution
from ..implementations._registry import measuring
from ..implementations.emulated.runner import run_rounded
from ..models import Model, Sublayer
from ..models._language_model import VOCABULARY_SLICE
from ..sublayers.residual import Incoming
from ._effort import Effort
from ._layers import STORED_BYTES_AT_ONCE


BASE_BYTES = 300 * 2**20
"""Python and JAX."""

STATE_ARRAYS = 3
"""Arrays of 8 bytes, (token, d_inner, d_state), in T2's reverse pass over one sequence,
of `perturbed.STATES_AT_ONCE` entries at most; `growth` holds two, of texts that do not
go in blocks."""

BLOCK_ARRAYS = 24
"""Arrays of 8 bytes a score of one block of attention's queries, alive at once for each
execution: 11 in T1, as many in T0, of Granite-4-H's widths."""

KEPT_STREAMS = {"reference": 4, "run": 4, "T3": 2, "T4": 4}
"""Arrays as large as the residual stream that stay from one sublayer to the next: what
went into it, the stream behind it and its output. T3 has two more for each probe."""

STREAMS_AROUND = 6
"""The same of T1 and T4, beside what they hold inside: the error of what goes in, and
value and error of what comes out."""

GROWTH_STREAMS = 13
"""The same of `growth`; 12 of Granite-4-H's widths."""

WEIGHT_COPIES = 3
"""fp64 copies of one sublayer's weights alive at once for each execution: exact, held,
and what programs make of them, magnitudes and Gram matrices. A check of 512 tokens of
Granite-4-H's widths, planned by 3 as 8.4 GiB, took 3.7."""

READ_AHEAD = 2
"""The same of the largest sublayer, read while another is at work: as stored and in
fp64."""


def stored_in(
    model: Model,
    shape: tuple[int, int],
    layer: Sublayer,
    executions: Sequence[Execution],
    measure: str,
) -> int:
    """Count bytes of what an execution stores in a sublayer, as whoever runs it hands
    it on: the emulator in the width that it computes in, others in fp64."""
    p, sizes = model.parameters(layer.layer), model.config.sublayers[layer.layer]
    like = jax.ShapeDtypeStruct((*shape, model.config.d_model), jnp.float64)
    incoming = Incoming(like, like, None, like if layer.embedded else None)
    found, whoever = 0, measuring(measure)
    each_way = [own for one in executions for own in one.every(layer.kind)]
    for own in each_way:
        run = lambda i, own=own: run_rounded(
            sizes, own.site_numbers(), {}, i, p, model.start(p), None,
            np.zeros(3, int), own.form, False,
        )  # fmt: skip
        stored = jax.eval_shape(run, incoming)[2]
        width = whoever.entry_bytes if whoever else 8
        each = (x.size * (width or x.dtype.itemsize) for x in stored.values())
        found = max(found, sum(each))
    return found


class Memory(NamedTuple):
    """Bytes of a check, by stage."""

    kept: dict[str, int]
    """From one sublayer to the next."""
    at_work: dict[str, int]
    alone: bool
    """Whether one stage works at a time."""

    def of(self, stage: str) -> int:
        """What it has alive at once."""
        return self.kept.get(stage, 0) + self.at_work[stage]

    def peak(self, stages: Iterable[str]) -> int:
        """The most that these stages have alive at once."""
        stages = list(stages)
        work = [self.at_work[stage] for stage in stages]
        kept = sum(self.kept.get(stage, 0) for stage in stages)
        return kept + (max if self.alone else sum)(work)


def memory_of(
    model: Model,
    shape: tuple[int, int],
    executions: Sequence[Execution],
    effort: Effort,
    stored: Mapping[str, int],
) -> Memory:
    """Count what every stage would have alive at once, whether it runs or not.

    **Arguments:**

    - `stored`: of the stored tensors of a sublayer, by kind.
    """
    config, n = model.config, len(executions)
    batch, length = shape
    tokens = batch * length
    stream = 8 * tokens * config.d_model
    alone = max(stored.values(), default=0) > STORED_BYTES_AT_ONCE
    block = bound = in_states = growing = 0
    for one in set(config.sublayers):
        count = one.count(length, batch)
        at_once = count.at_once or tokens
        forms = [own.form for e in executions for own in e.every(one.kind)]
        if any(form.chunks_at_once for form in forms):
            at_once = tokens
        held = count.arrays * count.channels * min(tokens, at_once)
        held = 8 * (held + BLOCK_ARRAYS * count.scores)
        block = max(block, held)
        own = (STREAMS_AROUND + count.streams) * stream + held
        own += WEIGHT_COPIES * 8 * count.weights
        bound = max(bound, own + stored.get(one.kind, 0))
        states = length * count.states
        in_states = max(in_states, 8 * STATE_ARRAYS * min(states, STATES_AT_ONCE))
        if at_once >= tokens:
            growing = max(growing, 16 * states)
    weights = max(8 * one.count(length, batch).weights for one in config.sublayers)
    copies = WEIGHT_COPIES * weights
    logits = 8 * tokens * min(VOCABULARY_SLICE, config.vocab_size)
    probes, one_text = effort.probes, stream // batch
    streams = KEPT_STREAMS | {"T3": 2 + 2 * probes}
    kept = {
        name: count * stream * (1 if name == "reference" else n)
        for name, count in streams.items()
    }
    kept["reference"] += READ_AHEAD * weights
    kept["T2"] = min(KEPT_BYTES, one_text * len(model.sublayers))
    readouts = max(effort.readouts or 0, 1)
    runs = 1 if alone else n
    at_work = {
        "reference": stream + block // 4 + copies + 4 * logits,
        "run": runs * (stream + block // 4 + weights + 2 * logits)
        + (0 if alone else n * max(stored.values(), default=0)),
        "measured": runs * (3 * stream + block // 4 + copies),
        "T0 and T1": runs * bound,
        "floor": runs * min(bound, bound * FLOOR_TOKENS // max(tokens, 1)),
        "T3": runs * (3 * stream + block // 2 + 2 * (probes + 1) * logits),
        "T2": (6 + 4 * readouts) * one_text + in_states + block + copies,
        "T4": runs * bound,
        "growth": GROWTH_STREAMS * one_text + growing + block + 2 * weights,
        "changed weights": 2 * STREAMS_AROUND * stream + block + copies,
    }
    return Memory(kept, at_work, alone)


def available_memory() -> int | None:
    """Bytes that are free where it runs, of a GPU or for a new process; None where
    nobody says."""
    if has_gpu():
        told = devices()[0].memory_stats() or {}
        if "bytes_limit" in told:
            return told["bytes_limit"] - told.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
