"""Ways to break what vLLM's operators are handed, each of a kind that servers had.

Every fault puts a function around one operator, and changes an argument of it or what
it leaves in a cache: nothing is computed anew.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple


class Fault(NamedTuple):
    """One way to break a run."""

    operator: str
    """A field of `Operators`."""
    broken: Callable[[Callable], Callable]
    """What stands in its place."""
    way: str
    """How a text is run that shows it."""
    precision: str
    batch: int = 1
    """Rows of the text."""


EVERY = 64
"""Steps from one lost store to the next."""
DRAFTS = "drafts:4,3"
"""Calls of four steps, of which three are kept."""
CUT = 61
"""Tokens in front of a hand-over from prefill to prefill."""


def _without_initial(original: Callable) -> Callable:
    """A prefill that goes on begins with nothing."""

    def scan(*given, **named):
        return original(*given, **named | {"initial_states": None})

    return scan


def _stale(every: int, original: Callable) -> Callable:
    """Now and then a state goes into a block that nobody reads."""
    steps: Counter[int] = Counter()

    def step(state, *given, **named):
        steps[state.data_ptr()] += 1
        if steps[state.data_ptr()] % every == 0:
            slots = named["dst_state_batch_indices"]
            named = named | {"dst_state_batch_indices": slots * 0}
        return original(state, *given, **named)

    return step


def _window_in(name: str, original: Callable) -> Callable:
    """The window is held in another format."""

    def step(u, window, *given, **named):
        import torch

        found = original(u, window, *given, **named)
        window.copy_(window.to(getattr(torch, name)).to(window.dtype))
        return found

    return step


def _shared(original: Callable) -> Callable:
    """All rows of a batch have the first one's state."""

    def step(state, *given, **named):
        slots = named["state_batch_indices"]
        first = slots[:1].expand_as(slots).contiguous()
        both = ("state_batch_indices", "dst_state_batch_indices")
        return original(state, *given, **named | dict.fromkeys(both, first))

    return step


def _rejected(original: Callable) -> Callable:
    """A window of drafts goes on from its last token's state, kept or not."""

    def step(state, *given, **named):
        import torch

        accepted, slots = named["num_accepted_tokens"], named["state_batch_indices"]
        every = torch.full_like(accepted, slots.shape[1])
        return original(state, *given, **named | {"num_accepted_tokens": every})

    return step


def _copied(which: slice, original: Callable) -> Callable:
    """Of every block some of what caches hold is copied: windows and states of all
    layers in turn."""

    def copy(kept, pairs):
        if kept[which]:
            original(kept[which], pairs)

    return copy


def _read_on(original: Callable) -> Callable:
    """What is kept of a prefill is the state behind its next chunk."""

    def checkpoint(kept, chunk, *given, **named):
        return original(kept, chunk + 1, *given, **named)

    return checkpoint


def _not_cleared(original: Callable) -> Callable:
    """A text that begins goes on from what its slot held."""

    def scan(*given, **named):
        if named["initial_states"] is None and named["final_states_out"] is not None:
            held = named["final_states_out"][named["final_state_indices"].long()]
            named = named | {"initial_states": held}
        return original(*given, **named)

    return scan


def _exchanged(original: Callable) -> Callable:
    """Rows of a batch have each other's states."""

    def step(state, *given, **named):
        slots = named["state_batch_indices"].flip(0)
        both = ("state_batch_indices", "dst_state_batch_indices")
        return original(state, *given, **named | dict.fromkeys(both, slots))

    return step


FAULTS = {
    "a prefill's initial state is lost": Fault(
        "chunk_scan", _without_initial, f"chunks:{CUT},rest", "bf16"
    ),
    "a stale block of states": Fault("step", partial(_stale, EVERY), "decode", "bf16"),
    "the window in fp8 e4m3": Fault(
        "conv_step", partial(_window_in, "float8_e4m3fn"), "decode", "bf16"
    ),
    "the window in bf16": Fault(
        "conv_step", partial(_window_in, "bfloat16"), "decode", "fp16"
    ),
    "a rejected draft's state is kept": Fault("step", _rejected, DRAFTS, "bf16"),
    "two rows share a state": Fault("step", _shared, "decode", "bf16", batch=2),
    "a block is not copied": Fault(
        "copy", partial(_copied, slice(0)), f"resumed:{CUT}", "bf16"
    ),
    "a block's window is not copied": Fault(
        "copy", partial(_copied, slice(1, None, 2)), f"resumed:{CUT}", "bf16"
    ),
    "full blocks are not copied": Fault(
        "copy", partial(_copied, slice(0)), f"preempted:{CUT},{CUT - 1}", "bf16"
    ),
    "a kept state has read on": Fault("checkpoint", _read_on, f"resumed:{CUT}", "bf16"),
    "a slot is not cleared": Fault(
        "chunk_scan", _not_cleared, f"preempted:{CUT}", "bf16"
    ),
    "rows have each other's states": Fault("step", _exchanged, f"mixed:{CUT}", "bf16"),
}


def fault_of(name: str, stack: str = "vllm") -> tuple[Fault, Callable, Callable]:
    """A fault, what finds the operators that it is in, and what replaces them."""
    from lyapunov.implementations import sglang, vllm

    if stack == "sglang":
        from ._sglang_cases import FAULTS as OF_SGLANG

        return OF_SGLANG[name], sglang.operators, sglang.operators_replaced
    if name in FAULTS:
        return FAULTS[name], vllm.operators, vllm.operators_replaced
    from ._vllm_delta import FAULTS as OF_DELTA

    _, fault = OF_DELTA[name]
    return fault, vllm.delta_operators, vllm.delta_operators_replaced


@contextmanager
def patched(name: str, every: int = EVERY, stack: str = "vllm") -> Iterator[None]:
    """The fault in place, for as long as the block runs.

    **Arguments:**

    - `every`: steps from one lost store to the next, of the fault that loses some.
    - `stack`: whose operators are broken.
    """
    fault, find, replace = fault_of(name, stack)
    broken = fault.broken
    if isinstance(broken, partial) and broken.args == (EVERY,):
        broken = partial(broken.func, every)
    original = getattr(find(), fault.operator)
    with replace(**{fault.operator: broken(original)}):
        yield
