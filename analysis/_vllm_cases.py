"""Which runs of which networks `analysis.vllm_kernels` makes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ._vllm_faults import CUT, DRAFTS, FAULTS


PRECISIONS = ("bf16", "fp16", "fp32")
STATES = ("fp32", "bf16", "fp16")
LENGTHS = (2049, 512, 128)
LONG = 8192
"""Tokens without bounds, which would take hours: drift, estimate, KL and flips."""
HANDED = 512
"""Tokens of texts that are handed over: two chunks of the trained network."""
BROKEN = 128
HAND_OVERS = (
    *(f"chunks:{cut},rest" for cut in (1, CUT, 255, 256, 257, HANDED - 1)),
    f"initial_state:{CUT}",
    "packed:100",
    "batched:1",
    *(f"resumed:{cut}" for cut in (CUT, 255, 256, 257)),
    *("resumed:256,300", f"preempted:{CUT}", "preempted:300,256", f"mixed:{CUT}"),
)
SCHEDULED = (f"resumed:{CUT}", f"preempted:{CUT}", f"mixed:{CUT}")
REPLAY = "--use-replayssm"
SPECULATIVE = "--speculative-config.num_speculative_tokens 3"
FLASHINFER = "--mamba-backend flashinfer"
STOCHASTIC = (
    "--mamba-ssm-cache-dtype float16 --enable-mamba-cache-stochastic-rounding "
    f"{FLASHINFER}"
)
LONG_DECODES = (8192, 2048)
"""Tokens by steps, without bounds."""
SEEDS = 1000
"""Of one step that is rounded stochastically."""
TINY, TINY_CUT = 24, 9
"""Tokens of the tiny network, and of its first call: a chunk and one."""


class Case(NamedTuple):
    """One run of one network."""

    model: str
    way: str
    """prefill, decode, or a way of an audit; rounding: one step by many seeds."""
    length: int
    precision: str
    state: str | None = None
    """None: the format that vLLM takes by itself."""
    fault: str | None = None
    effort: str | None = None
    shares: bool = False
    """Whether the emulation is counted beside it, and no bound."""
    flags: str | None = None
    """How the server was started."""
    stack: str = "vllm"
    """Whose operators run it."""

    @property
    def measure(self) -> str:
        """What runs it."""
        return f"{self.stack} {self.flags or ''}".strip()

    @property
    def name(self) -> str:
        """Says all of it."""
        parts: list[Any] = [*self[:4], self.state and f"state {self.state}"]
        parts += self[5:7]
        parts += ["emulation beside" if self.shares else None, self.flags]
        parts += [None if self.stack == "vllm" else self.stack]
        return ", ".join(str(part) for part in parts if part is not None)


def cases() -> list[Case]:
    """All of them, those that take longest first."""
    found = [
        Case("mamba2", "decode", length, "bf16", state, effort="quick", flags=flags)
        for length in LONG_DECODES
        for state, flags in (*((state, None) for state in STATES), (None, REPLAY))
    ]
    found += [
        Case("mamba2", way, length, "bf16", state, flags=flags)
        for length in LENGTHS[1:]
        for way, flags in ((DRAFTS, None), ("decode", SPECULATIVE))
        for state in STATES[:2]
    ]
    found.append(Case("mamba2", f"initial_state:{CUT}", 512, "bf16", flags=SPECULATIVE))
    found += [
        Case("mamba2", "decode", length, "bf16", state, flags=FLASHINFER)
        for length in LENGTHS[1:]
        for state in (*STATES, "int16-scaled")
    ]
    found += [
        Case("mamba2", "decode", length, "bf16", flags=STOCHASTIC)
        for length in LENGTHS[1:]
    ]
    found.append(
        Case("FlashInfer's step", "rounding", SEEDS, "bf16", "fp16-stochastic")
    )
    found += [Case("mamba2", "prefill", LENGTHS[0], p) for p in PRECISIONS]
    found += [Case("mamba2", "prefill", LONG, p, effort="quick") for p in PRECISIONS]
    found += [Case("mamba2", "decode", 512, "bf16", state) for state in STATES]
    found += [
        Case("mamba2", way, HANDED, "bf16", state)
        for way in HAND_OVERS
        for state in ("fp32", "bf16")
    ]
    found += [
        Case("mamba2", way, HANDED, precision)
        for precision in ("fp16", "fp32")
        for way in (f"chunks:{CUT},rest", f"initial_state:{CUT}")
    ]
    for length in LENGTHS[1:]:
        found += [Case("mamba2", "prefill", length, p) for p in PRECISIONS]
    found += [Case("mamba2", "decode", 128, p, s) for p in PRECISIONS for s in STATES]
    found += [
        Case("mamba2", way, length, "bf16", flags=flags)
        for way, length, flags in (
            ("decode", 512, REPLAY),
            ("decode", 128, REPLAY),
            ("decode", 128, f"{REPLAY} --mamba-ssm-cache-dtype float32"),
            ("prefill", 512, "--enforce-eager"),
            ("decode", 128, "--enforce-eager"),
            ("prefill", 512, "--mamba-cache-dtype float32"),
        )
    ]
    found += [
        Case("mamba1", "prefill", length, p) for length in LENGTHS for p in PRECISIONS
    ]
    found += [
        Case("mamba1", way, HANDED, "bf16", state)
        for way in (f"chunks:{CUT},rest", f"initial_state:{CUT}", *SCHEDULED)
        for state in ("fp32", "bf16")
    ]
    found.append(Case("mamba1", "decode", 512, "bf16"))
    found += [Case("mamba1", "decode", 128, p) for p in PRECISIONS]
    found += [
        Case("mamba2", fault.way, BROKEN, fault.precision, fault=name)
        for name, fault in FAULTS.items()
    ]
    found += [
        Case(model, way, length, p, shares=True)
        for model, way, length in (
            ("mamba2", "prefill", 512),
            ("mamba2", "decode", 128),
            ("mamba1", "decode", 128),
            ("mamba1", "prefill", 512),
        )
        for p in PRECISIONS
    ]
    return found


def smoke() -> Iterator[Case]:
    """Some of each kind, of the tiny network."""
    yield Case("tiny", "prefill", TINY, "fp16")
    yield Case("tiny", "decode", TINY, "fp32", "fp16")
    yield Case("tiny", f"chunks:{TINY_CUT},rest", TINY, "fp16")
    yield Case("tiny", f"initial_state:{TINY_CUT}", TINY, "fp16", "fp32")
    yield Case("tiny", "packed:10", TINY, "fp16")
    yield from (Case("tiny", tiny_way(way), TINY, "fp16") for way in SCHEDULED)
    yield Case("tiny", "prefill", 2 * TINY, "fp16", effort="quick")
    yield Case("tiny", "decode", TINY, "fp16", flags=REPLAY)
    yield Case("tiny", DRAFTS, TINY, "fp16", "fp16")
    yield Case("tiny", "decode", TINY, "fp16", "fp16", flags=SPECULATIVE)
    yield Case("tiny", f"initial_state:{TINY_CUT}", TINY, "fp16", flags=SPECULATIVE)
    yield Case("tiny", "prefill", TINY, "fp16", flags="--enforce-eager")
    yield Case("tiny", "prefill", TINY, "fp16", shares=True)
    yield Case("tiny", "decode", TINY, "fp16", shares=True)
    for name, fault in FAULTS.items():
        yield Case("tiny", tiny_way(fault.way), TINY, "fp16", fault=name)


def tiny_way(way: str) -> str:
    """The same way, cut where the tiny network's text is."""
    for cut, own in ((CUT, TINY_CUT), (CUT - 1, TINY_CUT - 1)):
        way = way.replace(str(cut), str(own))
    return way
