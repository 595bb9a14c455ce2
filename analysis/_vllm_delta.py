"""Runs of delta rules that `analysis.vllm_kernels` makes, and ways to break them."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from ._vllm_cases import LENGTHS, SPECULATIVE, STATES, Case
from ._vllm_faults import CUT, DRAFTS, EVERY, Fault


TRITON = "--gdn-prefill-backend triton"
MODELS = {"gated_delta": ("bf16", "fp16"), "kimi_delta": ("bf16", "fp16", "fp32")}
"""By trained network the formats that vLLM prefills it in."""
HANDED = 256
"""Tokens of texts that are handed over: four chunks."""
HAND_OVERS = (
    *(f"chunks:{cut},rest" for cut in (1, CUT, 63, 64, 65, HANDED - 1)),
    *(f"initial_state:{CUT}", "packed:100", "batched:1"),
    *(f"resumed:{CUT}", f"preempted:{CUT}"),
)
BROKEN = 128
LONG = 2048
"""Tokens by steps, without bounds."""


def _without_initial(original: Callable) -> Callable:
    """A prefill that goes on begins with nothing."""

    def chunks(**named):
        import torch

        nothing = torch.zeros_like(named["initial_state"])
        return original(**named | {"initial_state": nothing})

    return chunks


def _stale(every: int, original: Callable) -> Callable:
    """Now and then what a step leaves goes where nobody reads."""
    steps: Counter[int] = Counter()

    def step(**named):
        state = named["initial_state"]
        steps[state.data_ptr()] += 1
        if steps[state.data_ptr()] % every == 0:
            named = named | {"initial_state": state.clone()}
        return original(**named)

    return step


def _shared(original: Callable) -> Callable:
    """All rows of a batch have the first one's state."""

    def step(**named):
        (key,) = {"ssm_state_indices", "state_indices"} & set(named)
        slots = named[key]
        return original(**named | {key: slots[:1].expand_as(slots).contiguous()})

    return step


def _rejected(original: Callable) -> Callable:
    """A window of drafts goes on from its last token's state, kept or not."""

    def window(**named):
        import torch

        accepted, slots = named["num_accepted_tokens"], named["ssm_state_indices"]
        every = torch.full_like(accepted, slots.shape[1])
        return original(**named | {"num_accepted_tokens": every})

    return window


def _state_in(name: str, original: Callable) -> Callable:
    """What a step leaves is held in another format than the cache's."""

    def step(**named):
        import torch

        found, state = original(**named), named["initial_state"]
        state.copy_(state.to(getattr(torch, name)).to(state.dtype))
        return found

    return step


def _units_in(name: str, original: Callable) -> Callable:
    """Queries and keys of unit length are stored in another format."""

    def prepared(**named):
        import torch

        q, k, *others = original(**named)
        held = lambda x: x.to(getattr(torch, name)).to(x.dtype)
        return held(q), held(k), *others

    return prepared


def _gates_of_the_token_before(original: Callable) -> Callable:
    """Decays are those of the token in front of each (fla 1240 was of this kind)."""

    def chunks(**named):
        name = "g" if "g" in named else "raw_g"
        return original(**named | {name: named[name].roll(1, dims=1)})

    return chunks


_CUT = f"chunks:{CUT},rest"
FAULTS: dict[str, tuple[str, Fault]] = {
    "an initial state of a delta rule is lost": (
        "gated_delta",
        Fault("chunks", _without_initial, _CUT, "bf16"),
    ),
    "an initial state of Kimi's is lost": (
        "kimi_delta",
        Fault("kimi_chunks", _without_initial, _CUT, "bf16"),
    ),
    "a stale state of a delta rule": (
        "gated_delta",
        Fault("step", partial(_stale, EVERY), "decode", "bf16"),
    ),
    "a stale state of Kimi's": (
        "kimi_delta",
        Fault("kimi_step", partial(_stale, EVERY), "decode", "bf16"),
    ),
    "a state of Kimi's in bf16": (
        "kimi_delta",
        Fault("kimi_step", partial(_state_in, "bfloat16"), "decode", "bf16"),
    ),
    "a rejected draft's state of a delta rule is kept": (
        "gated_delta",
        Fault("window", _rejected, DRAFTS, "bf16"),
    ),
    "two rows share a state of a delta rule": (
        "gated_delta",
        Fault("step", _shared, "decode", "bf16", batch=2),
    ),
    "units in fp8 e4m3": (
        "gated_delta",
        Fault("prepared", partial(_units_in, "float8_e4m3fn"), "prefill", "bf16"),
    ),
    "gates of the token before": (
        "gated_delta",
        Fault("chunks", _gates_of_the_token_before, "prefill", "bf16"),
    ),
    "Kimi's gates of the token before": (
        "kimi_delta",
        Fault("kimi_chunks", _gates_of_the_token_before, "prefill", "bf16"),
    ),
}
"""By name the trained network whose run is broken, and how: its operator is a field of
`DeltaOperators`."""


def _case(model: str, way: str, length: int, precision: str, *given, **named) -> Case:
    """A run of it, in Triton's prefill."""
    flags = named.pop("flags", "") or ""
    flags = f"{TRITON} {flags}".strip() if model == "gated_delta" else flags or None
    return Case(model, way, length, precision, *given, flags=flags, **named)


def states(model: str) -> tuple[str, ...]:
    """Formats that vLLM keeps its state in."""
    return STATES if model == "gated_delta" else STATES[:1]


def delta_cases() -> list[Case]:
    """All of them, those that take longest first."""
    found = []
    for model, precisions in MODELS.items():
        found += [
            _case(model, "decode", LONG, "bf16", state, effort="quick")
            for state in states(model)
        ]
        found.append(_case(model, "prefill", LENGTHS[0], "bf16"))
        found += [
            _case(model, way, HANDED, "bf16", state)
            for way in HAND_OVERS
            for state in states(model)[:2]
        ]
        for length in LENGTHS[1:]:
            found += [_case(model, "prefill", length, p) for p in precisions]
        found += [
            _case(model, "decode", 128, p, state)
            for p in precisions
            for state in states(model)
        ]
        found += [
            _case(model, way, 128, "bf16", state, flags=flags)
            for way, flags in ((DRAFTS, None), ("decode", SPECULATIVE))
            for state in states(model)[:2]
        ]
        found += [
            _case(model, way, 128, p, shares=True)
            for way in ("prefill", "decode")
            for p in precisions
        ]
    found.append(_case("gated_delta", f"mixed:{CUT}", HANDED, "bf16"))
    found.append(
        _case(
            "gated_delta", "prefill", 128, "bf16", flags="--mamba-cache-dtype float32"
        )
    )
    found += [
        _case(model, fault.way, BROKEN, fault.precision, fault=name)
        for name, (model, fault) in FAULTS.items()
    ]
    return found
