"""Which servers' flags, states and periods the study of served states runs, and what
each keeps for a sequence."""

from collections.abc import Iterator
from typing import Any, NamedTuple


MODELS = ("mamba2", "hybrid", "mamba1")
"""Of `experiments/models`; hybrid: Mamba-2 with one attention and MLPs."""
DRAFTS, RING = 3, 16
"""Tokens of a draft, so that a window has one more; vLLM's default ring."""
STOCHASTIC = "--enable-mamba-cache-stochastic-rounding --mamba-backend flashinfer"
DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp16-stochastic": f"float16 {STOCHASTIC}",
}
UNREACHED = ("int16-scaled", "int8-scaled", "fp8_e4m3-scaled")
"""State formats that no flag of either server leads to."""
FLAG = {"vLLM": "--mamba-ssm-cache-dtype", "SGLang": "--mamba-ssm-dtype"}
IMPLEMENTATION = {"vLLM": "vllm_emulated", "SGLang": "sglang_emulated"}
PERIODS = {
    "vLLM": {
        1: "",
        1 + DRAFTS: f"--speculative-config.num_speculative_tokens {DRAFTS}",
        RING: "--use-replayssm",
    },
    "SGLang": {1: "", 1 + DRAFTS: f"--speculative-num-draft-tokens {1 + DRAFTS}"},
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int16": 2, "int8": 1, "fp8_e4m3": 1}
SCALE_BYTES = 4
"""Of a scale, one a channel, as FlashInfer's kernels hold it."""


class Case(NamedTuple):
    """One server over one network."""

    model: str
    stack: str
    state: str
    period: int
    more: str = ""
    """A flag beside those of state and period."""
    reached: bool = True
    """Whether a flag of this server leads to such a state."""

    @property
    def flags(self) -> str:
        """The server's command line, as far as it matters."""
        kept = f"{FLAG[self.stack]} {DTYPES[self.state]}" if self.reached else ""
        parts = (kept, PERIODS[self.stack][self.period], self.more)
        return " ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        """Says all of it."""
        kept = self.flags if self.reached else f"{self.state} {self.flags}"
        return f"{self.model}, {self.stack} {kept}".strip()


def cases(model: str) -> Iterator[Case]:
    """All of a network, those with an fp32 state in front."""
    alone = model == "mamba1"
    for stack, periods in PERIODS.items():
        for period in periods:
            if period > 1 and alone:
                continue  # both servers step through a Mamba-1 token by token
            for state in DTYPES:
                if alone and stack == "vLLM" and state.startswith("fp16"):
                    continue  # its prefill of a bf16 Mamba-1 fails with such a state
                yield Case(model, stack, state, period)
            own = "SGLang" if alone else "vLLM"
            if stack == own and period in (1, RING):
                for state in UNREACHED:
                    yield Case(model, stack, state, period, reached=False)
    # at vLLM's default state, the model's format
    yield Case(model, "vLLM", "bf16", 1, "--mamba-cache-dtype float32")
    yield Case(model, "vLLM", "bf16", 1, "--enforce-eager")
    if model != "hybrid":  # whose attention on two devices was not read
        yield Case(model, "vLLM", "bf16", 1, "-tp 2")


def kept_bytes(sublayers: Any, case: Case) -> int:
    """What a server holds of all states of one sequence, in bytes.

    vLLM has a slot for each token of a window, SGLang one besides; ReplaySSM a ring of
    x and B in 16 bits and of dt in fp32.
    """
    element, _, variant = case.state.partition("-")
    total = 0
    for one in sublayers:
        if not one.recurrent:
            continue
        scales = SCALE_BYTES * one.d_inner if "scaled" in variant else 0
        state = one.d_inner * one.d_state * BYTES[element] + scales
        if case.period == RING:
            row = 2 * (one.d_inner + one.groups * one.d_state) + 4 * one.heads
            total += state + RING * row
        elif case.period > 1:
            total += state * (case.period + (case.stack == "SGLang"))
        else:
            total += state
    return total
